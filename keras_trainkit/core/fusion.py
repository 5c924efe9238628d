"""Compiles the update: large variables in place, one program for all of a kind; small ones joined to longer vectors.

Op by op, an update streams every slot through memory a dozen times, and on small variables spends its time between the
kernels. A transform that says in its `scope` how far an element's update reaches allows better:

- `"variable"`: XLA makes one program for each shape, and TensorFlow runs it on every variable of that shape, where the
  variable lies.
- `"element"`: small variables are laid end to end first.

Whatever has no scope is computed op by op by `TransformOptimizer`, and so is everything on JAX, on several replicas,
and inside a function that XLA compiles as a whole; the results are the same to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend

SMALL = 2**15
"""Variables of fewer elements are joined; larger ones are worth a launch each."""

JOINED = 2**20
"""The elements of one joined vector: enough to make a launch cheap, few enough to need little memory."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One variable of an update.

    Attributes:
        position: in the lists of the update.
        variable: the model's.
        gradient: reduced, dense.
        own: the variables that are written beside it: its slots in their order, then its average if it has one.
        key: what a compiled program depends on, beside shapes and dtypes.
        joinable: whether each element's update stands alone.
    """

    position: int
    variable: Any
    gradient: Any
    own: list[Any]
    key: tuple
    joinable: bool

    @property
    def size(self) -> int:
        return math.prod(self.variable.shape)

    @property
    def small(self) -> bool:
        return self.size < SMALL

    def layout(self) -> tuple:
        """What two variables must share to be joined."""
        dtypes = [keras.backend.standardize_dtype(v.dtype) for v in [self.variable, self.gradient, *self.own]]
        return (self.key, *dtypes)


Compute = Callable[[int, Any, Any, list[Any], list[Any]], list[Any]]
"""(position of a variable treated alike, parameter, gradient, own values, scalars) -> new values of all but the
gradient."""


class Programs:
    """The compiled programs of one optimizer; they outlive a trace, so that eager steps find them again."""

    def __init__(self) -> None:
        self._in_place: dict[tuple, Callable] = {}
        self._pure: dict[tuple, Callable] = {}

    def run(self, items: list[Item], scalars: list[Any], compute: Compute) -> None:
        """Updates the variables of `items`, which `fits` has let through; all of them use the tensors `scalars`."""
        for item in items:
            if not item.small:
                self._run_in_place(item, scalars, compute)
        for group in _groups([item for item in items if item.small]):
            self._run_joined(group, scalars, compute)

    def _run_in_place(self, item: Item, scalars: list[Any], compute: Compute) -> None:
        def program(parameter: Any, own: list[Any], gradient: Any, scalars: list[Any]) -> None:
            values = compute(item.position, backend.read(parameter), gradient, [backend.read(v) for v in own], scalars)
            for variable, value in zip([parameter, *own], values, strict=True):
                backend.write(variable, value)

        compiled = self._in_place.setdefault(item.key, backend.compiled(program))
        own = [backend.local_copy(v) for v in item.own]
        compiled(backend.local_copy(item.variable), own, item.gradient, scalars)

    def _run_joined(self, group: list[Item], scalars: list[Any], compute: Compute) -> None:
        first = group[0]

        def program(parameter: Any, own: list[Any], gradient: Any, scalars: list[Any]) -> list[Any]:
            return compute(first.position, parameter, gradient, own, scalars)

        compiled = self._pure.setdefault(first.key, backend.compiled(program))
        parameters = _join([backend.read(item.variable) for item in group])
        own = [_join([backend.read(v) for v in column]) for column in zip(*(item.own for item in group), strict=True)]
        values = compiled(parameters, own, _join([item.gradient for item in group]), scalars)
        columns = [[item.variable for item in group], *zip(*(item.own for item in group), strict=True)]
        for variables, value in zip(columns, values, strict=True):
            for variable, part in zip(variables, _split(value, variables), strict=True):
                backend.write(variable, part)


def run_on_rows(
    position: int, variable: Any, own: list[Any], rows: Any, gradient: Any, scalars: list[Any], compute: Compute
) -> None:
    """Updates some rows of a variable and of what is written beside it; the cost does not grow with the others."""
    old = [backend.read_rows(v, rows) for v in own]
    new = compute(position, backend.read_rows(variable, rows), gradient, old, scalars)
    for target, value in zip([variable, *own], new, strict=True):
        backend.write_rows(target, rows, value)


def fits(item: Item) -> bool:
    """Whether `Programs.run` takes it: a small variable that cannot be joined is not worth a program."""
    same_shape = all(tuple(v.shape) == tuple(item.variable.shape) for v in item.own)
    return not item.small or (item.joinable and same_shape)


def _groups(items: list[Item]) -> list[list[Item]]:
    alike: dict[tuple, list[list[Item]]] = {}
    for item in items:
        groups = alike.setdefault(item.layout(), [[]])
        if sum(other.size for other in groups[-1]) + item.size > JOINED:
            groups.append([])
        groups[-1].append(item)
    return [group for groups in alike.values() for group in groups if group]


def _join(tensors: list[Any]) -> Any:
    flat = [t if len(t.shape) == 1 else ops.reshape(t, (-1,)) for t in tensors]
    return flat[0] if len(flat) == 1 else ops.concatenate(flat, axis=0)


def _split(value: Any, variables: Any) -> list[Any]:
    sizes = [math.prod(v.shape) for v in variables]
    parts = backend.split(value, sizes) if len(sizes) > 1 else [value]
    return [p if len(v.shape) == 1 else ops.reshape(p, v.shape) for p, v in zip(parts, variables, strict=True)]
