"""Values of callbacks as JSON: arrays go aside, and what JSON does not tell apart is marked."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode(value: Any, arrays: dict[str, Any], name: str) -> Any:
    """The value for JSON; arrays in it are put into `arrays` under names that begin with `name`.

    Raises:
        TypeError: for what is no number, text, None, array, list, tuple or dictionary of such.

    >>> arrays = {}
    >>> encode({"wait": 2, "best": (np.float32(0.5), None)}, arrays, "stop")
    {'wait': 2, 'best': {'%tuple': [{'%scalar': 'stop/0'}, None]}}
    >>> decode(_, arrays)
    {'wait': 2, 'best': (np.float32(0.5), None)}
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject:
            raise TypeError(f"an array of objects cannot be saved. Received: {name}={value!r}")
        key = f"{name}/{sum(known.startswith(name + '/') for known in arrays)}"
        arrays[key] = np.array(value)
        return {"%scalar" if isinstance(value, np.generic) else "%array": key}
    if isinstance(value, list):
        return [encode(item, arrays, name) for item in value]
    if isinstance(value, tuple):
        return {"%tuple": [encode(item, arrays, name) for item in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("%") for key in value):
            return {key: encode(item, arrays, name) for key, item in value.items()}
        pairs = [[encode(key, arrays, name), encode(item, arrays, name)] for key, item in value.items()]
        return {"%pairs": pairs}
    raise TypeError(
        "a state must hold numbers, text, None, NumPy arrays, and lists, tuples and dictionaries of them. "
        f"Received: {name}={value!r}"
    )


def decode(value: Any, arrays: dict[str, Any]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "%array" in value:
        return np.array(arrays[value["%array"]])
    if "%scalar" in value:
        return arrays[value["%scalar"]][()]
    if "%tuple" in value:
        return tuple(decode(item, arrays) for item in value["%tuple"])
    if "%pairs" in value:
        return {decode(key, arrays): decode(item, arrays) for key, item in value["%pairs"]}
    return {key: decode(item, arrays) for key, item in value.items()}
