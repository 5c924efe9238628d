"""What training could be set to, found by trying: today the size of a batch."""

from keras_trainkit.finders.batch_size import batch_size
from keras_trainkit.finders.batch_size_report import BatchSize, Trial

__all__ = ["BatchSize", "Trial", "batch_size"]
