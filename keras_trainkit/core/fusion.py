"""Compiles the update: large variables in place, one program for all of a kind; pools of small ones as long vectors.

Op by op, an update streams every slot through memory a dozen times, and on small variables spends its time between the
kernels. A transform that says in its `scope` how far an element's update reaches allows better:

- `"variable"`: XLA makes one program for each shape, and TensorFlow runs it on every variable of that shape, where the
  variable lies.
- `"element"`: small variables are laid end to end, and their slots lie so already (`core.pools`).

Whatever has no scope is computed op by op by `TransformOptimizer`, and so is everything on JAX, and inside a function
that XLA compiles as a whole; the results are the same to rounding. On several replicas each runs its own programs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.pools import SMALL, Pool


@dataclasses.dataclass(frozen=True)
class Item:
    """One variable of an update.

    Attributes:
        position: in the lists of the update.
        variable: the model's.
        gradient: reduced, dense.
        own: the variables that are written beside it: its slots in their order, then its average if it has one.
        moves: whether the update is a sum of the parameter and what the transforms say.
        key: what a compiled program depends on, beside shapes and dtypes.
    """

    position: int
    variable: Any
    gradient: Any
    own: list[Any]
    moves: bool
    key: tuple

    @property
    def large(self) -> bool:
        """Whether it is worth a program of its own."""
        return math.prod(self.variable.shape) >= SMALL


@dataclasses.dataclass(frozen=True)
class Batch:
    """All variables of a pool."""

    pool: Pool
    items: list[Item]


class Scalars(NamedTuple):
    """What an update knows beside its tensors.

    `factor` is still to be multiplied with the gradients, if it is one; `scheduled` are the arguments that follow
    schedules.
    """

    step: Any
    rate: Any
    factor: Any
    common: list[Any]
    scheduled: list[Any]


Compute = Callable[[int, Any, Any, list[Any], Scalars], tuple[list[Any], list[Any]]]
"""(position of a variable treated alike, parameter, gradient, own values, scalars) -> new values of all but the
gradient, and of the slots that the variable shares with others."""

Move = Callable[[int, Any, Any, list[Any], Scalars], tuple[Any, list[Any], list[Any]]]
"""The same arguments -> what to add to the parameter, new own values, new values of shared slots."""

Common = list[tuple[int, list[Any]]]
"""The new values of shared slots, with the position of a variable that shares them."""


class Programs:
    """The compiled programs of one optimizer; they outlive a trace, so that eager steps find them again."""

    def __init__(self) -> None:
        self._in_place: dict[tuple, Callable] = {}
        self._joined: dict[tuple, Callable] = {}
        self._moves: dict[tuple, Callable | None] = {}

    def run(self, items: list[Item], batches: list[Batch], scalars: Scalars, compute: Compute, move: Move) -> Common:
        """Updates single variables, and those of whole pools."""
        common = [(item.position, self._run_in_place(item, scalars, compute)) for item in items]
        for batch in batches:
            gradients = _join([item.gradient for item in batch.items])
            found = self._run_moves(batch, gradients, scalars, move)
            if found is None:
                found = self._run_joined(batch, gradients, scalars, compute)
            common.append((batch.items[0].position, found))
        return common

    def _run_in_place(self, item: Item, scalars: Scalars, compute: Compute) -> list[Any]:
        def program(parameter: Any, own: list[Any], gradient: Any, scalars: Scalars) -> list[Any]:
            old = [backend.read(v) for v in own]
            values, common = compute(item.position, backend.read(parameter), gradient, old, scalars)
            for variable, value in zip([parameter, *own], values, strict=True):
                backend.write(variable, value)
            return common

        compiled = self._in_place.setdefault(item.key, backend.compiled(program))
        own = [backend.local_copy(v) for v in item.own]
        return compiled(backend.local_copy(item.variable), own, item.gradient, scalars)

    def _run_moves(self, batch: Batch, gradients: Any, scalars: Scalars, move: Move) -> list[Any] | None:
        """Adds to the parameters where they lie; None where what to add depends on them."""
        first = batch.items[0]

        def program(own: list[Any], gradient: Any, scalars: Scalars) -> tuple[Any, list[Any]]:
            # The gradient stands in for the parameter, which nothing reads.
            added, values, common = move(first.position, gradient, gradient, [backend.read(v) for v in own], scalars)
            for variable, value in zip(own, values, strict=True):
                backend.write(variable, value)
            return added, common

        def computed(parameter: Any, gradient: Any, own: list[Any], scalars: Scalars) -> Any:
            return move(first.position, parameter, gradient, own, scalars)

        if first.key not in self._moves:
            own = [backend.read(v) for v in batch.pool.own]
            alike = _dtype(gradients) == _dtype(first.variable)
            free = first.moves and alike and not backend.depends(computed, gradients, gradients, own, scalars)
            self._moves[first.key] = backend.compiled(program) if free else None
        compiled = self._moves[first.key]
        if compiled is None:
            return None
        added, common = compiled([backend.local_copy(v) for v in batch.pool.own], gradients, scalars)
        variables = [item.variable for item in batch.items]
        for variable, value in zip(variables, _split(added, variables), strict=True):
            backend.add_to(variable, value)
        return common

    def _run_joined(self, batch: Batch, gradients: Any, scalars: Scalars, compute: Compute) -> list[Any]:
        first, averages = batch.items[0], batch.pool.averages

        def program(own: list[Any], apart: list[Any], gradient: Any, scalars: Scalars) -> tuple[list[Any], list[Any]]:
            parameter, *average = apart
            old = [*(backend.read(v) for v in own), *average]
            (new, *values), common = compute(first.position, parameter, gradient, old, scalars)
            for variable, value in zip(own, values, strict=False):
                backend.write(variable, value)
            return [new, *values[len(own) :]], common

        compiled = self._joined.setdefault(first.key, backend.compiled(program))
        lying_apart = [[item.variable for item in batch.items], *([averages] if averages else [])]
        joined = [_join([backend.read(v) for v in variables]) for variables in lying_apart]
        found, common = compiled([backend.local_copy(v) for v in batch.pool.own], joined, gradients, scalars)
        for variables, new in zip(lying_apart, found, strict=True):
            for variable, value in zip(variables, _split(new, variables), strict=True):
                backend.write(variable, value)
        return common


def whole_batches(pools: list[Pool], items: dict[int, Item]) -> list[Batch]:
    """The pools all of whose variables are updated, and alike; `items` by the variables' indices.

    The others' variables go one by one: a gradient may be missing, or an option have changed for some.
    """
    found = []
    for pool in pools:
        members = [items[index] for index in pool.indices if index in items]
        kinds = {(item.key, _dtype(item.variable), _dtype(item.gradient)) for item in members}
        if len(members) == len(pool.indices) and len(kinds) == 1:
            found.append(Batch(pool, members))
    return found


def run_on_rows(
    position: int, variable: Any, own: list[Any], rows: Any, gradient: Any, scalars: Scalars, compute: Compute
) -> Common:
    """Updates some rows of a variable and of what is written beside it; the cost does not grow with the others."""
    old = [backend.read_rows(v, rows) for v in own]
    new, common = compute(position, backend.read_rows(variable, rows), gradient, old, scalars)
    for target, value in zip([variable, *own], new, strict=True):
        backend.write_rows(target, rows, value)
    return [(position, common)]


def _dtype(tensor: Any) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)


def _join(tensors: list[Any]) -> Any:
    flat = [t if len(t.shape) == 1 else ops.reshape(t, (-1,)) for t in tensors]
    return ops.concatenate(flat, axis=0)


def _split(value: Any, variables: Any) -> list[Any]:
    parts = backend.split(value, [math.prod(v.shape) for v in variables])
    return [p if len(v.shape) == 1 else ops.reshape(p, v.shape) for p, v in zip(parts, variables, strict=True)]
