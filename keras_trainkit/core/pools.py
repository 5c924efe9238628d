"""Pools: the slots of many small variables lie end to end in one, so that one program can update them all.

A step on many small variables spends its time between the kernels. Parameters and gradients belong to the model and
are joined anew for each update; state that lies joined from the start need not be. Each model variable still has slots
of its own, as `Part`s, for all that reads, saves or writes them one by one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend

SMALL = 2**15
"""Variables of fewer elements are pooled; larger ones are worth a launch each."""

LARGEST = 2**20
"""The elements of one pool: enough to make a launch cheap, few enough to need little memory while they are joined."""

FEWEST = 4
"""Fewer variables than these are not worth a pool."""


class Part(backend.Stored):
    """One model variable's share of a pooled slot; it reads and assigns as a variable does.

    Args:
        whole: the pooled slot, of one dimension.
        start: where the share begins.
        shape: the model variable's.
        path: what the slot would be called if it were a variable.
    """

    def __init__(self, whole: keras.Variable, start: int, shape: Iterable[int], path: str) -> None:
        self.whole = whole
        self.shape = tuple(shape)
        self.dtype = whole.dtype
        self.path = path
        self.name = path.rpartition("/")[2]
        self._start = start
        self._size = math.prod(self.shape)

    @property
    def value(self) -> Any:
        """The share as a tensor."""
        return ops.reshape(backend.read(self.whole)[self._start : self._start + self._size], self.shape)

    def assign(self, value: Any) -> None:
        """Replaces the share and leaves the others as they are."""
        value = ops.cast(ops.convert_to_tensor(value), self.dtype)
        if tuple(value.shape) != self.shape:
            raise ValueError(f"`value` must have the shape {self.shape} of `{self.path}`. Received: {value.shape}")
        backend.write_range(self.whole, self._start, ops.reshape(value, (-1,)))

    def numpy(self) -> np.ndarray:
        """The share as an array."""
        return np.asarray(ops.convert_to_numpy(self.value))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        return (
            self.value if dtype is None else backend.read(ops.cast(self.value, keras.backend.standardize_dtype(dtype)))
        )

    def __repr__(self) -> str:
        return f"<Part path={self.path}, shape={self.shape}, dtype={self.dtype} of {self.whole.path}>"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Model variables whose slots lie together.

    Attributes:
        indices: of the variables, in the order of their parts.
        own: the pooled slots, then the pooled average if there is one.
        averages: the variables' averages, where each must be a variable; else empty.
    """

    indices: list[int]
    own: list[keras.Variable]
    averages: list[keras.Variable] = dataclasses.field(default_factory=list)


def plan(candidates: list[tuple[int, int, Hashable]]) -> list[list[int]]:
    """Groups of variables to be pooled.

    Args:
        candidates: (index, number of elements, what all variables of a pool must share) of each variable that may be.

    >>> plan([(0, 10, "a"), (1, 2**15, "a"), (2, 5, "a"), (3, 7, "b"), (4, 5, "a"), (5, 1, "a")])
    [[0, 2, 4, 5]]
    """
    alike: dict[Hashable, list[list[int]]] = {}
    sizes = {index: size for index, size, _ in candidates}
    for index, size, kind in candidates:
        if size >= SMALL:
            continue
        groups = alike.setdefault(kind, [[]])
        if sum(sizes[other] for other in groups[-1]) + size > LARGEST:
            groups.append([])
        groups[-1].append(index)
    return [group for groups in alike.values() for group in groups if len(group) >= FEWEST]


def parts(whole: keras.Variable, shapes: list[tuple[int, ...]], paths: list[str]) -> list[Part]:
    """The shares of a pooled slot, one for each shape."""
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    return [Part(whole, int(s), shape, path) for s, shape, path in zip(starts, shapes, paths, strict=False)]
