"""Finding schedules by name."""

from __future__ import annotations

import builtins
import fnmatch
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import Schedule


def get(identifier: Any, **arguments: Any) -> Any:
    """A schedule from its name, its configuration, or itself.

    Args:
        identifier: a name in any case, with or without underscores (`"onecycle"`, `"one_cycle"`), a dictionary that
            `keras.optimizers.schedules.serialize` made, one of the form `{"name": "cosine", "decay_steps": 100, ...}`,
            or a schedule (the kit's or Keras's), which is returned as it is.
        **arguments: for the constructor; with a name only.

    Raises:
        ValueError: for an unknown name; it offers near ones.

    >>> get("cosine", initial_learning_rate=0.1, decay_steps=100).alpha
    0.0
    >>> get("cosin")
    Traceback (most recent call last):
    ...
    ValueError: `identifier` must name a schedule of the kit. Received: identifier='cosin'. Did you mean 'cosine'?
    """
    if isinstance(identifier, LearningRateSchedule):
        if arguments:
            raise ValueError(f"`arguments` go with a name, not with a schedule. Received: {sorted(arguments)}")
        return identifier
    if isinstance(identifier, dict):
        if "class_name" in identifier:
            return keras.optimizers.schedules.deserialize(identifier)
        rest = {key: value for key, value in identifier.items() if key != "name"}
        return get(identifier.get("name"), **(rest | arguments))
    kinds = _by_name()
    kind = kinds.get(_plain(identifier)) if isinstance(identifier, str) else None
    if kind is None:
        hint = checks.did_you_mean(identifier, kinds)
        raise ValueError(f"`identifier` must name a schedule of the kit. Received: identifier={identifier!r}{hint}")
    return kind(**arguments)


def list(pattern: str = "*") -> builtins.list[str]:
    """The names that match a shell pattern, in any case, sorted.

    >>> list("co*")
    ['constant', 'cooldown', 'cosine', 'cosinerestarts']
    """
    return sorted(fnmatch.filter(_by_name(), pattern.lower()))


def _by_name() -> dict[str, type[Schedule]]:
    from keras_trainkit import schedules

    public = [getattr(schedules, name) for name in schedules.__all__]
    return {
        kind.__name__.lower(): kind
        for kind in public
        if isinstance(kind, type) and issubclass(kind, Schedule) and kind is not Schedule
    }


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
