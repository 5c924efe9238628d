"""Which elements go: single ones by layer or over all, N of M in a row, or whole filters. Pure functions of tensors.

The weakest go first; of equal ones those that lie first. What has gone stays gone, and counts.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import widened
from keras_trainkit.pruning.geometry import Geometry

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Single elements with the smallest magnitude: of each variable, or of all variables together."""

    everywhere: bool = False

    def refuses(self, shape: Shape, geometry: Geometry) -> str | None:
        """Why a variable cannot be pruned so, or None."""
        return None

    def counts(self, shapes: list[Shape], geometries: list[Geometry], sparsity: float) -> list[int]:
        """How many are to go: of each variable, or one number for all."""
        sizes = [math.prod(shape) for shape in shapes]
        return [nearest(sparsity * size) for size in ([sum(sizes)] if self.everywhere else sizes)]

    def masks(self, values: list[Any], old: list[Any], geometries: list[Geometry], counts: Any) -> list[Any]:
        """The new masks, from the variables' values and their old masks."""
        scores = [ops.reshape(scored(ops.abs(widened(v)), m), (-1,)) for v, m in zip(values, old, strict=True)]
        if self.everywhere:
            together = strongest(ops.concatenate(scores), counts[0])
            ends = np.cumsum([math.prod(v.shape) for v in values])
            flat = [together[end - math.prod(v.shape) : end] for v, end in zip(values, ends.tolist(), strict=True)]
        else:
            flat = [strongest(score, counts[i]) for i, score in enumerate(scores)]
        return [ops.logical_and(m, ops.reshape(new, v.shape)) for new, v, m in zip(flat, values, old, strict=True)]


@dataclasses.dataclass(frozen=True)
class NOfM:
    """At most n of each m consecutive elements live, along the axis that is summed over: what sparse hardware takes."""

    n: int
    m: int

    def refuses(self, shape: Shape, geometry: Geometry) -> str | None:
        if geometry.inner is None:
            return "no single axis of it is summed over"
        if shape[geometry.inner] % self.m:
            return f"the {shape[geometry.inner]} elements along axis {geometry.inner} are no multiple of {self.m}"
        return None

    def counts(self, shapes: list[Shape], geometries: list[Geometry], sparsity: float) -> list[int]:
        return [min(nearest(sparsity * self.m), self.m - self.n)] * len(shapes)

    def masks(self, values: list[Any], old: list[Any], geometries: list[Geometry], counts: Any) -> list[Any]:
        found = []
        for i, (value, mask, geometry) in enumerate(zip(values, old, geometries, strict=True)):
            last = ops.moveaxis(scored(ops.abs(widened(value)), mask), geometry.inner, -1)
            groups = ops.reshape(last, (-1, self.m))
            living = ops.argsort(ops.argsort(groups, axis=-1), axis=-1) >= counts[i]
            living = ops.moveaxis(ops.reshape(living, last.shape), -1, geometry.inner)
            found.append(ops.logical_and(mask, living))
        return found


@dataclasses.dataclass(frozen=True)
class Filters:
    """Whole filters: all that leads to one output channel or unit. Of each variable those with the smallest norm."""

    norm: str = "l2"

    def refuses(self, shape: Shape, geometry: Geometry) -> str | None:
        return None if geometry.filters else "its elements do not belong to single output channels"

    def counts(self, shapes: list[Shape], geometries: list[Geometry], sparsity: float) -> list[int]:
        numbers = [
            math.prod(size for axis, size in enumerate(shape) if axis not in geometry.summed)
            for shape, geometry in zip(shapes, geometries, strict=True)
        ]
        return [min(nearest(sparsity * number), number - 1) for number in numbers]

    def masks(self, values: list[Any], old: list[Any], geometries: list[Geometry], counts: Any) -> list[Any]:
        found = []
        for i, (value, mask, geometry) in enumerate(zip(values, old, geometries, strict=True)):
            wide = widened(value)
            sizes = ops.square(wide) if self.norm == "l2" else ops.abs(wide)
            norms = ops.sum(ops.where(mask, sizes, ops.zeros_like(sizes)), axis=geometry.summed, keepdims=True)
            scores = scored(norms, ops.any(mask, axis=geometry.summed, keepdims=True))
            living = ops.reshape(strongest(ops.reshape(scores, (-1,)), counts[i]), scores.shape)
            found.append(ops.logical_and(mask, living))
        return found


Structure = Unstructured | NOfM | Filters


def structure_from(structure: Any, scope: str, norm: str) -> Structure:
    """The structure that the arguments of `MagnitudePruning` name."""
    checks.one_of("scope", scope, ["layer", "global"])
    checks.one_of("norm", norm, ["l1", "l2"])
    groups = re.fullmatch(r"(\d+):(\d+)", structure) if isinstance(structure, str) else None
    if scope == "global" and structure != "unstructured":
        raise ValueError(f'`scope` may be "global" only for unstructured pruning. Received: structure={structure!r}')
    if structure == "unstructured":
        return Unstructured(scope == "global")
    if structure == "filters":
        return Filters(norm)
    if groups is None or not 0 < int(groups[1]) < int(groups[2]):
        raise ValueError(
            '`structure` must be "unstructured", "filters", or N of M such as "2:4" with 0 < N < M. '
            f"Received: structure={structure!r}"
        )
    return NOfM(int(groups[1]), int(groups[2]))


def nearest(number: float) -> int:
    """The nearest whole number, halves upwards."""
    return math.floor(number + 0.5)


def scored(sizes: Any, living: Any) -> Any:
    """The sizes, at least 0, of what lives; what has gone comes before all of them."""
    return ops.where(living, sizes, -ops.ones_like(sizes))


def strongest(scores: Any, count: Any) -> Any:
    """A vector that is false for the `count` smallest scores, and true for the others."""
    order = ops.argsort(scores)
    living = ops.cast(ops.arange(scores.shape[0], dtype="int32") >= count, "int32")
    return ops.scatter(ops.expand_dims(order, -1), living, scores.shape) > 0
