"""Schedules made of schedules: one after the other, by step, scaled, shifted, repeated."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import LARGEST_STEP, Schedule, checked_schedule, rate_dtype, value_of
from keras_trainkit.schedules.spans import checked_span
from keras_trainkit.schedules.stairs import checked_count, checked_spans


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Sequence(Schedule):
    """Schedules one after the other, each counting from 0 when its turn comes.

    Equal to torch's `SequentialLR` and optax's `join_schedules`, which are given the steps of the changes; here they
    are lengths, so that they can be spans. The last schedule has no end.

    Args:
        schedules: list of schedules (ours, Keras's or your own) or numbers, at least 1.
        lengths: list of the updates of each but the last, at least 1; or "10ep", "0.2run".

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> from keras_trainkit.schedules import Linear
    >>> schedule = Sequence([Linear(0.0, 4, end_learning_rate=1.0), 1.0, Linear(1.0, 10)], lengths=[4, 6])
    >>> [round(float(schedule(step)), 4) for step in (0, 2, 4, 9, 15, 20)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    schedules: list
    lengths: list

    spans: ClassVar = ("lengths",)

    def __post_init__(self) -> None:
        self._set("schedules", checked_schedules("schedules", self.schedules))
        self._set("lengths", checked_spans("lengths", self.lengths, rising=False))
        if len(self.lengths) != len(self.schedules) - 1:
            raise ValueError(
                "`lengths` must hold a length for each schedule but the last. "
                f"Received: {len(self.lengths)} lengths for {len(self.schedules)} schedules"
            )
        if all(isinstance(length, int) for length in self.lengths):
            checks.integer("sum of lengths", sum(self.lengths), at_most=LARGEST_STEP)

    def at(self, step: Any) -> Any:
        start, rate = 0, value_of(self.schedules[0], step)
        for length, schedule in zip(self.lengths, self.schedules[1:], strict=True):
            start += length
            seen = ops.maximum(step, start) - start
            rate = ops.where(step >= start, value_of(schedule, seen), rate)
        return rate


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """A schedule or a number for each stretch of the run; all see the step of the run.

    With numbers it is optax's `piecewise_constant_schedule` with absolute values; a boundary belongs to what comes
    after it, as there and in torch, while in Keras's `PiecewiseConstantDecay` it belongs to what comes before. Unlike
    in `Sequence` a schedule does not begin anew where its stretch begins.

    Args:
        boundaries: list of steps from 1 on, or of "10ep", "0.5run"; none before its predecessor.
        schedules: list of schedules (ours, Keras's or your own) or numbers, one more than there are boundaries.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Piecewise([5, 9], [1.0, 0.5, 0.05])(step)), 4) for step in (4, 5, 8, 9)]
    [1.0, 0.5, 0.5, 0.05]
    """

    boundaries: list
    schedules: list

    spans: ClassVar = ("boundaries",)

    def __post_init__(self) -> None:
        self._set("boundaries", checked_spans("boundaries", self.boundaries))
        self._set("schedules", checked_schedules("schedules", self.schedules))
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                "`schedules` must hold one more than there are boundaries. "
                f"Received: {len(self.schedules)} schedules for {len(self.boundaries)} boundaries"
            )

    def at(self, step: Any) -> Any:
        rate = value_of(self.schedules[0], step)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            rate = ops.where(step >= boundary, value_of(schedule, step), rate)
        return rate


@keras.saving.register_keras_serializable("keras_trainkit", name="ScaleSchedule")  # `transforms.Scale` is the other
@dataclasses.dataclass(frozen=True)
class Scale(Schedule):
    """A schedule times a number, or times another schedule.

    Args:
        schedule: a `LearningRateSchedule` (ours, Keras's or your own) or a number.
        factor: a number at least 0, or a schedule.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> from keras_trainkit.schedules import Linear
    >>> float(Scale(Linear(1.0, 10), 0.5)(5))
    0.25
    """

    schedule: LearningRateSchedule | float
    factor: LearningRateSchedule | float

    def __post_init__(self) -> None:
        self._set("schedule", checked_schedule("schedule", self.schedule))
        self._set("factor", checked_schedule("factor", self.factor))

    def at(self, step: Any) -> Any:
        return value_of(self.schedule, step) * value_of(self.factor, step)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Offset(Schedule):
    """A schedule moved up by a rate, and later by a number of updates.

    Args:
        schedule: a `LearningRateSchedule` (ours, Keras's or your own) or a number.
        rate: what is added, at least 0.
        delay: updates by which it begins later, with its first rate until then; or "10ep", "0.1run".

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> from keras_trainkit.schedules import Linear
    >>> [float(Offset(Linear(1.0, 10), rate=0.5, delay=5)(step)) for step in (0, 5, 10, 15)]
    [1.5, 1.5, 1.0, 0.5]
    """

    schedule: LearningRateSchedule | float
    rate: float = 0.0
    delay: int | str = 0

    spans: ClassVar = ("delay",)
    may_be_0: ClassVar = ("delay",)

    def __post_init__(self) -> None:
        self._set("schedule", checked_schedule("schedule", self.schedule))
        self._check_rates("rate")
        self._set("delay", checked_span("delay", self.delay, at_least=0))

    def at(self, step: Any) -> Any:
        delay = int(self.delay)
        return value_of(self.schedule, ops.maximum(step, delay) - delay) + ops.cast(self.rate, rate_dtype())


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Repeat(Schedule):
    """A schedule that begins anew every `period` updates.

    Args:
        schedule: a `LearningRateSchedule` (ours, Keras's or your own) or a number.
        period: updates, at least 1; or "10ep", "0.25run".
        times: how often it runs; after the last time the rate stays what the schedule says for step `period`. None for
            ever.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> from keras_trainkit.schedules import Linear
    >>> [float(Repeat(Linear(1.0, 4), period=4, times=2)(step)) for step in (0, 2, 4, 6, 8, 100)]
    [1.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    schedule: LearningRateSchedule | float
    period: int | str
    times: int | None = None

    spans: ClassVar = ("period",)

    def __post_init__(self) -> None:
        self._set("schedule", checked_schedule("schedule", self.schedule))
        self._set("period", checked_span("period", self.period))
        self._set("times", checked_count("times", self.times))

    def at(self, step: Any) -> Any:
        period = int(self.period)
        step = ops.maximum(step, 0)
        seen = step % period
        if self.times is not None:
            seen = ops.where(step // period >= self.times, ops.full_like(seen, period), seen)
        return value_of(self.schedule, seen)


def checked_schedules(name: str, values: Any) -> list[Any]:
    """A list of schedules and numbers, at least one."""
    if not isinstance(values, (list, tuple)) or not values:
        raise TypeError(f"`{name}` must be a list of schedules or numbers, at least one. Received: {name}={values!r}")
    return [checked_schedule(name, value) for value in values]
