"""A sparsity penalty that does not shrink what stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, groups
from keras_trainkit.core.numerics import widened

SMALLEST = 1e-15
"""Weights that are all smaller than this count as zero: their squares would be lost in float32."""


@keras.saving.register_keras_serializable("keras_trainkit")
class Hoyer(keras.regularizers.Regularizer):
    """factor times sum(abs(w))^2 / sum(w^2), the "Hoyer-square" of DeepHoyer: about how many weights are not zero.

    For n weights it lies between 1, if one alone is not zero, and n, if all have the same size; half of them at zero
    and the others alike give n / 2. It does not change when all weights are multiplied by a number, so it makes small
    weights smaller and large ones larger, where l1 pulls all alike. With `axis` the weights that share an index along
    it are a group, as in `GroupLasso`, and the norms of the groups stand in place of the weights ("group-HS"): it
    counts units, filters or inputs.

    Weights come near zero, not to it: the authors set those below a threshold to zero after training, and train on.
    The penalty of weights that are all zero is 0, and so is its gradient; close to that it is steep, because the
    slope goes as one over the size of the weights.

    Reference: Yang et al., 2020, arXiv:1908.09979, without a half. `square=False` is the older ratio
    sum(abs(w)) / sqrt(sum(w^2)), from 1 to sqrt(n) (Hoyer, 2004; Krishnan et al., 2011), whose slope is smaller for
    large layers.

    Args:
        factor: the strength (alpha in the paper), at least 0. The value is as large as the number of weights, so
            factors are small: the paper's are about 1e-4 for a whole network on MNIST.
        axis: None, or an int or a list of ints, the axes whose indices name the groups; negative ones count from the
            end.
        square: whether to take the square of the ratio.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for weights without
            such an axis.

    >>> kernel = [[3.0, 0.0], [4.0, 0.0]]
    >>> round(float(Hoyer(1.0)(keras.ops.convert_to_tensor(kernel))), 4)  # (3 + 4)^2 / (9 + 16)
    1.96
    >>> float(Hoyer(1.0, axis=-1)(keras.ops.convert_to_tensor(kernel)))  # one group of two
    1.0
    """

    def __init__(self, factor: float = 1e-4, axis: int | Sequence[int] | None = None, square: bool = True) -> None:
        self.factor = checks.number("factor", factor, at_least=0)
        self.axis = None if axis is None else groups.checked_axes(axis)
        self.square = checks.boolean("square", square)

    def __call__(self, x: Any) -> Any:
        """The penalty, a scalar in at least float32, for weights `x` of any rank that has the axes."""
        wide = widened(x)
        largest = ops.stop_gradient(ops.max(ops.abs(wide)))
        some = largest > SMALLEST
        # The ratio is the same for all multiples of the weights, and so is its slope over theirs.
        unit = wide / ops.where(some, largest, 1)
        sizes = ops.abs(unit) if self.axis is None else groups.group_norms(unit, groups.axes_in(x.shape, self.axis))
        squares = ops.where(some, ops.sum(ops.square(sizes)), 1)
        ratio = ops.square(ops.sum(sizes)) / squares if self.square else ops.sum(sizes) / groups.safe_sqrt(squares)
        return self.factor * ops.where(some, ratio, 0)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"factor": self.factor, "axis": self.axis, "square": self.square}
