"""What all schedules share: a configuration made of dataclass fields, and counting that stays exact in float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_trainkit.core.numerics import wide_dtype

LARGEST_STEP = 2**31 - 1
"""The largest number of steps that an argument may name: JAX counts in int32 unless told otherwise."""


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Base of the kit's schedules: a frozen dataclass whose fields are its configuration.

    A subclass checks its fields in `__post_init__` and computes the rate in `__call__(step)`. `step` counts updates
    from 0 and may be a Python number, a tensor, a Keras variable or an array of steps (then the rates come as an array
    of the same shape). The rate is in Keras's `floatx`, and in float32 where that is narrower: a bfloat16 cannot even
    count to 300.
    """

    def get_config(self) -> dict[str, Any]:
        """The fields by name; `from_config` takes them back."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def rate_dtype() -> str:
    """The dtype in which schedules compute: `floatx`, but at least float32."""
    return wide_dtype(keras.config.floatx())


def done_and_left(step: Any, steps: int) -> tuple[Any, Any]:
    """The fractions of `steps` that lie before and after `step`, both in [0, 1].

    Each is one exact integer, cast, over `steps`. Written as 1 - done, the second would keep no digit of a long
    schedule's last steps.
    """
    count = ops.minimum(ops.maximum(ops.convert_to_tensor(step), 0), steps)
    dtype = rate_dtype()
    return ops.cast(count, dtype) / steps, ops.cast(steps - count, dtype) / steps
