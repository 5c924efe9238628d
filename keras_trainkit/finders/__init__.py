"""What training could be set to, found by trying: the learning rate, and the size of a batch."""

from keras_trainkit.finders.batch_size import batch_size
from keras_trainkit.finders.batch_size_report import BatchSize, Trial
from keras_trainkit.finders.learning_rate import learning_rate
from keras_trainkit.finders.learning_rate_report import LearningRates, Suggestion
from keras_trainkit.finders.noise_scale import NoiseScale, noise_scale
from keras_trainkit.finders.sweep import Curve

__all__ = [
    "BatchSize",
    "Curve",
    "LearningRates",
    "NoiseScale",
    "Suggestion",
    "Trial",
    "batch_size",
    "learning_rate",
    "noise_scale",
]
