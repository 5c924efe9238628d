"""The norms of an update, computed inside the graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_trainkit.core import backend, checks, slices
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import squared_norm, squared_norms, widened
from keras_trainkit.core.state import VariableDict

NAMES = ("gradient_norm", "clipped_gradient_norm", "update_norm", "weight_norm")
BY_VARIABLE = ("gradient_norm", "update_norm", "weight_norm")
_OF_PIECES = ("piece_ratio", "pieces")


class Norms:
    """What the last watched update measured; nothing is watched before `watch`.

    A piece is what one replica computes of one micro-batch: of the pieces of an update the mean square of the
    gradients' norms is measured, as a share of the square of their mean's, which no scale of the loss changes.
    """

    def __init__(self) -> None:
        self._every = 0
        self._by_variable = self._of_pieces = False
        self._variables: VariableDict | None = None
        self._count = 0

    def watch(self, every: int, by_variable: bool = False, pieces: bool = False) -> None:
        """Measures every so many updates, from the next trace on."""
        self._every = checks.integer("every", every, at_least=1)
        self._by_variable = checks.boolean("by_variable", by_variable)
        self._of_pieces = checks.boolean("pieces", pieces)

    def build(self, add_variable: Callable[..., Any], variables: list[Any]) -> None:
        """Makes the variables that are wanted and not there; `variables` are the model's."""
        if not self._every:
            return
        self._count = len(variables)
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(NAMES, ())
        wanted |= {"norms_by_variable": (len(BY_VARIABLE), self._count)} if self._by_variable else {}
        wanted |= dict.fromkeys(_OF_PIECES, ()) if self._of_pieces else {}
        known = dict(self._variables.items()) if self._variables is not None else {}
        made = {n: add_variable(s, dtype="float32", name=n) for n, s in wanted.items() if n not in known}
        self._variables = VariableDict(known | made)

    def values(self) -> dict[str, float]:
        """The norms by name, and the ratio of the update's to the weights'; empty if nothing was watched."""
        if self._variables is None:
            return {}
        values = {name: backend.number(self._variables[name]) for name in NAMES}
        weight = values["weight_norm"]
        return values | {"update_to_weight_ratio": values["update_norm"] / weight if weight > 0 else float("nan")}

    def by_variable(self, variables: list[Any]) -> dict[str, dict[str, float]]:
        """The norms of each variable by its path; variables that the update had no gradient for are left out."""
        if self._variables is None or "norms_by_variable" not in self._variables:
            return {}
        table = ops.convert_to_numpy(self._variables["norms_by_variable"])
        found = {}
        for variable, column in zip(variables, table.T, strict=True):
            if column[0] != _ABSENT:
                found[variable_path(variable)] = dict(zip(BY_VARIABLE, map(float, column), strict=True))
        return found

    def pieces(self) -> tuple[float, float, int] | None:
        """Mean square of the pieces' gradient norms, square of their mean's, number of pieces; None if not measured."""
        if self._variables is None or not self._of_pieces:
            return None
        count = round(backend.number(self._variables["pieces"]))
        whole = backend.number(self._variables["gradient_norm"]) ** 2
        return (backend.number(self._variables["piece_ratio"]) * whole, whole, count) if count > 1 else None

    def measure(
        self,
        step: Any,
        gradients: list[Any],
        clipped: Callable[[], list[Any]],
        variables: list[Any],
        indices: list[int],
    ) -> Callable[[], None]:
        """Notes where the variables are, if this update is watched; what it returns measures how far they went.

        `indices` are the variables' positions among all that the optimizer was built with.
        """
        if self._variables is None:
            return lambda: None
        due, norms = self._due(step), self._variables
        before = backend.values_if(due, variables)

        def measure() -> None:
            old = [widened(value) for value in before()]
            moved = [widened(backend.read(v)) - value for v, value in zip(variables, old, strict=True)]
            squares = {
                "gradient_norm": squared_norms(gradients),
                "update_norm": squared_norms(moved),
                "weight_norm": squared_norms(old),
            }
            for name, values in squares.items():
                backend.write(norms[name], ops.sqrt(sum(values[1:], start=values[0])))
            backend.write(norms["clipped_gradient_norm"], ops.sqrt(squared_norm(clipped())))
            if self._by_variable:
                rows = [self._row(squares[name], indices) for name in BY_VARIABLE]
                backend.write(norms["norms_by_variable"], ops.stack(rows))

        return lambda: backend.when(due, measure, None, list(norms.values()))

    def _row(self, squares: list[Any], indices: list[int]) -> Any:
        """The roots of the squares, each at its variable's place."""
        found = {index: ops.cast(ops.sqrt(square), "float32") for index, square in zip(indices, squares, strict=True)}
        return ops.stack([found.get(index, ops.cast(_ABSENT, "float32")) for index in range(self._count)])

    # -------------------------------------------------------------------------------------------------------- pieces

    @property
    def of_pieces(self) -> bool:
        """Whether the pieces of the updates are watched."""
        return self._of_pieces and self._variables is not None

    def piece(self, updates_done: Any, gradients: list[Any], weight: Any) -> list[Any]:
        """What one piece adds: its gradient's squared norm times its weight, its weight, and 1; zeros if not watched.

        Args:
            updates_done: a scalar integer.
            gradients: of this replica's share of the loss, dense or by rows.
            weight: by which the piece counts in the mean, a scalar.
        """

        def measured() -> list[Any]:
            dense = [slices.values(slices.unique_rows(g) if slices.is_sparse(g) else g) for g in gradients]
            square = ops.cast(squared_norm([widened(g) for g in dense]), "float32") * float(backend.replicas()) ** 2
            return [square * ops.cast(weight, "float32"), ops.cast(weight, "float32"), ops.ones(())]

        return backend.values_where(self._due(updates_done + 1), measured, 3)

    def end_pieces(self, updates_done: Any, totals: list[Any], gradients: list[Any]) -> None:
        """Compares the pieces of an update, whose sums over all replicas are `totals`, with their mean."""
        due, norms = self._due(updates_done + 1), self._variables
        if norms is None:
            return

        def compare() -> None:
            square, weight, count = totals
            whole = ops.cast(squared_norm([widened(slices.values(g)) for g in gradients]), "float32")
            backend.write(norms["piece_ratio"], square / weight / whole)
            backend.write(norms["pieces"], count)

        backend.when(due, compare, None, [norms[name] for name in _OF_PIECES])

    def _due(self, step: Any) -> Any:
        return ops.equal(step % self._every, 0)


_ABSENT = -1.0


def by_layer(norms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The norms of each layer's variables together, by the layer's path, with the ratio of update to weights.

    >>> by_layer({"dense/kernel": {"weight_norm": 3.0}, "dense/bias": {"weight_norm": 4.0}})
    {'dense': {'weight_norm': 5.0}}
    """
    squares: dict[str, dict[str, float]] = {}
    for path, values in norms.items():
        layer = squares.setdefault(path.rpartition("/")[0] or path, {})
        for name, value in values.items():
            layer[name] = layer.get(name, 0.0) + value**2
    found = {layer: {name: math.sqrt(value) for name, value in of.items()} for layer, of in squares.items()}
    for of in found.values():
        if of.get("weight_norm", 0) > 0 and "update_norm" in of:
            of["update_to_weight_ratio"] = of["update_norm"] / of["weight_norm"]
    return found
