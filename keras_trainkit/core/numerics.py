"""Numbers kept exact where plain float32 arithmetic loses digits."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend


def wide_dtype(dtype: str) -> str:
    """The dtype in which to compute for values of `dtype`: at least float32, float64 stays.

    >>> wide_dtype("bfloat16"), wide_dtype("float64")
    ('float32', 'float64')
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def widened(tensor: Any) -> Any:
    """The tensor in the dtype in which to compute for it."""
    return ops.cast(tensor, wide_dtype(tensor.dtype))


def one_minus_power(beta: float, step: Any) -> Any:
    """1 - beta**step, the debiasing factor of an exponential average, for a floating tensor `step`.

    Written with expm1, because in float32 the difference 1 - 0.999**1 keeps only five digits.
    """
    if beta == 0:
        return ops.ones_like(step)
    return -ops.expm1(step * math.log(beta))


def squared_norm(tensors: list[Any]) -> Any:
    """The sum of squares over all tensors, in the widest of their dtypes and at least float32; a scalar."""
    wide = "float64" if any(wide_dtype(t.dtype) == "float64" for t in tensors) else "float32"
    return sum(backend.sum_of_squares(ops.cast(tensor, wide)) for tensor in tensors)
