"""Learning rates that a callback changes while a compiled train step runs: schedules that read variables.

The numbers that the callback sets lie in variables, so nothing is traced anew on TensorFlow. They are saved twice: with
the optimizer's configuration in a `.keras` file, which makes the variables again, and as a part of the optimizer in any
file of weights, so that BackupAndRestore brings them back, too.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.callbacks import optimizers
from keras_trainkit.core import backend
from keras_trainkit.schedules.base import rate_dtype, value_of
from keras_trainkit.training import train_functions


class Memory(keras.layers.Layer):
    """A few numbers in a variable; a layer, because Keras saves those wherever they hang."""

    def __init__(self, initial: list[float], dtype: str) -> None:
        super().__init__(dtype=dtype, trainable=False)
        values = np.array(initial, dtype)
        self.numbers = self.add_weight(
            shape=values.shape, dtype=dtype, initializer=backend.First(lambda *_: ops.convert_to_tensor(values)),
            trainable=False, name="numbers",
        )  # fmt: skip
        self.built = True

    def load_own_variables(self, store: Any) -> None:
        """Takes the numbers of a file; of one that was written without them, none."""
        if len(store.keys()):
            super().load_own_variables(store)


class SteeredRate(LearningRateSchedule):
    """A learning rate that a callback steers.

    Args:
        schedule: what it steers: a schedule, a number, or a function without arguments.
        numbers: those of the callback, when it was saved; None for the first ones.
    """

    place = ""
    dtype = "float32"
    initial: tuple[float, ...] = ()

    def __init__(self, schedule: Any, numbers: list[float] | None = None) -> None:
        self.schedule = schedule
        self.memory = Memory(list(self.initial) if numbers is None else numbers, self.dtype)

    def rate_at(self, step: Any) -> Any:
        """What `schedule` says for `step`."""
        if callable(self.schedule) and not isinstance(self.schedule, LearningRateSchedule):
            return ops.cast(self.schedule(), rate_dtype())
        return value_of(self.schedule, step)

    def numbers(self) -> list[float]:
        """The callback's numbers now."""
        return ops.convert_to_numpy(self.memory.numbers).tolist()

    def change(self, numbers: list[float]) -> None:
        """Replaces the callback's numbers."""
        self.memory.numbers.assign(np.array(numbers, self.dtype))

    def get_config(self) -> dict[str, Any]:
        """The schedule, serialized, and the numbers."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "numbers": self.numbers()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The rate from what `get_config` gave."""
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["numbers"])


def steer(model: Any, kind: type[SteeredRate]) -> Any:
    """The model's rate of this kind: the one that is there, or a new one around the optimizer's learning rate."""
    optimizer = optimizers.innermost(model.optimizer)
    rate = inner = backend.learning_rate_argument(optimizer)
    while isinstance(rate, SteeredRate) and not isinstance(rate, kind):
        rate = rate.schedule
    if not isinstance(rate, kind):
        with train_functions.variables_of(model):
            rate = kind(inner)
        if backend.learning_rate_variable(optimizer) is None:
            backend.replace_schedule(optimizer, rate)
        else:
            optimizer.learning_rate = rate
        train_functions.trace_anew(model)
    # Where Keras looks for what belongs to an optimizer when it saves and loads weights.
    setattr(optimizer, kind.place, rate.memory)
    return rate
