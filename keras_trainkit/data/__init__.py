"""Data: files as arrays to train on, checked, split with a seed and encoded; saved models take the raw values."""

from keras_trainkit.data.dataset import Dataset, load
from keras_trainkit.data.errors import DataError

__all__ = ["DataError", "Dataset", "load"]
