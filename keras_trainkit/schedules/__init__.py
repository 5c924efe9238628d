"""Learning-rate schedules that Keras lacks; each is a `keras.optimizers.schedules.LearningRateSchedule`."""

from keras_trainkit.schedules.base import Schedule
from keras_trainkit.schedules.constant import Constant
from keras_trainkit.schedules.cosine import Cosine
from keras_trainkit.schedules.warmup import Warmup

__all__ = ["Constant", "Cosine", "Schedule", "Warmup"]
