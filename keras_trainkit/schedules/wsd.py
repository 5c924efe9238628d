"""A long stable phase that may end at any time, and the cooldown that ends it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import Schedule, checked_schedule, done_and_left, value_of
from keras_trainkit.schedules.cosine import half_cosine
from keras_trainkit.schedules.spans import checked_span

SHAPES = ("linear", "cosine", "1-sqrt", "1-square")


def cooldown(shape: str, done: Any, left: Any) -> Any:
    """What is left of the rate: from 1 to 0 as `done` goes from 0 to 1, with `left` = 1 - done.

    1 - sqrt(done) is written left / (1 + sqrt(done)), and 1 - done^2 as left (1 + done), so that no digits are lost
    near the end.
    """
    if shape == "linear":
        return left
    if shape == "cosine":
        return half_cosine(left)
    return left / (1 + ops.sqrt(done)) if shape == "1-sqrt" else left * (1 + done)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class WSD(Schedule):
    """Warmup, stable, decay: a ramp, a constant rate, and a cooldown of the given shape.

    The rate rises by a line from 0 over `warmup_steps`, stays for `stable_steps`, and falls over `decay_steps` to
    `alpha * learning_rate`, where it stays. With x the share of the cooldown that is done, what is left of it is 1 - x
    ("linear"), (1 + cos(pi x)) / 2 ("cosine"), 1 - sqrt(x) ("1-sqrt") or 1 - x^2 ("1-square"). Hu et al., 2024,
    arXiv:2404.06395; shapes after Hägele et al., 2024, arXiv:2405.18392, where "1-sqrt" and a cooldown of 10 to 20% of
    the run are best. With `alpha` 0 equal to pytorch_optimizer's `get_wsd_schedule`. An `alpha` above 0 is where all
    our shapes end; there only the cosine does, the other three fall towards 0 and jump to it after the last step.

    The length of the run need not be known: without `stable_steps` the stable phase has no end, and
    `callbacks.StartCooldown` begins the cooldown in a running `fit`; `cool_down_from` gives the schedule that does so
    for another `fit`, from a checkpoint of the stable phase.

    Args:
        learning_rate: the rate of the stable phase, at least 0.
        warmup_steps: updates of the ramp, at least 0; or "2ep", "0.05run".
        stable_steps: updates of the stable phase, at least 0, or a span; None for ever.
        decay_steps: updates of the cooldown, at least 1; or a span. Only without `stable_steps` it may be left out.
        alpha: the last rate as a fraction of `learning_rate`, from 0 to 1.
        shape: `"linear"`, `"cosine"`, `"1-sqrt"` or `"1-square"`.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = WSD(1.0, warmup_steps=4, stable_steps=6, decay_steps=4, shape="linear")
    >>> [round(float(schedule(step)), 4) for step in (0, 2, 4, 10, 12, 14)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    >>> endless = WSD(1.0, warmup_steps=4)
    >>> [round(float(endless.cool_down_from(1000, decay_steps=100)(step)), 4) for step in (1000, 1025, 1100)]
    [1.0, 0.5, 0.0]
    """

    learning_rate: float
    warmup_steps: int | str
    stable_steps: int | str | None = None
    decay_steps: int | str | None = None
    alpha: float = 0.0
    shape: str = "1-sqrt"

    spans: ClassVar = ("warmup_steps", "stable_steps", "decay_steps")
    may_be_0: ClassVar = ("warmup_steps", "stable_steps")

    def __post_init__(self) -> None:
        self._check_rates("learning_rate")
        self._set("warmup_steps", checked_span("warmup_steps", self.warmup_steps, at_least=0))
        if self.stable_steps is not None:
            self._set("stable_steps", checked_span("stable_steps", self.stable_steps, at_least=0))
        if self.decay_steps is not None or self.stable_steps is not None:
            self._set("decay_steps", checked_span("decay_steps", self.decay_steps))
        self._set("alpha", checks.number("alpha", self.alpha, at_least=0, at_most=1))
        checks.one_of("shape", self.shape, SHAPES)

    def at(self, step: Any) -> Any:
        rate = value_of(self.learning_rate, step)
        warmup = int(self.warmup_steps)
        if warmup:
            risen, _ = done_and_left(step, warmup)
            rate = ops.where(step >= warmup, rate, risen * self.learning_rate)
        if self.stable_steps is None:
            return rate
        done, left = done_and_left(
            ops.maximum(step - warmup, int(self.stable_steps)) - self.stable_steps, self.decay_steps
        )
        return rate * (self.alpha + (1 - self.alpha) * cooldown(self.shape, done, left))

    def cool_down_from(self, step: int, decay_steps: int | str | None = None) -> WSD:
        """The same schedule with the cooldown beginning at `step`, usually `int(optimizer.iterations)`: now.

        It is for an optimizer that is not training yet: a compiled train function keeps the schedule that it was
        traced with. In a running `fit`, `callbacks.StartCooldown` does it.

        Args:
            step: at least `warmup_steps`, which must be known in updates.
            decay_steps: updates of the cooldown; the schedule's own when left out.
        """
        if isinstance(self.warmup_steps, str):
            raise ValueError(f"`warmup_steps` must be resolved first. Received: warmup_steps={self.warmup_steps!r}")
        step = checks.integer("step", step, at_least=self.warmup_steps)
        length = self.decay_steps if decay_steps is None else decay_steps
        return dataclasses.replace(self, stable_steps=step - self.warmup_steps, decay_steps=length)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Cooldown(Schedule):
    """Any schedule until `start`; from there on the rate that it had then, falling to `alpha` of it.

    So a run under any schedule can be ended early and well. For the shapes see `WSD`.

    Args:
        schedule: a `LearningRateSchedule` (ours, Keras's or your own) or a number.
        start: the step at which the cooldown begins, at least 0; or "10ep", "0.8run".
        decay_steps: updates of the cooldown, at least 1; or a span.
        alpha: the last rate as a fraction of that at `start`, from 0 to 1.
        shape: `"linear"`, `"cosine"`, `"1-sqrt"` or `"1-square"`.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = Cooldown(0.5, start=10, decay_steps=4, shape="linear")
    >>> [float(schedule(step)) for step in (0, 10, 12, 14)]
    [0.5, 0.5, 0.25, 0.0]
    """

    schedule: LearningRateSchedule | float
    start: int | str
    decay_steps: int | str
    alpha: float = 0.0
    shape: str = "1-sqrt"

    spans: ClassVar = ("start", "decay_steps")
    may_be_0: ClassVar = ("start",)

    def __post_init__(self) -> None:
        self._set("schedule", checked_schedule("schedule", self.schedule))
        self._set("start", checked_span("start", self.start, at_least=0))
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))
        self._set("alpha", checks.number("alpha", self.alpha, at_least=0, at_most=1))
        checks.one_of("shape", self.shape, SHAPES)

    def at(self, step: Any) -> Any:
        return self.from_start(step, int(self.start))

    def from_start(self, step: Any, start: Any) -> Any:
        """The rate at `step` if the cooldown begins at `start`, a number or a tensor of the dtype of `step`."""
        done, left = done_and_left(ops.maximum(step, start) - start, self.decay_steps)
        share = self.alpha + (1 - self.alpha) * cooldown(self.shape, done, left)
        return value_of(self.schedule, ops.minimum(step, start)) * share
