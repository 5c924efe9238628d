"""A penalty on how much a layer can stretch its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, groups
from keras_trainkit.regularizers.power_iteration import times, top_direction, transposed_times
from keras_trainkit.regularizers.soft_orthogonal import matrix_of


@keras.saving.register_keras_serializable("keras_trainkit")
class SpectralNorm(keras.regularizers.Regularizer):
    """factor / 2 times the squared spectral norm of the kernel: weight decay of its largest singular value alone.

    A layer with a small spectral norm answers small changes of its input with small changes, in every direction, while
    the other directions keep their size (l2 shrinks all). W is the kernel as a matrix (height width inputs, filters);
    `axis` names its columns. For a convolution this bounds the norm of the layer from both sides, but is not it.
    `keras.layers.SpectralNormalization` fixes the norm to 1 instead of weighing it against the loss.

    The largest singular value comes from a power iteration that is a function of the weights: it starts from a fixed
    random vector in each step. (The paper takes one iteration and keeps the vector; that would be a state to save, to
    synchronize over replicas and to pass through JAX.) The result is at most the true value; the gradient is
    factor s u v^T, with the singular value and vectors that were found.

    Reference: Yoshida and Miyato, 2017, arXiv:1705.10941, with its half; they take a factor of 0.01.

    Args:
        factor: the strength (lambda in the paper), at least 0.
        axis: an int or a list of ints, the axes whose indices name the columns; negative ones count from the end.
        iterations: products with W^T W before the one that measures, at least 1.
        seed: an int, of the vector to start from.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for weights that are no
            matrix by these axes.

    >>> kernel = keras.ops.convert_to_tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> round(float(SpectralNorm(0.1)(kernel)), 4)  # 0.1 / 2 3^2
    0.45
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
        matrix = matrix_of(x, self.axis, "SpectralNorm")
        rows, columns = matrix.shape
        tall = matrix if rows >= columns else ops.transpose(matrix)
        dtype = keras.backend.standardize_dtype(matrix.dtype)
        top = top_direction(
            lambda vector: transposed_times(tall, times(tall, vector)),
            min(rows, columns),
            dtype,
            self.iterations,
            self.seed,
        )
        return self.factor / 2 * ops.sum(ops.square(times(tall, top)))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"factor": self.factor, "axis": self.axis, "iterations": self.iterations, "seed": self.seed}
