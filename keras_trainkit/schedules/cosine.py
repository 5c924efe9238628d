"""Half a cosine from a peak down to a floor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import LARGEST_STEP, Schedule, done_and_left


def half_cosine(left: Any) -> Any:
    """(1 - cos(pi left)) / 2, from 0 at left=0 to 1 at left=1.

    Written as a squared sine: near the end of the schedule the difference of 1 and a cosine has no digits left in
    float32 (it is 0 or 6e-8 there and nothing between), the sine has all of them.
    """
    return ops.square(ops.sin(left * (math.pi / 2)))


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine decay from `initial_learning_rate` to `alpha * initial_learning_rate` over `decay_steps` updates.

    With T = `decay_steps`, the rate at step t <= T is
    initial_learning_rate (alpha + (1 - alpha) (1 + cos(pi t / T)) / 2); after T it stays at the floor, where torch's
    `CosineAnnealingLR` climbs again. Loshchilov and Hutter 2016, arXiv 1608.03983, without the restarts.

    Arguments and values are those of Keras's `CosineDecay` without its warmup: put `Warmup` around this one. The
    values keep float32's relative accuracy to the last step; Keras's lose it as the rate nears 0 (by 21% a thousand
    steps before the end of ten million), and in a bfloat16 `floatx` from the start.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        decay_steps: updates until the floor is reached, at least 1.
        alpha: the floor as a fraction of `initial_learning_rate`, from 0 to 1.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = Cosine(0.1, decay_steps=100, alpha=0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 1000)]
    [0.1, 0.055, 0.01, 0.01]
    """

    initial_learning_rate: float
    decay_steps: int
    alpha: float = 0.0

    def __post_init__(self) -> None:
        rate = checks.number("initial_learning_rate", self.initial_learning_rate, at_least=0)
        object.__setattr__(self, "initial_learning_rate", rate)
        steps = checks.integer("decay_steps", self.decay_steps, at_least=1, at_most=LARGEST_STEP)
        object.__setattr__(self, "decay_steps", steps)
        object.__setattr__(self, "alpha", checks.number("alpha", self.alpha, at_least=0, at_most=1))

    def __call__(self, step: Any) -> Any:
        """The rate at `step`, a scalar or an array like `step`."""
        _, left = done_and_left(step, self.decay_steps)
        return self.initial_learning_rate * (self.alpha + (1 - self.alpha) * half_cosine(left))
