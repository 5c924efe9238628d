"""Finding optimizers by name."""

from __future__ import annotations

import builtins
import fnmatch
from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, checks
from keras_trainkit.optimizers.listing import Listing
from keras_trainkit.optimizers.metadata import Info


def classes() -> builtins.list[type[TransformOptimizer]]:
    """The kit's named optimizers: every subclass that says its year and paper."""
    found: dict[str, type[TransformOptimizer]] = {}
    waiting = [TransformOptimizer]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if "info" in vars(kind) and kind.__module__.startswith("keras_trainkit.optimizers."):
            found[kind.__name__] = kind
    return [found[name] for name in sorted(found)]


def get(identifier: Any, **arguments: Any) -> Any:
    """An optimizer from its name, its configuration, or itself.

    Args:
        identifier: a name in any case (`"radam"`), a dictionary that `keras.optimizers.serialize` made, one of the
            form `{"name": "radam", "learning_rate": 1e-3, ...}`, or an optimizer (the kit's or Keras's), which is
            returned as it is.
        **arguments: for the constructor; with a name only.

    Raises:
        ValueError: for an unknown name; it offers near ones.

    >>> get("radam", learning_rate=1e-3).beta_1
    0.9
    >>> get("raddam")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: `identifier` must name an optimizer of the kit. Received: identifier='raddam'. Did you mean 'radam'...
    """
    if isinstance(identifier, keras.optimizers.Optimizer):
        if arguments:
            raise ValueError(f"`arguments` go with a name, not with an optimizer. Received: {sorted(arguments)}")
        return identifier
    if isinstance(identifier, dict):
        if "class_name" in identifier:
            return keras.optimizers.deserialize(identifier)
        rest = {key: value for key, value in identifier.items() if key != "name"}
        return get(identifier.get("name"), **(rest | arguments))
    return _kind(identifier)(**arguments)


def list(pattern: str = "*") -> builtins.list[str]:
    """The names that match a shell pattern, in any case, sorted; shown as a table.

    It is a list of strings whose representation says for each year, paper, bytes of state per parameter, and what
    sparse gradients get; `info` has the same for one name.

    >>> list("adamw")
    optimizer  year  paper             state bytes/parameter  sparse gradients
    adamw      2017  arXiv:1711.05101  8                      dense
    >>> "radam" in list("*adam*")
    True
    """
    kinds = _by_name()
    return Listing({name: kinds[name].info for name in sorted(fnmatch.filter(kinds, pattern.lower()))})


def info(name: str) -> Info:
    """Year, paper, bytes of state per parameter, and what sparse gradients get.

    >>> info("lion").state_bytes
    4
    """
    return _kind(name).info


def _by_name() -> dict[str, type[TransformOptimizer]]:
    return {kind.__name__.lower(): kind for kind in classes()}


def _kind(name: Any) -> type[TransformOptimizer]:
    kinds = _by_name()
    kind = kinds.get(name.lower()) if isinstance(name, str) else None
    if kind is None:
        hint = checks.did_you_mean(name, kinds)
        raise ValueError(f"`identifier` must name an optimizer of the kit. Received: identifier={name!r}{hint}")
    return kind
