"""Half a cosine from a peak down to a floor, once or again and again."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import LARGEST_STEP, Schedule, done_and_left, power, rate_dtype, whole
from keras_trainkit.schedules.spans import checked_span
from keras_trainkit.schedules.stairs import checked_count, looked_up, placed

_MOST_PERIODS = 4096


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

    `power` d takes the half wave to a power, ((1 + cos(pi t / T)) / 2)^d: above 1 the rate falls sooner. optax's
    `cosine_decay_schedule` calls it `exponent`. `k_decay` k puts (t / T)^k for t / T: above 1 the rate falls later and
    faster (Zhang and Li, 2020, arXiv 2004.05909; timm's `k_decay`).

    Arguments and values are those of Keras's `CosineDecay` without its warmup: put `Warmup` around this one. The
    values keep float32's relative accuracy to the last step; Keras's lose it as the rate nears 0 (by 21% a thousand
    steps before the end of ten million), and in a bfloat16 `floatx` from the start.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        decay_steps: updates until the floor is reached, at least 1; or "10ep", "0.9run".
        alpha: the floor as a fraction of `initial_learning_rate`, from 0 to 1.
        power: above 0.
        k_decay: above 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = Cosine(0.1, decay_steps=100, alpha=0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 1000)]
    [0.1, 0.055, 0.01, 0.01]
    """

    initial_learning_rate: float
    decay_steps: int | str
    alpha: float = 0.0
    power: float = 1.0
    k_decay: float = 1.0

    spans: ClassVar = ("decay_steps",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate")
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))
        self._set("alpha", checks.number("alpha", self.alpha, at_least=0, at_most=1))
        self._check_rates("power", "k_decay", above=0)

    def at(self, step: Any) -> Any:
        _, left = done_and_left(step, self.decay_steps)
        if self.k_decay != 1:
            # 1 - done^k, which has no digits of its own near the end.
            left = -ops.expm1(self.k_decay * ops.log1p(-left))
        wave = half_cosine(left)
        wave = wave if self.power == 1 else wave**self.power
        return self.initial_learning_rate * (self.alpha + (1 - self.alpha) * wave)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Half cosines, each from a peak to the floor, and a jump back up between them (SGDR).

    Period number i (from 0) takes T_i = `first_period` `period_factor`^i updates and falls from
    initial_learning_rate `decay`^i to alpha initial_learning_rate. Loshchilov and Hutter, 2016, arXiv 1608.03983.
    A new period begins where the paper, torch's `CosineAnnealingWarmRestarts`, Keras's `CosineDecayRestarts` and timm's
    `CosineLR` have it; lengths that are no whole numbers are rounded so that ours begin at whole steps. The floor is
    the same in all periods, as in torch and timm; Keras's `alpha` floor shrinks with its `m_mul`. After `limit` periods
    the rate stays at the floor, as in timm.

    Args:
        initial_learning_rate: the first peak, at least 0.
        first_period: updates of the first period, at least 1; or "10ep", "0.1run".
        period_factor: by how much each period is longer than the one before, at least 1 (`T_mult`, `cycle_mul`).
        decay: the peak's factor from period to period, above 0 and at most 1 (timm's `cycle_decay`).
        alpha: the floor as a fraction of `initial_learning_rate`, from 0 to 1. A peak below it is the floor.
        limit: how many periods there are; None for ever.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = CosineRestarts(1.0, first_period=10, period_factor=2.0, decay=0.5)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    initial_learning_rate: float
    first_period: int | str
    period_factor: float = 1.0
    decay: float = 1.0
    alpha: float = 0.0
    limit: int | None = None

    spans: ClassVar = ("first_period",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate")
        self._set("first_period", checked_span("first_period", self.first_period))
        self._set("period_factor", checks.number("period_factor", self.period_factor, at_least=1))
        self._set("decay", checks.number("decay", self.decay, above=0, at_most=1))
        self._set("alpha", checks.number("alpha", self.alpha, at_least=0, at_most=1))
        self._set("limit", checked_count("limit", self.limit))
        if isinstance(self.first_period, int) and self.period_factor > 1:
            self._starts()

    def at(self, step: Any) -> Any:
        count = whole(step)
        if self.period_factor == 1:
            first = int(self.first_period)
            period, length = count // first, ops.cast(first, rate_dtype())
            count = count % first
            peak = power(self.decay, period)
        else:
            starts = self._starts()
            period = placed(starts, count)
            lengths = [end - start for start, end in zip(starts, [*starts[1:], LARGEST_STEP], strict=True)]
            count = count - ops.cast(looked_up(starts, period, "int32"), count.dtype)
            length = looked_up(lengths, period, rate_dtype())
            peak = looked_up([self.decay**i for i in range(len(starts))], period, rate_dtype())
        left = (length - ops.cast(count, rate_dtype())) / length
        height = ops.maximum(peak - self.alpha, 0.0) * half_cosine(left)
        if self.limit is not None:
            height = ops.where(period < self.limit, height, ops.zeros_like(height))
        return self.initial_learning_rate * (self.alpha + height)

    def _starts(self) -> list[int]:
        """The first steps of the periods, as far as steps are counted."""
        first, factor = int(self.first_period), self.period_factor
        starts: list[int] = []
        start = 0.0
        while start <= LARGEST_STEP - 1 and (self.limit is None or len(starts) <= self.limit):
            starts.append(math.floor(start + 0.5))
            if len(starts) > _MOST_PERIODS:
                raise ValueError(
                    f"`period_factor` must be 1, or so large that there are at most {_MOST_PERIODS} periods in 2^31 "
                    f"steps; `limit` may end them sooner. Received: period_factor={factor}, first_period={first}"
                )
            start = first * (factor ** len(starts) - 1) / (factor - 1)
        return starts
