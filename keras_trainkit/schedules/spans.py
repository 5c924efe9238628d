"""Lengths of schedules: in updates, in epochs ("10ep"), or in shares of the run ("0.9run")."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, NamedTuple

from keras_trainkit.core import checks

LARGEST_STEP = 2**31 - 1
"""The largest number of steps that an argument may name: JAX counts in int32 unless told otherwise."""

_RELATIVE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ep|run)")


class Run(NamedTuple):
    """The length of a run: batches in an epoch, epochs, and from which epoch on how many batches make an update."""

    steps_per_epoch: float
    epochs: float
    accumulation: dict[int, int]

    def updates(self, span: int | str) -> int:
        """A span in updates, rounded to the nearest."""
        if not isinstance(span, str):
            return span
        count, unit = _parse(span)
        return math.floor((count * self._until(self.epochs) if unit == "run" else self._until(count)) + 0.5)

    def _until(self, epoch: float) -> float:
        """The updates of the first epochs; not always a whole number, with accumulation."""
        ends = [*list(self.accumulation)[1:], math.inf]
        return sum(
            max(min(epoch, end) - first, 0.0) * self.steps_per_epoch / batches
            for (first, batches), end in zip(self.accumulation.items(), ends, strict=True)
        )


def checked_span(name: str, value: Any, at_least: int = 1) -> int | str:
    """`value`, a whole number of updates, or a text such as "10ep" or "0.9run".

    >>> checked_span("decay_steps", "0.9 run")
    '0.9run'
    """
    if not isinstance(value, str):
        return checks.integer(name, value, at_least=at_least, at_most=LARGEST_STEP)
    match = _RELATIVE.fullmatch(value.strip())
    if match is None or (at_least > 0 and float(match[1]) == 0):
        raise ValueError(
            f"`{name}` must be a number of updates of at least {at_least}, or a text such as '10ep' (epochs) or "
            f"'0.9run' (a share of the run). Received: {name}={value!r}"
        )
    return match[1] + match[2]


def unresolved(schedule: Any) -> dict[str, str]:
    """The fields of a schedule, not of those inside it, that are spans of epochs or of the run."""
    found = {}
    for name in getattr(schedule, "spans", ()):
        value = getattr(schedule, name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                found[name] = item
    return found


def is_resolved(schedule: Any) -> bool:
    """Whether the schedule and all inside it count in updates alone."""
    return not unresolved(schedule) and all(is_resolved(inner) for inner in _inner(schedule))


def resolve(schedule: Any, steps_per_epoch: float, epochs: float, accumulation: int | dict[int, int] = 1) -> Any:
    """The schedule with every span in updates, also in the schedules inside it.

    `callbacks.ResolveSpans` does it when `fit` starts. Do it yourself where the length of an epoch is not known then
    (a generator without `steps_per_epoch`), or where the schedule is to be looked at before.

    Args:
        schedule: the kit's, or any other, which is returned as it is.
        steps_per_epoch: batches in an epoch.
        epochs: of the whole run, those before a resumption included.
        accumulation: batches to an update, or a dictionary from an epoch to the batches to an update from then on, 1
            before the first of them. Then "10ep" is as many updates as the run's first ten epochs have, and "0.9run" is
            0.9 of all its updates: shares of the run add up to the run, lengths in epochs need not.

    Returns:
        A schedule of the same kind; lengths are rounded to the nearest update, and are at least 1 where 0 is not
        allowed.

    >>> from keras_trainkit import schedules
    >>> schedule = schedules.Warmup(schedules.Cosine(0.1, decay_steps="0.9run"), steps="1ep")
    >>> resolve(schedule, steps_per_epoch=50, epochs=10)
    Warmup(schedule=Cosine(initial_learning_rate=0.1, decay_steps=450, alpha=0.0, power=1.0, k_decay=1.0), steps=50, \
initial=0.0, inner='after', shape='linear', power=2.0)
    >>> resolve(schedules.Linear(0.1, "1run"), 50, epochs=10, accumulation={0: 1, 8: 5}).decay_steps
    420
    """
    per_epoch = checks.number("steps_per_epoch", steps_per_epoch, above=0)
    given = accumulation if isinstance(accumulation, dict) else {0: accumulation}
    per_update = {0: 1} | {
        checks.integer("accumulation: an epoch", epoch, at_least=0): checks.integer("accumulation", count, at_least=1)
        for epoch, count in sorted(given.items())
    }
    return _resolved(schedule, Run(per_epoch, checks.number("epochs", epochs, above=0), per_update))


def _resolved(schedule: Any, run: Run) -> Any:
    if not dataclasses.is_dataclass(schedule) or is_resolved(schedule):
        return schedule
    new: dict[str, Any] = {}
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        if field.name in getattr(schedule, "spans", ()):
            least = 0 if field.name in getattr(schedule, "may_be_0", ()) else 1
            value = (
                [_number(item, run, least) for item in value] if isinstance(value, list) else _number(value, run, least)
            )
        elif isinstance(value, list):
            value = [_resolved(item, run) for item in value]
        else:
            value = _resolved(value, run)
        new[field.name] = value
    made = dataclasses.replace(schedule, **new)  # type: ignore[type-var]
    # What is no field, such as the batch size that `data.RateByBatch` is told, stays with the schedule.
    for name in vars(schedule).keys() - new.keys():
        object.__setattr__(made, name, vars(schedule)[name])
    return made


def _number(span: Any, run: Run, least: int) -> int | None:
    return None if span is None else max(run.updates(span), least)


def _inner(schedule: Any) -> list[Any]:
    """What is inside a schedule: the values of its fields, and of its lists."""
    if not dataclasses.is_dataclass(schedule):
        return []
    values = [getattr(schedule, field.name) for field in dataclasses.fields(schedule)]
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _parse(span: str) -> tuple[float, str]:
    count, unit = _RELATIVE.fullmatch(span).groups()  # type: ignore[union-attr]
    return float(count), unit
