"""A linear ramp in front of any schedule."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import LARGEST_STEP, Schedule, done_and_left, rate_dtype


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """A linear ramp from `initial` into `schedule` over the first `steps` updates.

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

    The first update has rate `initial`: with the default 0 it changes nothing, as with optax and transformers. For a
    ramp of w updates at 1/w, 2/w, ... of a peak p, give `initial=p / w` and `steps=w - 1`. Gradual warmup: Goyal et
    al. 2017, arXiv 1706.02677.

    Args:
        schedule: a `LearningRateSchedule` (ours, Keras's or your own) or a number, the rate after the ramp.
        steps: updates that the ramp takes, at least 0; 0 means no ramp.
        initial: the rate at step 0, at least 0, in the units of the rate (not a fraction).
        inner: `"after"` or `"beneath"`, see above.

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
    steps: int
    initial: float = 0.0
    inner: str = "after"

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, LearningRateSchedule):
            if isinstance(self.schedule, (str, dict, type)) or callable(self.schedule):
                raise TypeError(
                    "`schedule` must be a keras.optimizers.schedules.LearningRateSchedule or a number. "
                    f"Received: schedule={self.schedule!r}"
                )
            object.__setattr__(self, "schedule", checks.number("schedule", self.schedule, at_least=0))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, at_least=0, at_most=LARGEST_STEP))
        object.__setattr__(self, "initial", checks.number("initial", self.initial, at_least=0))
        checks.one_of("inner", self.inner, ["after", "beneath"])

    def __call__(self, step: Any) -> Any:
        """The rate at `step`, a scalar or, where the inner schedule takes arrays, an array like `step`."""
        step = ops.convert_to_tensor(step)
        seen = ops.maximum(step - self.steps, 0) if self.inner == "after" else step
        rate = ops.cast(
            self.schedule(seen) if isinstance(self.schedule, LearningRateSchedule) else self.schedule, rate_dtype()
        )
        if self.steps == 0:
            return rate
        done, left = done_and_left(step, self.steps)
        # XLA multiplies by the reciprocal of a constant, so that 121 / 121 is not 1 there: choose, do not trust `done`.
        return ops.where(step >= self.steps, rate, left * self.initial + done * rate)

    def get_config(self) -> dict[str, Any]:
        """The fields by name, the inner schedule in its serialized form."""
        config = super().get_config()
        if isinstance(self.schedule, LearningRateSchedule):
            config["schedule"] = keras.optimizers.schedules.serialize(self.schedule)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Warmup:
        """The schedule from what `get_config` gave."""
        if isinstance(config["schedule"], dict):
            config = {**config, "schedule": keras.optimizers.schedules.deserialize(config["schedule"])}
        return cls(**config)
