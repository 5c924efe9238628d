"""Argument checks that raise in one form: the argument, the allowed range, and the value received. Needs no Keras."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """`value` as a finite float inside the given bounds.

    >>> number("epsilon", 1e-7, above=0)
    1e-07
    >>> number("beta_1", 1.5, at_least=0, below=1)
    Traceback (most recent call last):
    ...
    ValueError: `beta_1` must be a number at least 0 and below 1. Received: beta_1=1.5
    """
    span = _span(above, at_least, below, at_most)
    message = f"`{name}` must be a number{span}. Received: {name}={value!r}"
    if isinstance(value, (bool, str)) or not (isinstance(value, numbers.Real) or _is_scalar_array(value)):
        raise TypeError(message)
    result = float(value)
    if not math.isfinite(result) or not _inside(result, above, at_least, below, at_most):
        raise ValueError(message)
    return result


def integer(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """`value` as an int inside the given bounds; 3.0 is not an integer, np.int64(3) is."""
    message = f"`{name}` must be an integer{_span(None, at_least, None, at_most)}. Received: {name}={value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if not _inside(int(value), None, at_least, None, at_most):
        raise ValueError(message)
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return value


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """`value`, which must be among `allowed`; the error offers the nearest names."""
    choices = list(allowed)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}. Received: {name}={value!r}{did_you_mean(value, choices)}")
    return value


def near(name: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates that look like `name`, best first, whatever the case.

    >>> near("raddam", ["adam", "radam", "sgd"])
    ['radam', 'adam']
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    return [by_lower[match] for match in difflib.get_close_matches(str(name).lower(), list(by_lower), n=3, cutoff=0.6)]


def did_you_mean(name: Any, candidates: Iterable[Any]) -> str:
    """The end of an error message that offers near names, or nothing."""
    matches = near(name, [c for c in candidates if isinstance(c, str)]) if isinstance(name, str) else []
    return f". Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def _is_scalar_array(value: Any) -> bool:
    return getattr(value, "shape", None) == () and hasattr(value, "__float__")


def _inside(value: float, above: Any, at_least: Any, below: Any, at_most: Any) -> bool:
    return (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )


def _span(above: Any, at_least: Any, below: Any, at_most: Any) -> str:
    words = [("above", above), ("at least", at_least), ("below", below), ("at most", at_most)]
    parts = [f"{word} {bound}" for word, bound in words if bound is not None]
    return " " + " and ".join(parts) if parts else ""
