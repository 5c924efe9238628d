"""A ramp in front of any schedule."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import Schedule, checked_schedule, done_and_left, value_of
from keras_trainkit.schedules.spans import checked_span

SHAPES = ("linear", "polynomial", "exponential")


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """A ramp from `initial` into `schedule` over the first `steps` updates.

    With f = min(t / steps, 1), the rate at step t is (1 - f) initial + f schedule(u), where u is the step that the
    inner schedule sees. There is no jump where the ramp ends, and from then on the rate is the inner schedule's own,
    bit for bit. `inner` chooses u:

    - `"after"` (the default): the inner schedule begins when the ramp ends, u = max(t - steps, 0), and the ramp leads
      to its first value. A run takes `steps` more updates than the inner schedule alone. So do torch's `SequentialLR`,
      optax's `join_schedules`, Keras's `CosineDecay(warmup_target=...)`, transformers' `get_*_schedule_with_warmup`
      and timm with `warmup_prefix=True`. (optax's `warmup_cosine_decay_schedule` counts the warmup among its
      `decay_steps`: subtract it.)
    - `"beneath"`: the inner schedule runs from step 0 beneath the ramp, u = t, so that the length of the run does
      not change with the warmup. timm does so by default, but ramps to the inner schedule's first value and then
      drops to the current one; here the ramp bends with the schedule. From the end of the ramp on the two agree.

    `shape` bends the ramp: `"linear"` as above; `"polynomial"` has (t / steps)^power for f (below the line for a
    `power` above 1); `"exponential"` multiplies by the same factor at every update, initial^(1 - f) schedule(u)^f, and
    needs an `initial` above 0.

    The first update has rate `initial`: with the default 0 it changes nothing, as with optax and transformers. For a
    ramp of w updates at 1/w, 2/w, ... of a peak p, give `initial=p / w` and `steps=w - 1`. Gradual warmup: Goyal et
    al. 2017, arXiv 1706.02677.

    Args:
        schedule: a `LearningRateSchedule` (ours, Keras's or your own) or a number, the rate after the ramp.
        steps: updates that the ramp takes, at least 0; 0 means no ramp. Or "2ep", "0.05run".
        initial: the rate at step 0, at least 0, in the units of the rate (not a fraction).
        inner: `"after"` or `"beneath"`, see above.
        shape: `"linear"`, `"polynomial"` or `"exponential"`, see above.
        power: of the polynomial, above 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> from keras_trainkit.schedules import Cosine
    >>> schedule = Warmup(Cosine(0.1, decay_steps=100), steps=10)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    >>> beneath = Warmup(Cosine(0.1, decay_steps=100), steps=10, inner="beneath")
    >>> [round(float(beneath(step)), 4) for step in (0, 5, 10, 50, 100)]
    [0.0, 0.0497, 0.0976, 0.05, 0.0]
    """

    schedule: LearningRateSchedule | float
    steps: int | str
    initial: float = 0.0
    inner: str = "after"
    shape: str = "linear"
    power: float = 2.0

    spans: ClassVar = ("steps",)
    may_be_0: ClassVar = ("steps",)

    def __post_init__(self) -> None:
        self._set("schedule", checked_schedule("schedule", self.schedule))
        self._set("steps", checked_span("steps", self.steps, at_least=0))
        self._check_rates("initial")
        checks.one_of("inner", self.inner, ["after", "beneath"])
        checks.one_of("shape", self.shape, SHAPES)
        self._check_rates("power", above=0)
        if self.shape == "exponential" and self.initial == 0:
            raise ValueError("`initial` must be above 0 for an exponential ramp. Received: initial=0.0")

    def at(self, step: Any) -> Any:
        steps = int(self.steps)
        seen = ops.maximum(step - steps, 0) if self.inner == "after" else step
        rate = value_of(self.schedule, seen)
        if steps == 0:
            return rate
        done, left = done_and_left(step, steps)
        if self.shape == "exponential":
            ramp = ops.power(ops.cast(self.initial, rate.dtype), left) * ops.power(rate, done)
        elif self.shape == "polynomial":
            ramp = (1 - done**self.power) * self.initial + done**self.power * rate
        else:
            ramp = left * self.initial + done * rate
        # XLA multiplies by the reciprocal of a constant, so that 121 / 121 is not 1 there: choose, do not trust `done`.
        return ops.where(step >= steps, rate, ramp)
