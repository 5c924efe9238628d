"""Groups of weights, named by axes of their tensor: a unit, a filter, an input; and kernels as matrices of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import widened


def checked_axes(axis: int | Sequence[int]) -> list[int]:
    """An int, or a list of at least one, as a list of ints."""
    if isinstance(axis, (list, tuple)) and len(axis) == 0:
        raise ValueError(f"`axis` must be an integer or a list of at least one. Received: axis={axis!r}")
    return [checks.integer("axis", a) for a in (axis if isinstance(axis, (list, tuple)) else [axis])]


def axes_in(shape: Sequence[int], axis: list[int]) -> list[int]:
    """The axes counted from the front, in order, each once.

    >>> axes_in((3, 3, 8, 16), [-1, 2])
    [2, 3]
    """
    rank = len(shape)
    if any(not -rank <= a < rank for a in axis):
        raise ValueError(f"`axis` must exist in the weights, of shape {tuple(shape)}. Received: axis={axis}")
    return sorted({a % rank for a in axis})


def group_size(shape: Sequence[int], axes: list[int]) -> int:
    """How many weights share their indices along `axes`."""
    return math.prod(extent for a, extent in enumerate(shape) if a not in axes)


def safe_sqrt(x: Any) -> Any:
    """The root, with gradient 0 where `x` is 0.

    The gradient of a square root at 0 is infinite, and infinity times 0 is NaN: a layer that starts at zero would
    never train again. Zero is the subgradient of least norm there.
    """
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1)), 0)


def group_norms(weights: Any, axes: list[int], keepdims: bool = False) -> Any:
    """The l2 norms of the groups that share their indices along `axes`, at least in float32; gradient 0 at 0."""
    others = [a for a in range(len(weights.shape)) if a not in axes]
    squares = ops.square(widened(weights))
    return safe_sqrt(ops.sum(squares, axis=others, keepdims=keepdims) if others else squares)


def shrunk_groups(weights: Any, axes: list[int], threshold: Any) -> Any:
    """Each group's norm made smaller by `threshold`, and the group exactly zero where its norm is not larger.

    It is the proximal operator of `threshold` times the sum of the groups' norms.
    """
    norms = group_norms(weights, axes, keepdims=True)
    some = norms > 0
    share = ops.maximum(1 - threshold / ops.where(some, norms, 1), 0)
    return weights * ops.where(some, share, ops.where(threshold > 0, 0, ops.ones_like(share)))


def as_matrix(weights: Any, axes: list[int]) -> Any:
    """A matrix with one column for each group, at least in float32: (height width inputs, filters) of a kernel."""
    others = [a for a in range(len(weights.shape)) if a not in axes]
    wide = widened(weights)
    if axes[0] < len(others):  # else the groups' axes are the last ones already
        wide = ops.transpose(wide, [*others, *axes])
    size = group_size(weights.shape, axes)
    return ops.reshape(wide, (size, math.prod(weights.shape) // size))
