"""What the axes of a layer's weights stand for, and which weights are pruned."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import require_matches, require_pattern

Rule = Callable[[Any, Any], bool]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The axes of a weight.

    Attributes:
        summed: the axes that are summed over.
        inner: the one of them along which consecutive elements meet consecutive inputs; None where there is none.
        filters: whether all else numbers outputs, so that a filter is what is summed for one of them.
    """

    summed: tuple[int, ...]
    inner: int | None
    filters: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """A variable to be pruned, the innermost layer that has it, and its axes."""

    layer: Any
    variable: Any
    geometry: Geometry

    @property
    def path(self) -> str:
        """The variable's path."""
        return variable_path(self.variable)


def geometry_of(layer: Any, variable: Any) -> Geometry:
    """The axes of a layer's variable; those of a layer that is not Keras's are taken to be as in `Dense` or `Conv`."""
    rank, name = len(variable.shape), variable.name
    transposed = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    if name.startswith("depthwise") or isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return Geometry(tuple(range(rank - 2)), None, False)
    if isinstance(layer, keras.layers.EinsumDense):
        given, output = layer.equation.split("->")
        letters = given.split(",")[1].replace(".", "")
        summed = tuple(axis for axis, letter in enumerate(letters) if letter not in output)
        return Geometry(summed, summed[-1] if summed else None, bool(summed))
    if isinstance(layer, transposed):
        return Geometry((*range(rank - 2), rank - 1), rank - 1, True)
    if isinstance(layer, keras.layers.Embedding):
        return Geometry((), None, False)
    several_gates = hasattr(layer, "recurrent_constraint") or name.startswith("recurrent")
    return Geometry(tuple(range(rank - 1)), rank - 2, not several_gates)


def owned_variables(model: Any) -> list[tuple[Any, Any]]:
    """(innermost layer, variable) of each trainable variable, in the order of the model's weights."""
    owners: dict[int, Any] = {}
    for layer in backend.flat_layers(model):
        for variable in layer.trainable_variables:
            held = owners.get(id(variable))
            if held is None or len(layer.trainable_variables) <= len(held.trainable_variables):
                owners[id(variable)] = layer
    return [(owners[id(variable)], variable) for variable in model.trainable_variables]


def select(model: Any, layers: list[str] | Rule | None, refuses: Callable[[Any, Geometry], str | None]) -> list[Target]:
    """The variables to prune.

    Args:
        model: built.
        layers: regular expressions, looked for in the paths of variables with at least two axes; or a function of
            (layer, variable); or None for the default: trainable variables with at least two axes that are called
            `kernel`, or something that ends so, but for the last of them.
        refuses: why the structure does not fit a variable's shape and axes. The default leaves such variables out; to
            name one is an error.

    Raises:
        ValueError: for a pattern that finds nothing, a named variable that does not fit, or if nothing is left.
    """
    all_of_two = [(layer, v) for layer, v in owned_variables(model) if len(v.shape) >= 2]
    if layers is None:
        kernels = [
            (layer, v)
            for layer, v in all_of_two
            if v.name.endswith("kernel") and not isinstance(layer, keras.layers.Embedding)
        ]
        chosen = kernels[:-1]
    elif callable(layers):
        chosen = [(layer, v) for layer, v in all_of_two if layers(layer, v)]
    else:
        paths = [variable_path(v) for _, v in all_of_two]
        for pattern in layers:
            require_pattern("layers", pattern)
            require_matches("layers", [pattern], paths)
        chosen = [(layer, v) for layer, v in all_of_two if any(re.search(p, variable_path(v)) for p in layers)]
    targets = [Target(layer, v, geometry_of(layer, v)) for layer, v in chosen]
    reasons = [refuses(tuple(t.variable.shape), t.geometry) for t in targets]
    if layers is not None and any(reasons):
        target, reason = next((t, r) for t, r in zip(targets, reasons, strict=True) if r)
        raise ValueError(f"`layers` names `{target.path}`, which cannot be pruned in this structure: {reason}.")
    found = [t for t, reason in zip(targets, reasons, strict=True) if not reason]
    if not found:
        listed = ", ".join(f"`{variable_path(v)}`" for _, v in all_of_two) or "none"
        raise ValueError(
            "`layers` leaves nothing to prune; by default kernels are pruned, but for the last one. The model's "
            f"trainable variables with at least two axes: {listed}. Received: layers={layers!r}"
        )
    return found
