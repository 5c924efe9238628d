"""The states of the callbacks of a `fit`: the kit's, Keras's, and those of a user that have the two methods."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend
from keras_trainkit.resuming.encoding import decode, encode

_OURS = ("keras.", "keras_trainkit.")


def named(callbacks: list[Any]) -> dict[str, Any]:
    """The callbacks by class and how manieth of their class they are.

    >>> list(named([keras.callbacks.History(), keras.callbacks.History()]))
    ['History#0', 'History#1']
    """
    counts: dict[str, int] = {}
    found = {}
    for callback in callbacks:
        name = type(callback).__name__
        found[f"{name}#{counts.setdefault(name, 0)}"] = callback
        counts[name] += 1
    return found


def state_of(callback: Any) -> dict[str, Any]:
    """What a callback has seen of the run, as plain values and arrays."""
    fields = backend.callback_fields(callback)
    state: dict[str, Any] = {name: getattr(callback, name) for name in fields}
    if isinstance(callback, keras.callbacks.CSVLogger):
        state["bytes"] = _size(callback)
    if hasattr(callback, "get_state"):
        state["own"] = callback.get_state()
    return state


def give(callback: Any, state: dict[str, Any]) -> None:
    """The inverse of `state_of`."""
    for name in backend.callback_fields(callback):
        if name in state:
            setattr(callback, name, state[name])
    if isinstance(callback, keras.callbacks.CSVLogger):
        _cut(callback, state["bytes"])
    if isinstance(callback, keras.callbacks.History):
        callback.model.history = callback
    if "own" in state:
        callback.set_state(state["own"])


def encoded(callbacks: list[Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """The states of all callbacks that have one, ready for JSON; their arrays go into `arrays`."""
    states = {name: state_of(callback) for name, callback in named(callbacks).items()}
    return {name: encode(state, arrays, f"callbacks/{name}") for name, state in states.items() if state}


def put_back(states: dict[str, Any], arrays: dict[str, Any], callbacks: list[Any]) -> None:
    """Gives each callback its state; warns of callbacks that came or went."""
    present = {name: callback for name, callback in named(callbacks).items() if state_of(callback)}
    for name, callback in present.items():
        if name in states:
            give(callback, decode(states[name], arrays))
    gone, new = sorted(set(states) - set(present)), sorted(set(present) - set(states))
    if gone or new:
        changes = [f"{name} is gone" for name in gone] + [f"{name} is new and begins anew" for name in new]
        warnings.warn(f"The callbacks are others than when the state was saved: {'; '.join(changes)}.", stacklevel=2)


def prepare(callbacks: list[Any]) -> None:
    """What must be set before callbacks begin a run that goes on: files are appended to."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger):
            callback.append = True


class Forgotten:
    """Notices callbacks of a user that change in training, and have no methods to be saved by."""

    def __init__(self, callbacks: list[Any]) -> None:
        self._known = {
            name: (callback, _plain(callback))
            for name, callback in named(callbacks).items()
            if not hasattr(callback, "get_state") and not type(callback).__module__.startswith(_OURS)
        }

    def warn(self) -> None:
        """Warns once of each that has changed."""
        for name, (callback, before) in list(self._known.items()):
            now = _plain(callback)
            changed = sorted(key for key in {*before, *now} if not _equal(before.get(key), now.get(key)))
            if changed:
                del self._known[name]
                warnings.warn(
                    f"The callback {type(callback).__name__} changes in training ({', '.join(changed)}), and a run "
                    "that is resumed begins with a new one: give it the methods `get_state()`, which returns plain "
                    "values and arrays, and `set_state(state)`.",
                    stacklevel=2,
                )


def _plain(callback: Any) -> dict[str, Any]:
    own = {name: value for name, value in vars(callback).items() if name not in ("params", "_model")}
    return {name: copy.deepcopy(value) for name, value in own.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str, np.ndarray, np.generic))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


def _size(logger: Any) -> int:
    if logger.csv_file is not None and not logger.csv_file.closed:
        logger.csv_file.flush()
    return os.path.getsize(logger.filename) if os.path.exists(logger.filename) else 0


def _cut(logger: Any, size: int) -> None:
    """Takes away the lines of epochs that are trained once more."""
    if _size(logger) > size:
        os.truncate(logger.filename, size)
    if size == 0:
        logger.append_header = True
