"""What all schedules share: a configuration made of dataclass fields, and counting that stays exact in float32."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.schedules.spans import LARGEST_STEP as LARGEST_STEP
from keras_trainkit.schedules.spans import unresolved

_DIGIT = 256  # of the tables that powers are made of


class Schedule(LearningRateSchedule):
    """Base of the kit's schedules: a frozen dataclass whose fields are its configuration.

    A subclass checks its fields in `__post_init__` and computes the rate in `at(step)`. `step` counts updates from 0
    and may be a Python number, a tensor, a Keras variable or an array of steps (then the rates come as an array of the
    same shape); `at` gets a tensor. The rate is in Keras's `floatx`, and in float32 where that is narrower: a bfloat16
    cannot even count to 300.

    Lengths may be given in updates (100), in epochs ("10ep") or as a share of the run ("0.9run"). The latter two become
    numbers when `fit` starts, with `callbacks.ResolveSpans`, or by `schedules.resolve`; before that the schedule cannot
    be called.

    Attributes:
        spans: the names of the fields that are lengths, or lists of them.
        may_be_0: those of them that may be 0.
    """

    spans: ClassVar[tuple[str, ...]] = ()
    may_be_0: ClassVar[tuple[str, ...]] = ()

    def __call__(self, step: Any) -> Any:
        """The rate at `step`, a scalar or an array like `step`.

        Raises:
            ValueError: for a schedule with lengths in epochs or shares of the run.
        """
        relative = unresolved(self)
        if relative:
            name, span = next(iter(relative.items()))
            raise ValueError(
                f"`{name}` of {type(self).__name__} must be known in updates before the schedule is used: put "
                "`callbacks.ResolveSpans()` into the callbacks of `fit`, or use the result of "
                f"`schedules.resolve(schedule, steps_per_epoch, epochs)`. Received: {name}={span!r}"
            )
        return self.at(ops.convert_to_tensor(step))

    def at(self, step: Any) -> Any:
        """The rate at the tensor `step`."""
        raise NotImplementedError(f"{type(self).__name__} must override `at`.")

    def get_config(self) -> dict[str, Any]:
        """The fields by name, schedules among them in their serialized form; `from_config` takes them back."""
        return {field.name: _serialized(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The schedule from what `get_config` gave."""
        return cls(**{name: _deserialized(value) for name, value in config.items()})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_rates(self, *names: str, above: float | None = None) -> None:
        bounds: dict[str, Any] = {"at_least": 0} if above is None else {"above": above}
        for name in names:
            self._set(name, checks.number(name, getattr(self, name), **bounds))


def rate_dtype() -> str:
    """The dtype in which schedules compute: `floatx`, but at least float32."""
    return wide_dtype(keras.config.floatx())


def done_and_left(step: Any, steps: Any) -> tuple[Any, Any]:
    """The fractions of `steps` that lie before and after `step`, both in [0, 1].

    Each is one exact integer, cast, over `steps`. Written as 1 - done, the second would keep no digit of a long
    schedule's last steps.
    """
    count = ops.minimum(ops.maximum(ops.convert_to_tensor(step), 0), steps)
    dtype = rate_dtype()
    return ops.cast(count, dtype) / steps, ops.cast(steps - count, dtype) / steps


def between(step: Any, start: float, end: float) -> tuple[Any, Any]:
    """The fractions of the way from `start` to `end` that lie before and after `step`, both in [0, 1].

    `start` and `end` need not be whole: the whole parts are taken off in integers.
    """
    whole, part = math.floor(start), start - math.floor(start)
    last, rest = math.ceil(end), math.ceil(end) - end
    count = ops.minimum(ops.maximum(step, whole), last)
    dtype, length = rate_dtype(), end - start
    done = (ops.cast(count - whole, dtype) - part) / length
    left = (ops.cast(last - count, dtype) - rest) / length
    return ops.clip(done, 0.0, 1.0), ops.clip(left, 0.0, 1.0)


def whole(step: Any) -> Any:
    """The number of updates done, at least 0, as an integer tensor."""
    if "int" not in keras.backend.standardize_dtype(step.dtype):
        step = ops.cast(ops.floor(step), "int32")
    return ops.maximum(step, 0)


def power(base: float, count: Any) -> Any:
    """`base` to the power of the whole numbers `count`, correct to a few units in the last place.

    A float32 of `base` or of its logarithm is wrong by 6e-8 of itself, and the power by `count` times that. So the
    digits of `count` look the powers up in tables, which Python makes in double precision.
    """
    result = None
    for place in range(4):
        exponents = np.arange(_DIGIT) * float(_DIGIT**place)
        with np.errstate(over="ignore", under="ignore"):
            table = ops.convert_to_tensor(np.power(float(base), exponents).astype(rate_dtype()))
        factor = ops.take(table, count // _DIGIT**place % _DIGIT)
        result = factor if result is None else result * factor
    return result


def value_of(schedule: Any, step: Any) -> Any:
    """What a schedule or a number says for `step`, in the dtype of schedules."""
    if isinstance(schedule, LearningRateSchedule):
        return ops.cast(schedule(step), rate_dtype())
    return ops.full(ops.shape(step), schedule, dtype=rate_dtype())


def checked_schedule(name: str, value: Any) -> Any:
    """A `LearningRateSchedule`, or a number at least 0."""
    if isinstance(value, LearningRateSchedule):
        return value
    if isinstance(value, (str, dict, type)) or callable(value):
        raise TypeError(
            f"`{name}` must be a keras.optimizers.schedules.LearningRateSchedule or a number. "
            f"Received: {name}={value!r}"
        )
    return checks.number(name, value, at_least=0)


def _serialized(value: Any) -> Any:
    if isinstance(value, list):
        return [_serialized(item) for item in value]
    if isinstance(value, LearningRateSchedule):
        return keras.optimizers.schedules.serialize(value)
    return value


def _deserialized(value: Any) -> Any:
    if isinstance(value, list):
        return [_deserialized(item) for item in value]
    if isinstance(value, dict) and "class_name" in value:
        return keras.optimizers.schedules.deserialize(value)
    return value
