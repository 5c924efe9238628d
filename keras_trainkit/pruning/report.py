"""What pruning has done to a model, and its end."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import table
from keras_trainkit.core.weight_mask import WeightMask, mask_of
from keras_trainkit.pruning.pruner import PLACE

Model = TypeVar("Model", bound=keras.Model)


@dataclasses.dataclass(frozen=True)
class Row:
    """One trainable variable: its path, shape, elements, those that are exactly zero, and whether it has a mask."""

    path: str
    shape: tuple[int, ...]
    elements: int
    zeros: int
    masked: bool

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """A row for each trainable variable; as text a table."""

    rows: list[Row]

    @property
    def sparsity(self) -> float:
        """The share of zeros in all trainable variables."""
        return Row("", (), sum(r.elements for r in self.rows), sum(r.zeros for r in self.rows), False).sparsity

    def __str__(self) -> str:
        lines: list[list[Any]] = [
            [r.path, "x".join(map(str, r.shape)) or "scalar", r.elements, r.zeros, f"{r.sparsity:.2%}", r.masked]
            for r in self.rows
        ]
        elements, zeros = sum(r.elements for r in self.rows), sum(r.zeros for r in self.rows)
        lines.append(["all", "", elements, zeros, f"{self.sparsity:.2%}", ""])
        return table(["variable", "shape", "elements", "zeros", "sparsity", "masked"], lines)


def summary(model: Any) -> Summary:
    """Counts the zeros of a model's trainable variables, with or without masks.

    Args:
        model: built.

    Returns:
        A `Summary`: `rows`, the whole `sparsity`, and a table when printed.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="one", kernel_initializer="ones")])
    >>> [(row.zeros, row.elements, row.masked) for row in summary(model).rows]
    [(0, 6, False), (2, 2, False)]
    >>> summary(model).sparsity
    0.25
    """
    rows = []
    for variable in model.trainable_variables:
        values = np.asarray(ops.convert_to_numpy(ops.cast(variable, "float32")))
        zeros, shape = int((values == 0).sum()), tuple(variable.shape)
        rows.append(Row(variable_path(variable), shape, values.size, zeros, mask_of(variable) is not None))
    return Summary(rows)


def strip(model: Model) -> Model:
    """Takes all masks off a model: what is left has zeros in its weights, and nothing of the kit in its layers.

    Saved after that it loads without the kit: with its optimizer if that is Keras's own, else with `compile=False`.
    Trained after that its zeros fill up again.

    Args:
        model: pruned; changed in place. One that has no masks stays as it is.

    Returns:
        The model.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> strip(model) is model
    True
    """
    layers = backend.flat_layers(model)
    for variable in [v for layer in layers for v in layer.variables]:
        mask = mask_of(variable)
        if mask is not None:
            variable.assign(mask.applied(backend.read(variable)))
            variable.constraint = mask.constraint
    for layer in layers:
        for name, value in list(vars(layer).items()):
            if isinstance(value, WeightMask):
                setattr(layer, name, value.constraint)
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(optimizer, PLACE):
        delattr(optimizer, PLACE)
    model.train_function = None  # a compiled one would go on with the masks
    return model
