"""Tables in plain text, for the interpreter and the terminal. Needs no Keras."""

from __future__ import annotations

OPTIMIZER_COLUMNS = ["optimizer", "year", "paper", "state bytes/parameter", "sparse gradients"]


def optimizer_row(
    name: str, year: int, paper: str, state_bytes: float, sparse: str, constant_rate: bool = False
) -> list[str]:
    """The cells of one optimizer under `OPTIMIZER_COLUMNS`."""
    return [name, str(year), paper, f"{state_bytes:.2g}", sparse]


def aligned(rows: list[list[str]]) -> list[str]:
    """A line for each row, its columns aligned and two spaces apart.

    >>> aligned([["name", "year"], ["adam", "2014"], ["madgrad", "2021"]])
    ['name     year', 'adam     2014', 'madgrad  2021']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
