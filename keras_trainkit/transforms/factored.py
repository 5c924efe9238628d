"""Adafactor's links: second moments kept as row and column means, and steps sized by root mean squares."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.transform import LeafContext, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend

AXES = ("last", "largest")


@register_transform
class ScaleByFactoredRms(Transform):
    """g / sqrt(v), where a matrix's v is the outer product of its row and column means (Shazeer and Stern, 2018,
    arXiv:1804.04235, algorithm 4).

    The averages decay by 1 - t^`beta_2_decay`, so that the first step needs no debiasing. Of a variable of rank 2 or
    more two axes are factored: the `"last"` two (the paper's code, Keras, torch) or the two `"largest"` (optax). The
    others, and variables of which one of the two axes is shorter than `min_dim_size_to_factor`, keep all of v.
    """

    scope = "variable"

    beta_2_decay: float = -0.8
    epsilon: float = 1e-30
    factored_axes: str = "last"
    min_dim_size_to_factor: int = 1

    def validate(self) -> None:
        checks.number("beta_2_decay", self.beta_2_decay, at_most=0)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.one_of("factored_axes", self.factored_axes, AXES)
        checks.integer("min_dim_size_to_factor", self.min_dim_size_to_factor, at_least=1)

    def slots(self, variable: Any) -> dict[str, Any]:
        shape = [int(size) for size in variable.shape]
        axes = self.axes(shape)
        if axes is None:
            return {"velocity": 0.0}
        row, column = axes
        return {"row": Slot(shape=_without(shape, column)), "column": Slot(shape=_without(shape, row))}

    def axes(self, shape: list[int]) -> tuple[int, int] | None:
        """The two axes of a shape that are factored, the first one first, or None."""
        if len(shape) < 2:
            return None
        order = list(range(len(shape)))
        if self.factored_axes == "largest":
            order.sort(key=lambda axis: shape[axis])
        row, column = sorted(order[-2:])
        return (row, column) if min(shape[row], shape[column]) >= self.min_dim_size_to_factor else None

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        decay = 1 - ops.power(context.step, self.beta_2_decay)
        square = ops.square(update)
        axes = self.axes([int(size) for size in parameter.shape])
        if axes is None:
            velocity = blend(decay, state["velocity"], square + self.epsilon)
            # Where all gradients were zero so is this one; elsewhere the smallest normal number changes nothing.
            return update * ops.rsqrt(ops.maximum(velocity, 1e-37)), {"velocity": velocity}
        row_axis, column_axis = axes
        row = blend(decay, state["row"], ops.mean(square, axis=column_axis) + self.epsilon)
        column = blend(decay, state["column"], ops.mean(square, axis=row_axis) + self.epsilon)
        return factored_quotient(update, row, column, row_axis, column_axis), {"row": row, "column": column}


@register_transform
class ClipUpdateRms(Transform):
    """Scales each variable's update down to a root mean square of `threshold` (arXiv:1804.04235, section 6)."""

    scope = "variable"

    threshold: float = 1.0

    def validate(self) -> None:
        checks.number("threshold", self.threshold, above=0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return update * (1 / ops.maximum(root_mean_square(update) / self.threshold, 1.0)), state


@register_transform
class ScaleByParameterRms(Transform):
    """Multiplies by the root mean square of the variable, at least `epsilon` (arXiv:1804.04235, section 8)."""

    scope = "variable"

    epsilon: float = 1e-3

    def validate(self) -> None:
        checks.number("epsilon", self.epsilon, at_least=0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return update * ops.maximum(root_mean_square(parameter), self.epsilon), state


@register_transform
class ScaleByRelativeRate(Transform):
    """Turns a direction into a displacement of size min(learning rate, 1 / sqrt(t)) (arXiv:1804.04235, section 9)."""

    scope = "element"

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return -ops.minimum(context.learning_rate, 1 / ops.sqrt(context.step)) * update, state


@register_transform
class AverageDisplacement(Transform):
    """An exponential average of the displacements, without debiasing: Adafactor's first moment."""

    scope = "element"

    decay: float = 0.9

    def validate(self) -> None:
        checks.number("decay", self.decay, at_least=0, below=1)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        momentum = blend(self.decay, state["momentum"], update)
        return momentum, {"momentum": momentum}


def factored_quotient(x: Tensor, row: Tensor, column: Tensor, row_axis: int, column_axis: int) -> Tensor:
    """x over the root of the rank-one second moment whose means are `row` (over `column_axis`) and `column`.

    `row_axis` comes before `column_axis`, so it has the same number in `row` as in x.
    """
    mean = ops.mean(row, axis=row_axis, keepdims=True)
    share = row / ops.where(mean > 0, mean, ops.ones_like(mean))
    # Two roots of vectors: cheaper than one of the whole, and their product need not underflow in float32.
    return x * ops.expand_dims(inverse_root(share), column_axis) * ops.expand_dims(inverse_root(column), row_axis)


def inverse_root(x: Tensor) -> Tensor:
    """1 / sqrt(x), and 0 where x is 0: without an epsilon a gradient that was always zero would be 0 / 0."""
    return ops.where(x > 0, ops.rsqrt(ops.where(x > 0, x, ops.ones_like(x))), ops.zeros_like(x))


def root_mean_square(x: Tensor) -> Tensor:
    """The root of the mean square over all elements, a scalar."""
    return ops.sqrt(backend.sum_of_squares(x) / max(1, math.prod(x.shape)))


def _without(shape: list[int], axis: int) -> list[int]:
    return shape[:axis] + shape[axis + 1 :]
