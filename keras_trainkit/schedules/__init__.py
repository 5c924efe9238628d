"""Learning-rate schedules that Keras lacks; each is a `keras.optimizers.schedules.LearningRateSchedule`."""

from keras_trainkit.schedules.base import Schedule
from keras_trainkit.schedules.constant import Constant
from keras_trainkit.schedules.cosine import Cosine, CosineRestarts
from keras_trainkit.schedules.cyclic import Cyclic, OneCycle, OneCycleMomentum
from keras_trainkit.schedules.decay import REX, Exponential, InverseSqrt, Linear, Noam, Polynomial, Tanh
from keras_trainkit.schedules.drawing import plot
from keras_trainkit.schedules.join import Offset, Piecewise, Repeat, Scale, Sequence
from keras_trainkit.schedules.registry import get, list
from keras_trainkit.schedules.spans import resolve
from keras_trainkit.schedules.stairs import MultiStep, Step
from keras_trainkit.schedules.warmup import Warmup
from keras_trainkit.schedules.wsd import WSD, Cooldown

__all__ = [
    "REX",
    "WSD",
    "Constant",
    "Cooldown",
    "Cosine",
    "CosineRestarts",
    "Cyclic",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "MultiStep",
    "Noam",
    "Offset",
    "OneCycle",
    "OneCycleMomentum",
    "Piecewise",
    "Polynomial",
    "Repeat",
    "Scale",
    "Schedule",
    "Sequence",
    "Step",
    "Tanh",
    "Warmup",
    "get",
    "list",
    "plot",
    "resolve",
]
