"""Numbers kept exact where plain float32 arithmetic loses digits."""

from __future__ import annotations

import math
import operator
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


class Live:
    """A number that is only known in the graph, such as one that follows a schedule; a drop-in for a Python float.

    It takes the dtype of the tensor that it is combined with, as Python's floats do. It counts as true, and as equal to
    no constant, so that code which leaves a term out for 0 keeps it.
    """

    __array_ufunc__ = None  # so that NumPy leaves the operation to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def like(self, other: Any) -> Any:
        """The tensor, in the dtype of `other` where that is a tensor."""
        return ops.cast(self.value, other.dtype) if hasattr(other, "dtype") else self.value

    def log(self) -> Live:
        """The natural logarithm."""
        return Live(ops.log(self.value))

    def __repr__(self) -> str:
        return "<a hyperparameter that follows a schedule, where only a constant will do>"

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: Any) -> bool:
        return False

    def __float__(self) -> float:
        raise TypeError("a hyperparameter that follows a schedule was needed as a constant: this one cannot follow one")

    def _with(self, other: Any, function: Any, swapped: bool = False) -> Any:
        if isinstance(other, Live):
            return Live(function(self.value, other.value))
        if not hasattr(other, "dtype"):
            return Live(function(other, self.value) if swapped else function(self.value, other))
        own = self.like(other)
        return function(other, own) if swapped else function(own, other)

    def __neg__(self) -> Live:
        return Live(-self.value)

    def __add__(self, other: Any) -> Any:
        return self._with(other, operator.add)

    def __radd__(self, other: Any) -> Any:
        return self._with(other, operator.add, swapped=True)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, operator.sub, swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, operator.mul)

    def __rmul__(self, other: Any) -> Any:
        return self._with(other, operator.mul, swapped=True)

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, operator.truediv)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, operator.truediv, swapped=True)

    def __pow__(self, other: Any) -> Any:
        return self._with(other, operator.pow)

    def __rpow__(self, other: Any) -> Any:
        return self._with(other, operator.pow, swapped=True)


def constant_like(number: Any, tensor: Any) -> Any:
    """A Python number as it is, a `Live` one as a tensor of the dtype of `tensor`: for functions of `keras.ops`."""
    return number.like(tensor) if isinstance(number, Live) else number


def one_minus_power(beta: Any, step: Any) -> Any:
    """1 - beta**step, the debiasing factor of an exponential average, for a floating tensor `step`.

    Written with expm1, because in float32 the difference 1 - 0.999**1 keeps only five digits.
    """
    if beta == 0:
        return ops.ones_like(step)
    return -ops.expm1(step * (beta.log() if isinstance(beta, Live) else math.log(beta)))


def squared_norm(tensors: list[Any]) -> Any:
    """The sum of squares over all tensors, in the widest of their dtypes and at least float32; a scalar."""
    squares = squared_norms(tensors)
    return sum(squares[1:], start=squares[0]) if squares else ops.zeros((), "float32")


def squared_norms(tensors: list[Any]) -> list[Any]:
    """The sum of squares of each tensor, in the widest of their dtypes and at least float32; scalars."""
    wide = "float64" if any(wide_dtype(t.dtype) == "float64" for t in tensors) else "float32"
    return [backend.sum_of_squares(ops.cast(tensor, wide)) for tensor in tensors]
