"""Linear algebra of stacks of matrices, in `keras.ops`: orthogonal factors, eigenbases, inverse roots, solves."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

Tensor = Any

# With three the error in float32 is that of the plain steps, for matrices of any spectrum; with five ten times that.
_STEPS_ON_GRAM = 3


def transpose(x: Tensor) -> Tensor:
    """The last two axes in the other order."""
    return ops.swapaxes(x, -1, -2)


def newton_schulz(
    x: Tensor, coefficients: list[float], steps: int, epsilon: float = 1e-7, significand_bits: int | None = None
) -> Tensor:
    """The orthogonal factor U V^T of each matrix x = U S V^T, nearly: its singular values lie about 1.

    x / norm(x) goes `steps` times through the odd polynomial a x + b (x x^T) x + c (x x^T)^2 x. The author's
    a = 3.4445, b = -4.7750, c = 2.0315 with 5 steps trade exactness for speed: singular values above 0.005 of the
    Frobenius norm end between 0.68 and 1.16, never all at 1.

    Where one side is more than one and a half times the other, the polynomials of a few steps are multiplied out in the
    square matrix x x^T first (the Gram form; https://tridao.me/blog/2026/gram-newton-schulz/): the same numbers to
    rounding, for two thirds of the work where the sides are as 4 to 1.

    Args:
        x: shape (..., rows, columns).
        coefficients: a, b and c.
        steps: how often to apply the polynomial.
        epsilon: the least norm to divide by, so that zero stays zero.
        significand_bits: round after each operation to so many binary digits, as a narrow floating format would; 8
            gives the numbers of bfloat16. None keeps the tensor's own.

    Returns:
        A tensor of the shape of `x`.
    """
    a, b, c = coefficients
    rows, columns = sorted((int(x.shape[-2]), int(x.shape[-1])))

    def rounded(value: Tensor) -> Tensor:
        return value if significand_bits is None else round_significand(value, significand_bits)

    tall = x.shape[-2] > x.shape[-1]
    x = rounded(transpose(x) if tall else x)
    norm = rounded(ops.sqrt(ops.sum(ops.square(x), axis=(-2, -1), keepdims=True)))
    x = rounded(x / ops.maximum(norm, epsilon))
    if significand_bits is None and 2 * columns > 3 * rows:
        x = _gram_newton_schulz(x, coefficients, steps)
        return transpose(x) if tall else x
    for _ in range(steps):
        gram = rounded(ops.matmul(x, transpose(x)))
        polynomial = rounded(b * gram + c * ops.matmul(gram, gram))
        x = rounded(a * x + ops.matmul(polynomial, x))
    return transpose(x) if tall else x


def _gram_newton_schulz(x: Tensor, coefficients: list[float], steps: int) -> Tensor:
    """The steps of `newton_schulz` for wide x, a few at a time.

    Each step multiplies x by a polynomial of x x^T; these commute, so their product, and x x^T after each, need no x.
    What rounding adds to an eigenvalue of zero grows by a^2 a step, therefore it begins anew with x before long.
    """
    a, b, c = coefficients
    identity = ops.eye(int(x.shape[-2]), dtype=x.dtype)
    while steps > 0:
        gram, product = ops.matmul(x, transpose(x)), None
        for left in reversed(range(min(steps, _STEPS_ON_GRAM))):
            polynomial = a * identity + b * gram + c * ops.matmul(gram, gram)
            product = polynomial if product is None else ops.matmul(polynomial, product)
            if left:
                gram = ops.matmul(ops.matmul(polynomial, gram), polynomial)
        x = ops.matmul(product, x)
        steps -= _STEPS_ON_GRAM
    return x


def round_significand(x: Tensor, bits: int) -> Tensor:
    """`x` rounded to `bits` binary digits (Veltkamp's splitting); casts there and back could be optimized away."""
    digits = 53 if keras.backend.standardize_dtype(x.dtype) == "float64" else 24
    spread = x * float(2 ** (digits - bits) + 1)
    return spread - (spread - x)


def eigenbasis(matrix: Tensor) -> Tensor:
    """The eigenvectors of a symmetric positive semidefinite matrix as columns, those of large eigenvalues first.

    Where the matrix is singular, any basis of its null space would do, and rounding would choose it: another machine,
    backend or number of replicas another one. So it is chosen here, as the eigenvectors of diag(1 ... n) within that
    space. Signs, and the vectors of equal positive eigenvalues, remain open.
    """
    values, vectors = ops.eigh(matrix)
    size = int(matrix.shape[-1])
    largest = ops.maximum(values[..., -1:], 0.0)
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    null = values <= 16 * machine_epsilon(matrix.dtype) * math.sqrt(size) * largest
    kept = ops.where(null, ops.zeros_like(values), values / largest)
    empty = vectors * ops.expand_dims(ops.cast(null, vectors.dtype), -2)
    projector = ops.matmul(empty, transpose(vectors))
    order = ops.expand_dims(ops.cast(ops.arange(1, size + 1), vectors.dtype), -1) / size
    chosen = ops.matmul(vectors * ops.expand_dims(kept, -2), transpose(vectors)) - ops.matmul(
        projector, order * projector
    )
    return ops.flip(ops.eigh(0.5 * (chosen + transpose(chosen)))[1], axis=-1)


def machine_epsilon(dtype: Any) -> float:
    """The distance from 1 to the next number."""
    return 2.0**-52 if keras.backend.standardize_dtype(dtype) == "float64" else 2.0**-23


def rotate(x: Tensor, matrices: list[Any], transposed: bool = False) -> Tensor:
    """Multiplies each axis i of `x` by the rows of `matrices[i]` (by the columns, `transposed`); None leaves it.

    For a matrix x and two matrices P and Q it is P^T x Q, transposed P x Q^T.
    """
    for matrix in matrices:
        # The first axis goes last each time, so that all are where they were in the end.
        if matrix is None:
            x = ops.moveaxis(x, 0, -1)
        else:
            x = ops.tensordot(x, matrix, axes=[[0], [1 if transposed else 0]])
    return x


def outer_product(x: Tensor, axis: int) -> Tensor:
    """The sum of products of `x` with itself over all axes but one: x x^T for axis 0 of a matrix, x^T x for axis 1."""
    others = [i for i in range(len(x.shape)) if i != axis]
    return ops.tensordot(x, x, axes=[others, others])


def inverse_root(matrix: Tensor, power: float, epsilon: float) -> Tensor:
    """(A + epsilon top I)^(-1/power) of symmetric positive semidefinite matrices, `top` the largest eigenvalue of each.

    Rounding can take small eigenvalues below zero; they count as zero. The root of a zero matrix is the identity.
    """
    values, vectors = ops.eigh(matrix)
    top = ops.maximum(values[..., -1:], 0.0)
    known = top > 0
    safe = ops.where(known, ops.maximum(values, 0.0) + epsilon * top, ops.ones_like(values))
    return ops.matmul(vectors * ops.expand_dims(ops.power(safe, -1.0 / power), -2), transpose(vectors))


def spectral_norm_bound(matrix: Tensor) -> Tensor:
    """A lower bound of a symmetric matrix's largest absolute eigenvalue, near it: two steps from the longest column."""
    largest = ops.max(ops.abs(matrix))
    scale = ops.where(largest > 0, largest, ops.ones_like(largest))
    scaled = matrix / scale
    column = ops.take(scaled, ops.argmax(ops.sum(ops.square(scaled), axis=0)), axis=1)
    first = ops.sum(ops.expand_dims(column, 1) * scaled, axis=0)
    length = ops.sqrt(ops.sum(ops.square(first)))
    first = first / ops.where(length > 0, length, ops.ones_like(length))
    return scale * ops.sqrt(ops.sum(ops.square(ops.sum(scaled * first, axis=1))))
