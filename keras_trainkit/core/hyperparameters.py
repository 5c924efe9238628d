"""Arguments of an optimizer that follow schedules: found in the transforms that hold them, and replaced in the graph.

An argument such as `beta_2` is a float that `transform()` hands to the transforms. Under a schedule it is a
`Scheduled`: still that float to whoever looks, but known again wherever it went. Each update replaces it there by a
`Live` one, a number that is computed from the step.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import Live, wide_dtype
from keras_trainkit.core.transform import Transform


class Scheduled(float):
    """An argument's own value, with the name under which a schedule replaces it."""

    name: str

    def __new__(cls, value: float, name: str) -> Scheduled:
        made = super().__new__(cls, value)
        made.name = name
        return made

    def __getnewargs__(self) -> Any:
        return float(self), self.name

    def __bool__(self) -> bool:
        # Transforms are left out for an argument of 0. What follows a schedule may be 0 now and not later.
        return True


class Schedules:
    """The schedules that an optimizer's arguments follow, by name, in one order."""

    def __init__(self, schedules: Mapping[str, Any] | None = None) -> None:
        self._schedules = dict(schedules or {})

    def __len__(self) -> int:
        return len(self._schedules)

    def names(self) -> list[str]:
        """The arguments that follow a schedule."""
        return list(self._schedules)

    def values(self, updates: Any) -> list[Any]:
        """The value of each after so many updates, as tensors."""
        dtype = wide_dtype(keras.config.floatx())
        return [ops.cast(schedule(updates), dtype) for schedule in self._schedules.values()]

    def live(self, value: Any, values: list[Any]) -> Any:
        """A transform, or any value, with what follows a schedule replaced by the number of this update."""
        return _replaced(value, dict(zip(self._schedules, values, strict=True))) if self._schedules else value


def follow(optimizer: Any, schedules: Mapping[str, Any]) -> None:
    """Has arguments of the optimizer follow schedules, from the next trace on; those of an earlier call no longer do.

    Raises:
        ValueError: for an argument that no transform takes as it is, or that needs state the optimizer has not got.
    """
    if not optimizer.built:
        raise ValueError("An optimizer's arguments can follow schedules only after `build`.")
    before = {name: float(getattr(optimizer, name)) for name in optimizer.scheduled.names()}
    _put(optimizer, before, Schedules())
    own = {name: _own_value(optimizer, name) for name in schedules}
    try:
        _put(optimizer, {name: Scheduled(own[name] or 0.0, name) for name in schedules}, Schedules(schedules))
        _check(optimizer, own)
        optimizer.refresh()
    except BaseException:
        _put(optimizer, own, Schedules())
        optimizer.refresh()
        raise


def _put(optimizer: Any, values: Mapping[str, Any], schedules: Schedules) -> None:
    for name, value in values.items():
        setattr(optimizer, name, value)
    optimizer.scheduled = schedules


def _own_value(optimizer: Any, name: str) -> Any:
    allowed = _arguments(optimizer)
    if name not in allowed:
        raise ValueError(
            f"`{name}` is no argument of {type(optimizer).__name__} that can follow a schedule"
            f"{checks.did_you_mean(name, allowed)}. There are {', '.join(allowed)}"
        )
    return getattr(optimizer, name)


def _arguments(optimizer: Any) -> list[str]:
    """The names under which the optimizer keeps floats that go into transforms, and are used at every update."""
    own = [name for name in optimizer.own_arguments() if not name.startswith("initial_") and name != "weight_decay"]
    return ["weight_decay", *(name for name in own if type(getattr(optimizer, name, None)) is float)]


def _check(optimizer: Any, own: Mapping[str, Any]) -> None:
    links = optimizer.all_links()
    found, exchanging = _names(links)
    if not optimizer.decays_inside:
        found.add("weight_decay")
    for name, value in own.items():
        if name in exchanging:
            raise ValueError(
                f"`{name}` of {type(optimizer).__name__} cannot follow a schedule: the evaluation weights depend on it"
            )
        if name not in found:
            raise ValueError(
                f"`{name}` of {type(optimizer).__name__} cannot follow a schedule: no transform takes it as it is"
            )
        if not value and optimizer.needs_other_slots():
            raise ValueError(
                f"`{name}` can follow a schedule only if the optimizer was made with a value above 0: it has no memory "
                f"for it. Received: {name}={value!r}"
            )


def _names(value: Any) -> tuple[set[str], set[str]]:
    """The names of what follows a schedule in a transform, and of those in links that give evaluation weights."""
    found: set[str] = set()
    exchanging: set[str] = set()
    if isinstance(value, Scheduled):
        found.add(value.name)
    elif isinstance(value, list):
        for item in value:
            inner, special = _names(item)
            found, exchanging = found | inner, exchanging | special
    elif isinstance(value, Transform):
        inner, exchanging = _names([getattr(value, field.name) for field in dataclasses.fields(value)])
        found |= inner
        if not exchanging and _is_exchanging(value):
            exchanging = set(found)
    return found, exchanging


def _is_exchanging(link: Transform) -> bool:
    holds_others = any(
        isinstance(item, (Transform, list)) for item in (getattr(link, f.name) for f in dataclasses.fields(link))
    )
    return link.offers_evaluation() and not holds_others


def _replaced(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Scheduled):
        return Live(values[value.name])
    if isinstance(value, list):
        return [_replaced(item, values) for item in value]
    if not isinstance(value, Transform):
        return value
    made = copy.copy(value)
    for field in dataclasses.fields(value):
        # Past the checks, which ask for numbers.
        object.__setattr__(made, field.name, _replaced(getattr(value, field.name), values))
    return made
