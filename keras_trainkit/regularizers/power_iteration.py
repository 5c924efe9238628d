"""The direction in which a linear map stretches most, without a state that would have to be saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import groups


def top_direction(product: Callable[[Any], Any], size: int, dtype: str, iterations: int, seed: int) -> Any:
    """A unit vector near the eigenvector of largest absolute eigenvalue of a symmetric map; without gradient.

    Each call starts from the same random vector, which depends on `seed` and `size` alone: the result is a function of
    the map, the same on all replicas and backends and after a resumption. Where the map gives zero the vector stays.
    """
    start = np.random.default_rng(seed).normal(size=size)
    vector = ops.convert_to_tensor(start / np.linalg.norm(start), dtype=dtype)
    for _ in range(iterations):
        longer = ops.stop_gradient(product(vector))
        length = groups.safe_sqrt(ops.sum(ops.square(longer)))
        vector = ops.where(length > 0, longer / ops.where(length > 0, length, 1), vector)
    return ops.stop_gradient(vector)


def times(matrix: Any, vector: Any) -> Any:
    """The product of a matrix and a vector."""
    return ops.matmul(matrix, vector)


def transposed_times(matrix: Any, vector: Any) -> Any:
    """The product of a matrix's transpose and a vector."""
    return ops.matmul(vector, matrix)
