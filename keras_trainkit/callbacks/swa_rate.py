"""The learning rate of stochastic weight averaging: constant or in cycles, from some update on."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.callbacks.steering import SteeredRate
from keras_trainkit.schedules.base import LARGEST_STEP, rate_dtype


@keras.saving.register_keras_serializable("keras_trainkit")
class SWARate(SteeredRate):
    """A learning rate that `WeightAveraging` takes over. The numbers are the first update of it and a cycle's length.

    Args:
        schedule: the rate before.
        numbers: those of the callback, when it was saved; None for the first ones.
        first, last: from which rate and to which each cycle goes.
    """

    place = "swa_memory"
    dtype = "int32"
    initial = (LARGEST_STEP, 1)

    def __init__(self, schedule: Any, numbers: Any = None, first: float = 1.0, last: float = 1.0) -> None:
        super().__init__(schedule, numbers)
        self.first, self.last = first, last

    def __call__(self, step: Any) -> Any:
        """The rate at `step`."""
        step, numbers = ops.convert_to_tensor(step), ops.convert_to_tensor(self.memory.numbers)
        start, cycle = ops.cast(numbers[0], step.dtype), ops.cast(numbers[1], step.dtype)
        dtype = rate_dtype()
        place = ops.maximum(step - start, 0) % cycle + 1
        t = ops.cast(place, dtype) / ops.cast(cycle, dtype)
        own = (1 - t) * self.first + t * self.last
        return ops.where(step < start, ops.cast(self.rate_at(ops.minimum(step, start)), dtype), own)

    def get_config(self) -> dict[str, Any]:
        """The schedule, the numbers and the rates."""
        return {**super().get_config(), "first": self.first, "last": self.last}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The rate from what `get_config` gave."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["numbers"], config["first"], config["last"])
