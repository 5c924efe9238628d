"""The arguments of `TransformOptimizer`, checked and kept together."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.core.transform import Transform


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the arguments say; kept in one object, so that Keras's tracking leaves the lists alone."""

    clipping: Transform | None
    before: list[Transform]
    after: list[Transform]
    decay_exclude: list[str]


def checked_rate(learning_rate: Any) -> Any:
    """A float, or the schedule or function that gives the rate."""
    if isinstance(learning_rate, numbers.Real) or getattr(learning_rate, "shape", None) == ():
        return checks.number("learning_rate", learning_rate, at_least=0)
    if callable(learning_rate):
        return learning_rate
    raise TypeError(
        "`learning_rate` must be a number at least 0, a LearningRateSchedule, or a function that returns the rate. "
        f"Received: learning_rate={learning_rate!r}"
    )


def checked_transforms(name: str, transforms: Any) -> list[Transform]:
    """A list of transforms, empty for None."""
    items = [] if transforms is None else transforms
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Transform) for item in items):
        raise TypeError(f"`{name}` must be a list of transforms. Received: {name}={transforms!r}")
    return list(items)
