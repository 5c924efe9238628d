"""How sparse weights are to be after so many updates."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.spans import checked_span


@dataclasses.dataclass(frozen=True)
class PruningSchedule:
    """Sparsity that rises from the first to the last value, fast at first: s_T + (s_0 - s_T) (1 - t/T)^3.

    The cubic of Zhu and Gupta 2017, arXiv 1710.01878: most weights go while there are many and the network can still
    recover. It holds in stages: at `begin_step`, every `frequency` updates after that, and at `end_step`. All numbers
    are computed in double precision before training.

    Args:
        final_sparsity: the share of elements that are gone at the end, from 0 to below 1.
        initial_sparsity: the share at `begin_step`, from 0 to below 1.
        begin_step: updates until the first stage: a number, or a span such as `"2ep"` or `"0.1run"`; 0 prunes before
            the first update.
        end_step: updates until the last stage.
        frequency: updates between two stages.
        power: 3 for the cubic, 1 for a straight line; above 0.

    Raises:
        TypeError, ValueError: for an argument out of its range, or an end before the beginning.

    >>> schedule = PruningSchedule(0.8, begin_step=100, end_step=300, frequency=50)
    >>> [round(s, 4) for s in schedule.sparsities()]
    [0.0, 0.4625, 0.7, 0.7875, 0.8]
    >>> [schedule.sparsity(step) for step in (99, 149, 10_000)]
    [0.0, 0.0, 0.8]
    """

    spans: ClassVar[tuple[str, ...]] = ("begin_step", "end_step", "frequency")
    may_be_0: ClassVar[tuple[str, ...]] = ("begin_step", "end_step")

    final_sparsity: float
    initial_sparsity: float = 0.0
    begin_step: int | str = "0.1run"
    end_step: int | str = "0.75run"
    frequency: int | str = 100
    power: float = 3.0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: checks.number(name, getattr(self, name), at_least=0, below=1)
            for name in ("final_sparsity", "initial_sparsity")
        }
        checked["power"] = checks.number("power", self.power, above=0)
        for name in self.spans:
            checked[name] = checked_span(name, getattr(self, name), at_least=0 if name in self.may_be_0 else 1)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "`initial_sparsity` must be at most `final_sparsity`. "
                f"Received: initial_sparsity={self.initial_sparsity}, final_sparsity={self.final_sparsity}"
            )
        begin, end = self.begin_step, self.end_step
        if isinstance(begin, int) and isinstance(end, int) and end < begin:
            raise ValueError(f"`end_step` must be at least `begin_step`, {begin}. Received: end_step={end}")

    def stages(self) -> list[int]:
        """The updates after which the masks change; the lengths must be numbers."""
        begin, end, frequency = self._numbers()
        return [*range(begin, end, frequency), end]

    def sparsities(self) -> list[float]:
        """The sparsity from each stage on."""
        begin, end, _ = self._numbers()
        first, last = self.initial_sparsity, self.final_sparsity
        rest = [1 - (step - begin) / (end - begin) for step in self.stages()[:-1]]
        return [*(last + (first - last) * left**self.power for left in rest), last]

    def sparsity(self, step: int) -> float:
        """The sparsity after `step` updates."""
        done = sum(stage <= step for stage in self.stages())
        return self.sparsities()[done - 1] if done else 0.0

    def stages_done(self, step: Any) -> Any:
        """How many stages there have been after `step` updates, an integer tensor."""
        begin, end, frequency = self._numbers()
        after = 1 + ops.floor_divide(ops.maximum(step - begin, 0), frequency)
        found = ops.where(step >= end, ops.cast(len(self.stages()), step.dtype), ops.cast(after, step.dtype))
        return ops.where(step < begin, ops.zeros_like(found), found)

    def _numbers(self) -> tuple[int, int, int]:
        for name in self.spans:
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"`{name}` is a share of a run whose length is not known yet; `callbacks.MagnitudePruning` and "
                    f"`schedules.resolve` make it a number of updates. Received: {name}={getattr(self, name)!r}"
                )
        return int(self.begin_step), int(self.end_step), int(self.frequency)
