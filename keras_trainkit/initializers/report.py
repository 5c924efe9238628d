"""What an initialization of a whole model did, as a table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import tables


@dataclasses.dataclass(frozen=True)
class InitializedVariable:
    """What was done to one variable.

    Attributes:
        path: of the variable.
        shape: of the variable.
        rule: what it got, in words.
        stddev: of its values now; for a scalar the value.
        variance_before: of the layer's output before its variance was scaled; None where none was measured.
        variance: of the layer's output now.
        iterations: how often it was scaled.
    """

    path: str
    shape: tuple[int, ...]
    rule: str
    stddev: float
    variance_before: float | None = None
    variance: float | None = None
    iterations: int | None = None


@dataclasses.dataclass(frozen=True)
class InitializationReport:
    """What a function that initializes a whole model did; it shows itself as a table.

    Attributes:
        method: the function's name.
        variables: an `InitializedVariable` for each variable that it set, in the order of the model.
        notes: what else the reader should know, such as what was left as it is.
    """

    method: str
    variables: list[InitializedVariable]
    notes: list[str]

    def __str__(self) -> str:
        measured = any(v.variance is not None for v in self.variables)
        head = ["variable", "shape", "initialized by", "stddev"]
        rows = [head + (["variance before", "after", "iterations"] if measured else [])]
        for v in self.variables:
            shape = " x ".join(map(str, v.shape)) or "1"
            row = [v.path, shape, v.rule, f"{v.stddev:.4g}"]
            rows.append(row + ([_cell(v.variance_before), _cell(v.variance), _cell(v.iterations)] if measured else []))
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([f"{self.method}: {len(self.variables)} variables", "", *tables.aligned(rows), *notes])

    __repr__ = __str__


def entry(variable: Any, rule: str, **measured: Any) -> InitializedVariable:
    """The line of a variable that has been set."""
    values = ops.convert_to_numpy(ops.cast(variable, "float32"))
    stddev = float(np.std(values, dtype="float64")) if values.ndim else float(values)
    return InitializedVariable(variable.path, tuple(variable.shape), rule, stddev, **measured)


def listed(paths: list[str]) -> str:
    """Some paths for a note or an error."""
    shown = ", ".join(paths[:4])
    return shown if len(paths) <= 4 else f"{shown} and {len(paths) - 4} more"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"
