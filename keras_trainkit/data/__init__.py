"""Data: files as arrays to train on, checked, split and encoded; batches whose order and size follow from a seed.

What needs Keras loads when it is first used, because the command checks data before it waits for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_trainkit.data.dataset import Dataset, load
from keras_trainkit.data.errors import DataError
from keras_trainkit.data.sizes import GrowingSize, RandomSize

if TYPE_CHECKING:
    from keras_trainkit.data.batches import Batches
    from keras_trainkit.data.maps import BatchMap, LabelSmoothing, OneHot
    from keras_trainkit.data.mixing import CutMix, MixUp
    from keras_trainkit.data.rates import RateByBatch, follow_batch_size
    from keras_trainkit.data.stream import StreamBatches

__all__ = [
    "BatchMap",
    "Batches",
    "CutMix",
    "DataError",
    "Dataset",
    "GrowingSize",
    "LabelSmoothing",
    "MixUp",
    "OneHot",
    "RandomSize",
    "RateByBatch",
    "StreamBatches",
    "follow_batch_size",
    "load",
]

_HOMES = {
    "BatchMap": "maps",
    "Batches": "batches",
    "CutMix": "mixing",
    "LabelSmoothing": "maps",
    "MixUp": "mixing",
    "OneHot": "maps",
    "RateByBatch": "rates",
    "StreamBatches": "stream",
    "follow_batch_size": "rates",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_trainkit.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'keras_trainkit.data' has no attribute {name!r}")
