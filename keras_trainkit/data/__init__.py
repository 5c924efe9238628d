"""Data: files as arrays to train on, checked, split and encoded; batches whose order and size follow from a seed."""

from keras_trainkit.data.batches import Batches
from keras_trainkit.data.dataset import Dataset, load
from keras_trainkit.data.errors import DataError
from keras_trainkit.data.rates import RateByBatch, follow_batch_size
from keras_trainkit.data.sizes import GrowingSize, RandomSize
from keras_trainkit.data.stream import StreamBatches

__all__ = [
    "Batches",
    "DataError",
    "Dataset",
    "GrowingSize",
    "RandomSize",
    "RateByBatch",
    "StreamBatches",
    "follow_batch_size",
    "load",
]
