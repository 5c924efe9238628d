"""A penalty that keeps a kernel near an orthogonal matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, groups


def matrix_of(weights: Any, axis: list[int], name: str) -> Any:
    """The weights as a matrix whose columns `axis` names, at least in float32."""
    axes = groups.axes_in(weights.shape, axis)
    if not 0 < len(axes) < len(weights.shape):
        raise ValueError(
            f"{name} needs weights with at least two axes, and one that `axis` leaves. Received: axis={axis} with "
            f"weights of shape {tuple(weights.shape)}"
        )
    return groups.as_matrix(weights, axes)


@keras.saving.register_keras_serializable("keras_trainkit")
class SoftOrthogonal(keras.regularizers.Regularizer):
    """factor times the squared Frobenius norm of W^T W - I: columns that are orthogonal, and of length 1.

    W is the kernel as a matrix (height width inputs, filters); `axis` names its columns. If there are more columns than
    rows, they cannot all be orthogonal, and the smallest value is their difference times the factor; the rows are then.
    The doubled form of the paper adds the squared norm of W W^T - I. For any W the two terms differ by that constant
    difference, so `double=True` is the same penalty with twice the factor, plus a constant; it is here so that the
    paper's factors can be used. Both are computed from the smaller of the two products.

    Keras's `OrthogonalRegularizer` is another penalty: the mean absolute cosine between rows (or columns) of a matrix
    of rank 2. It asks nothing of their lengths, takes no convolution kernels, and its slope does not grow with the
    distance from orthogonality. The singular values that come out here are 1, so it goes well with
    `keras.initializers.Orthogonal`, and badly with `weight_decay` on the same kernels: leave that out.

    Reference: Bansal et al., 2018, arXiv:1810.09102, sections 3.1 (soft orthogonality) and 3.2 (double soft
    orthogonality), without a half; many codes have one.

    Args:
        factor: the strength (lambda in the paper), at least 0.
        axis: an int or a list of ints, the axes whose indices name the columns; negative ones count from the end. -1
            is right for the kernels of `Dense` and `Conv`, 0 for the vectors of an `Embedding`.
        double: whether to add the product on the other side.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for weights that are no
            matrix by these axes.

    >>> kernel = keras.ops.convert_to_tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> float(SoftOrthogonal(1.0)(kernel))  # (2^2 - 1)^2
    9.0
    >>> float(SoftOrthogonal(1.0, double=True)(kernel))  # 9 + 9 + (3 - 2)
    19.0
    """

    def __init__(self, factor: float = 0.01, axis: int | Sequence[int] = -1, double: bool = False) -> None:
        self.factor = checks.number("factor", factor, at_least=0)
        self.axis = groups.checked_axes(axis)
        self.double = checks.boolean("double", double)

    def __call__(self, x: Any) -> Any:
        """The penalty, a scalar in at least float32, for weights `x` of at least two axes."""
        matrix = matrix_of(x, self.axis, "SoftOrthogonal")
        rows, columns = matrix.shape
        # The products on both sides have the same eigenvalues, but for zeros.
        tall = matrix if rows >= columns else ops.transpose(matrix)
        product = ops.matmul(ops.transpose(tall), tall)
        smaller = ops.sum(ops.square(product - ops.eye(min(rows, columns), dtype=product.dtype)))
        if self.double:
            return self.factor * (2 * smaller + abs(rows - columns))
        return self.factor * (smaller + max(columns - rows, 0))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"factor": self.factor, "axis": self.axis, "double": self.double}
