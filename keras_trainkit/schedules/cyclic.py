"""Rates that go up and down: one cycle for a whole run, or cycle after cycle."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import LARGEST_STEP, Schedule, between, power, rate_dtype, whole
from keras_trainkit.schedules.cosine import half_cosine
from keras_trainkit.schedules.spans import checked_span

ANNEALING = ("cosine", "linear")
MODES = ("triangular", "triangular2", "exp_range")


class _Phases(Schedule):
    """What `OneCycle` and its momentum share: values that are reached one after the other at the ends of phases."""

    total_steps: Any
    peak_at: float
    annealing: str
    three_phase: bool

    spans: ClassVar = ("total_steps",)

    def _check_phases(self) -> None:
        self._set("total_steps", checked_span("total_steps", self.total_steps, at_least=2))
        self._set("peak_at", checks.number("peak_at", self.peak_at, above=0, below=1))
        checks.one_of("annealing", self.annealing, ANNEALING)
        checks.boolean("three_phase", self.three_phase)
        if self.three_phase and self.peak_at > 0.5:
            raise ValueError(
                "`peak_at` must be at most 0.5 with `three_phase`, whose second phase is as long as the first. "
                f"Received: peak_at={self.peak_at}"
            )

    def _values(self) -> list[float]:
        """The values at the ends of the phases, the first one included."""
        raise NotImplementedError(f"{type(self).__name__} must override `_values`.")

    def at(self, step: Any) -> Any:
        total = int(self.total_steps)
        # As torch does: the run's last step is the last end, so each lies one step before the share of the run.
        ends = [0.0, max(self.peak_at * total - 1, 0.0), float(total - 1)]
        if self.three_phase:
            ends.insert(2, 2 * self.peak_at * total - 2)
        values = self._values()
        result = None
        for start, end, first, last in zip(ends[:-1], ends[1:], values[:-1], values[1:], strict=True):
            if end <= start:
                continue
            done, left = between(step, start, end)
            if self.annealing == "cosine":
                done, left = half_cosine(done), half_cosine(left)
            value = left * first + done * last
            result = value if result is None else ops.where(ops.cast(step, value.dtype) > start, value, result)
        return result


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class OneCycle(_Phases):
    """One cycle: up to `max_learning_rate`, and down to nearly nothing by the run's last update.

    The rate rises from max / `initial_divisor` in the first `peak_at` of the run, and falls from there to the first
    rate over `final_divisor`; with `three_phase` it falls back to the first rate in as many steps as it rose, and in
    the rest of the run to the last. Smith and Topin, 2017, arXiv:1708.07120, who have three phases and lines; fastai's
    two phases and cosines are the default, here as in torch's `OneCycleLR`, whose values these are. optax's
    `cosine_onecycle_schedule` peaks one step later, ends one step after the run, and divides the highest rate by
    `final_div_factor`, not the first one. After `total_steps` the rate stays, where torch raises an error.

    `momentum()` is what the paper has the momentum do meanwhile: the opposite.

    Args:
        max_learning_rate: at least 0.
        total_steps: updates of the run, at least 2; or "10ep", "1run".
        peak_at: the share of the run before the peak, above 0 and below 1 (torch's `pct_start`).
        initial_divisor: above 0 (`div_factor`).
        final_divisor: above 0 (`final_div_factor`).
        annealing: `"cosine"` or `"linear"`.
        three_phase: see above; `peak_at` is then at most 0.5.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = OneCycle(1.0, total_steps=20, annealing="linear")
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 12, 19)]
    [0.04, 1.0, 0.5, 0.0]
    >>> [round(float(schedule.momentum()(step)), 4) for step in (0, 5, 12, 19)]
    [0.95, 0.85, 0.9, 0.95]
    """

    max_learning_rate: float
    total_steps: int | str
    peak_at: float = 0.3
    initial_divisor: float = 25.0
    final_divisor: float = 1e4
    annealing: str = "cosine"
    three_phase: bool = False

    def __post_init__(self) -> None:
        self._check_rates("max_learning_rate")
        self._check_rates("initial_divisor", "final_divisor", above=0)
        self._check_phases()

    def momentum(self, lowest: float = 0.85, highest: float = 0.95) -> OneCycleMomentum:
        """The momentum that goes with it, for `callbacks.HyperparameterSchedule`: lowest where the rate is highest."""
        return OneCycleMomentum(self.total_steps, lowest, highest, self.peak_at, self.annealing, self.three_phase)

    def _values(self) -> list[float]:
        first = self.max_learning_rate / self.initial_divisor
        middle = [first] if self.three_phase else []
        return [first, self.max_learning_rate, *middle, first / self.final_divisor]


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class OneCycleMomentum(_Phases):
    """The momentum of `OneCycle`: from `highest` down to `lowest` while the rate rises, and back while it falls.

    Values as torch's `OneCycleLR` sets them. `OneCycle.momentum` makes one that fits.

    Args:
        total_steps: updates of the run, at least 2; or "10ep", "1run".
        lowest: from 0 to 1.
        highest: from 0 to 1.
        peak_at, annealing, three_phase: as in `OneCycle`.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(OneCycleMomentum(20)(step)), 4) for step in (0, 5, 19)]
    [0.95, 0.85, 0.95]
    """

    total_steps: int | str
    lowest: float = 0.85
    highest: float = 0.95
    peak_at: float = 0.3
    annealing: str = "cosine"
    three_phase: bool = False

    def __post_init__(self) -> None:
        for name in ("lowest", "highest"):
            self._set(name, checks.number(name, getattr(self, name), at_least=0, at_most=1))
        self._check_phases()

    def _values(self) -> list[float]:
        values = [self.highest, self.lowest, self.highest]
        return [*values, self.highest] if self.three_phase else values


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Cyclic(Schedule):
    """Lines from `base_learning_rate` up to a peak and down again, cycle after cycle.

    The peak of cycle i (from 0) is max for `"triangular"`, base + (max - base) / 2^i for `"triangular2"`; for
    `"exp_range"` the height above the base is multiplied by `gamma`^t at every step t. Smith, 2015, arXiv:1506.01186;
    values of torch's `CyclicLR`. TensorFlow Addons' `CyclicalLearningRate` has legs of one length only.

    torch cycles the momentum the other way round unless told not to. That is the same schedule with other ends,
    `Cyclic(0.9, 0.8, ...)`, for `callbacks.HyperparameterSchedule`.

    Args:
        base_learning_rate: at least 0.
        max_learning_rate: at least 0; may be below the base.
        steps_up: updates from the base to the peak, at least 1; or "2ep", "0.1run".
        steps_down: updates back; None is `steps_up`.
        mode: `"triangular"`, `"triangular2"` or `"exp_range"`.
        gamma: for `"exp_range"`, above 0 and at most 1.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = Cyclic(0.1, 1.0, steps_up=4, steps_down=6, mode="triangular2")
    >>> [round(float(schedule(step)), 4) for step in (0, 4, 10, 14)]
    [0.1, 1.0, 0.1, 0.55]
    """

    base_learning_rate: float
    max_learning_rate: float
    steps_up: int | str
    steps_down: int | str | None = None
    mode: str = "triangular"
    gamma: float = 1.0

    spans: ClassVar = ("steps_up", "steps_down")

    def __post_init__(self) -> None:
        self._check_rates("base_learning_rate", "max_learning_rate")
        self._set("steps_up", checked_span("steps_up", self.steps_up))
        down = self.steps_up if self.steps_down is None else checked_span("steps_down", self.steps_down)
        self._set("steps_down", down)
        checks.one_of("mode", self.mode, MODES)
        self._set("gamma", checks.number("gamma", self.gamma, above=0, at_most=1))
        if isinstance(self.steps_up, int) and isinstance(down, int):
            checks.integer("steps_up + steps_down", self.steps_up + down, at_most=LARGEST_STEP)

    def at(self, step: Any) -> Any:
        count, dtype = whole(step), rate_dtype()
        up, down = int(self.steps_up), int(self.steps_down)  # type: ignore[arg-type]
        place = count % (up + down)
        height = ops.minimum(ops.cast(place, dtype) / up, ops.cast(up + down - place, dtype) / down)
        height = ops.minimum(height, 1.0)
        if self.mode == "triangular2":
            height = height * power(0.5, count // (up + down))
        elif self.mode == "exp_range":
            height = height * power(self.gamma, count)
        return (1 - height) * self.base_learning_rate + height * self.max_learning_rate
