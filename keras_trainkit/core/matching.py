"""Which variable which rule takes: regular expressions on variables' paths, checked and shown."""

from __future__ import annotations

import re
from typing import Any


def first_match(patterns: list[str], path: str) -> int | None:
    """The position of the first pattern that is found in the path, or None.

    >>> first_match(["bias", "dense"], "dense_1/bias")
    0
    """
    return next((i for i, pattern in enumerate(patterns) if re.search(pattern, path)), None)


def require_pattern(name: str, value: Any) -> None:
    """Raises ValueError for what is no regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"`{name}` must be a regular expression ({error}). Received: {name}={value!r}") from error


def require_matches(name: str, patterns: list[str], paths: list[str]) -> None:
    """Raises ValueError for a pattern that no path matches first, because it is wrong or an earlier one takes all."""
    taken = {first_match(patterns, path) for path in paths}
    for position, pattern in enumerate(patterns):
        if position not in taken:
            listed = ", ".join(f"`{path}`" for path in paths)
            raise ValueError(
                f"`{name}` holds a pattern that takes no variable. Received: pattern={pattern!r}, with the "
                f"variables {listed} (an earlier rule takes a variable that both match)."
            )


def table(headings: list[str], rows: list[list[Any]]) -> str:
    """Rows of text in aligned columns, under their headings.

    >>> print(table(["path", "factor"], [["dense/kernel", 0.5], ["b", 1.0]]))
    path          factor
    dense/kernel  0.5
    b             1.0
    """
    lines = [headings, *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and value != int(value) else str(value)
