"""The spectral form of the penalty for orthogonal kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, groups
from keras_trainkit.regularizers.power_iteration import times, top_direction, transposed_times
from keras_trainkit.regularizers.soft_orthogonal import matrix_of


@keras.saving.register_keras_serializable("keras_trainkit")
class SRIP(keras.regularizers.Regularizer):
    """factor times the spectral norm of W^T W - I, by power iteration: the worst direction only.

    The norm is the largest distance of a squared singular value of W from 1, so the penalty pulls the one singular
    value that is off most ("spectral restricted isometry property"), where `SoftOrthogonal` pulls all of them. W is the
    kernel as a matrix (height width inputs, filters); `axis` names its columns. If there are more columns than rows,
    the product is W W^T, since W^T W - I always has the eigenvalue -1 then, with gradient 0.

    The power iteration is a function of the weights: it starts from a fixed random vector in each step, in place of
    the paper's fresh one, and takes more iterations. The result is at most the true norm. No gradient flows through
    the iteration, only through the last product; that is the norm's own gradient once the vector has converged. At an
    orthogonal W the gradient is 0.

    Reference: Bansal et al., 2018, arXiv:1810.09102, section 3.4, which has no half and no square; there is code
    that squares the norm. The paper's factor falls in stages to 0 during training, which
    `callbacks.HyperparameterSchedule(regularization=...)` does.

    Args:
        factor: the strength (lambda in the paper), at least 0.
        axis: an int or a list of ints, the axes whose indices name the columns; negative ones count from the end. -1
            is right for the kernels of `Dense` and `Conv`, 0 for the vectors of an `Embedding`.
        iterations: products with W^T W - I before the one that measures, at least 1; the paper has 1.
        seed: an int, of the vector to start from.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for weights that are no
            matrix by these axes.

    >>> kernel = keras.ops.convert_to_tensor([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    >>> round(float(SRIP(1.0)(kernel)), 4)  # 2^2 - 1 is more than 1 - 0.5^2
    3.0
    """

    def __init__(
        self, factor: float = 0.01, axis: int | Sequence[int] = -1, iterations: int = 10, seed: int = 0
    ) -> None:
        self.factor = checks.number("factor", factor, at_least=0)
        self.axis = groups.checked_axes(axis)
        self.iterations = checks.integer("iterations", iterations, at_least=1)
        self.seed = checks.integer("seed", seed, at_least=0)

    def __call__(self, x: Any) -> Any:
        """The penalty, a scalar in at least float32, for weights `x` of at least two axes."""
        matrix = matrix_of(x, self.axis, "SRIP")
        rows, columns = matrix.shape
        tall = matrix if rows >= columns else ops.transpose(matrix)

        def off(vector: Any) -> Any:
            return transposed_times(tall, times(tall, vector)) - vector

        dtype = keras.backend.standardize_dtype(matrix.dtype)
        worst = top_direction(off, min(rows, columns), dtype, self.iterations, self.seed)
        # The length of the product, not the quotient of Rayleigh: eigenvalues of both signs cancel in that.
        return self.factor * groups.safe_sqrt(ops.sum(ops.square(off(worst))))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"factor": self.factor, "axis": self.axis, "iterations": self.iterations, "seed": self.seed}
