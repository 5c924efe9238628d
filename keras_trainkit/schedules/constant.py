"""One rate for ever."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import Schedule, rate_dtype


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate at every step.

    Use it where something wants a schedule: inside `Warmup`, or beside other schedules in one comparison. Unlike a
    float given to an optimizer, it cannot be assigned during training.

    Args:
        learning_rate: the rate, at least 0.

    >>> float(Constant(0.01)(123))
    0.009999999776482582
    """

    learning_rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", checks.number("learning_rate", self.learning_rate, at_least=0))

    def __call__(self, step: Any) -> Any:
        """The rate at `step`, a scalar or an array like `step`."""
        return ops.full(ops.shape(ops.convert_to_tensor(step)), self.learning_rate, dtype=rate_dtype())
