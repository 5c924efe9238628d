"""Rates that fall by a factor at single steps and are constant between them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import Schedule, power, rate_dtype, whole
from keras_trainkit.schedules.spans import checked_span


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """The rate times `factor` after every `step_size` updates: initial factor^floor(t / step_size).

    Equal to torch's `StepLR` and to Keras's `ExponentialDecay(..., staircase=True)`. timm's `StepLR` cuts at the same
    places.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        step_size: updates between two changes, at least 1; or "10ep", "0.3run".
        factor: above 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Step(1.0, step_size=30)(step)), 4) for step in (0, 29, 30, 60)]
    [1.0, 1.0, 0.1, 0.01]
    """

    initial_learning_rate: float
    step_size: int | str
    factor: float = 0.1

    spans: ClassVar = ("step_size",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate")
        self._set("step_size", checked_span("step_size", self.step_size))
        self._check_rates("factor", above=0)

    def at(self, step: Any) -> Any:
        return self.initial_learning_rate * power(self.factor, whole(step) // self.step_size)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class MultiStep(Schedule):
    """The rate times `factor` at each of `milestones`: initial factor^(milestones that are at most t).

    Equal to torch's `MultiStepLR` and optax's `piecewise_constant_schedule`: the update of number t = milestone (from
    0) is the first at the new rate. Keras's `PiecewiseConstantDecay` changes one update later: its boundary belongs to
    the value before it.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        milestones: list of steps from 1 on, or of "10ep", "0.5run"; none before its predecessor.
        factor: above 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(MultiStep(1.0, [30, 60])(step)), 4) for step in (0, 29, 30, 60)]
    [1.0, 1.0, 0.1, 0.01]
    """

    initial_learning_rate: float
    milestones: list[int | str]
    factor: float = 0.1

    spans: ClassVar = ("milestones",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate")
        self._set("milestones", checked_spans("milestones", self.milestones))
        self._check_rates("factor", above=0)

    def at(self, step: Any) -> Any:
        number = len(self.milestones)
        rates = [self.initial_learning_rate * self.factor**passed for passed in range(number + 1)]
        return ops.take(ops.convert_to_tensor(np.array(rates, rate_dtype())), passed(self.milestones, step))


def checked_spans(name: str, values: Any, rising: bool = True) -> list[int | str]:
    """A list of spans; with `rising`, neighbours in one unit must not fall."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"`{name}` must be a list of numbers of updates or spans. Received: {name}={values!r}")
    found = [checked_span(name, value) for value in values]
    numbers = [value for value in found if isinstance(value, int)]
    if rising and numbers != sorted(numbers):
        raise ValueError(f"`{name}` must not fall. Received: {name}={values!r}")
    return found


def passed(boundaries: list[Any], step: Any) -> Any:
    """How many of the boundaries are at most `step`; an integer tensor like it."""
    count = whole(step)
    found = ops.zeros_like(count)
    for boundary in boundaries:
        found = found + ops.cast(count >= boundary, count.dtype)
    return found


def placed(starts: list[int], count: Any) -> Any:
    """The position of the last of the rising `starts` that is at most `count`, for tables too long for `passed`."""
    table = ops.cast(ops.convert_to_tensor(np.array(starts[1:], "int32")), count.dtype)
    return ops.sum(ops.cast(ops.expand_dims(count, -1) >= table, "int32"), axis=-1)


def looked_up(values: list[Any], position: Any, dtype: str) -> Any:
    """The value at each position, from a table in double precision or whole numbers."""
    return ops.take(ops.convert_to_tensor(np.array(values, dtype)), position)


def checked_count(name: str, value: Any) -> int | None:
    """How often something is done: at least 1, or None for ever."""
    return None if value is None else checks.integer(name, value, at_least=1)
