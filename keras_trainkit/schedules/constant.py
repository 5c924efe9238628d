"""One rate for ever."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_trainkit.schedules.base import Schedule, value_of


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
        self._check_rates("learning_rate")

    def at(self, step: Any) -> Any:
        return value_of(self.learning_rate, step)
