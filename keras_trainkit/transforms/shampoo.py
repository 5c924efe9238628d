"""Shampoo: Kronecker-factored preconditioning in blocks, with the size of another method's step."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.linear_algebra import inverse_root, transpose
from keras_trainkit.core.numerics import one_minus_power
from keras_trainkit.core.transform import LeafContext, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend
from keras_trainkit.transforms.soap import merged

GRAFTING = ("none", "sgd", "adagrad", "rmsprop", "adam")


@register_transform
class ScaleByShampoo(Transform):
    """Momentum multiplied along each axis by an inverse root of the gradients' covariance (Gupta et al., 2018).

    The arguments are those of `optimizers.Shampoo`.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    block_size: int = 1024
    merge_dims: bool = True
    precondition_frequency: int = 10
    start_preconditioning_step: int | None = None
    exponent_override: float | None = None
    grafting: str = "adam"
    grafting_beta_2: float = 0.999
    grafting_epsilon: float = 1e-8

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, at_most=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.integer("block_size", self.block_size, at_least=1)
        checks.boolean("merge_dims", self.merge_dims)
        checks.integer("precondition_frequency", self.precondition_frequency, at_least=1)
        if self.start_preconditioning_step is not None:
            checks.integer("start_preconditioning_step", self.start_preconditioning_step, at_least=1)
        if self.exponent_override is not None:
            checks.number("exponent_override", self.exponent_override, above=0)
        checks.one_of("grafting", self.grafting, GRAFTING)
        checks.number("grafting_beta_2", self.grafting_beta_2, at_least=0, below=1)
        checks.number("grafting_epsilon", self.grafting_epsilon, at_least=0)

    def blocks(self, shape: list[int]) -> Blocks:
        """How a variable of this shape is cut."""
        view = shape or [1]
        if self.merge_dims and len(view) > 2:
            view = [*merged(view[:-1], self.block_size), view[-1]]
        return Blocks(view, self.block_size)

    def slots(self, variable: Any) -> dict[str, Any]:
        blocks = self.blocks([int(size) for size in variable.shape])
        slots: dict[str, Any] = {"gradients": Slot(0.0, [])}
        if self.beta_1:
            slots["momentum"] = 0.0
        if self.grafting in ("adagrad", "rmsprop", "adam"):
            slots["velocity"] = 0.0
        for axis, size in enumerate(blocks.sizes):
            slots[f"statistics_{axis}"] = Slot(0.0, [blocks.count, size, size])
            slots[f"root_{axis}"] = Slot(0.0, [blocks.count, size, size])
        return slots

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        shape = [int(size) for size in update.shape]
        blocks = self.blocks(shape)
        count = state["gradients"] + 1
        new: State = {"gradients": count}
        mean = update
        if self.beta_1:
            new["momentum"] = blend(self.beta_1, state["momentum"], update)
            mean = new["momentum"] / one_minus_power(self.beta_1, count)
        graft = blocks.cut(self._graft(update, mean, state, count, new))

        axes = range(len(blocks.sizes))
        gradient = blocks.cut(update)
        statistics = [self._gathered(state[f"statistics_{axis}"], block_outer(gradient, axis)) for axis in axes]
        roots = self._roots(statistics, [state[f"root_{axis}"] for axis in axes], count)
        for axis in axes:
            new[f"statistics_{axis}"], new[f"root_{axis}"] = statistics[axis], roots[axis]

        direction = blocks.cut(mean)
        for axis in axes:
            direction = multiply_blocks(direction, roots[axis], axis)
        if self.grafting != "none":
            direction = direction * norm_ratio(graft, direction)
        started = count >= self._start()
        return blocks.join(ops.where(started, direction, graft), shape), new

    def _graft(self, update: Tensor, mean: Tensor, state: State, count: Tensor, new: State) -> Tensor:
        if self.grafting in ("none", "sgd"):
            return mean
        beta = self.grafting_beta_2
        squares = ops.square(update)
        if self.grafting == "adagrad":
            velocity = state["velocity"] + squares
        else:
            velocity = blend(beta, state["velocity"], squares)
        new["velocity"] = velocity
        if self.grafting == "adam":
            velocity = velocity / one_minus_power(beta, count)
        return mean / (ops.sqrt(velocity) + self.grafting_epsilon)

    def _gathered(self, statistics: Tensor, outer: Tensor) -> Tensor:
        return statistics + outer if self.beta_2 == 1 else blend(self.beta_2, statistics, outer)

    def _roots(self, statistics: list[Tensor], roots: list[Tensor], count: Tensor) -> list[Tensor]:
        power = self.exponent_override or 2 * len(statistics)
        # A debiased average, as the authors have it; the factor is the same for all, so it stands outside of the root.
        bias = 1.0 if self.beta_2 == 1 else one_minus_power(self.beta_2, count)

        def refresh() -> list[Tensor]:
            return [inverse_root(matrix / bias, power, self.epsilon) for matrix in statistics]

        since = count - self._start()
        due = ops.logical_and(since >= 0, ops.equal(ops.mod(since, self.precondition_frequency), 0))
        return backend.choose(due, refresh, lambda: list(roots))

    def _start(self) -> int:
        return self.start_preconditioning_step or self.precondition_frequency


class Blocks:
    """A tensor cut along all axes into equal blocks, filled up with zeros.

    Attributes:
        sizes: the shape of one block.
        count: the number of blocks.
    """

    def __init__(self, view: list[int], limit: int) -> None:
        self.view = view
        self.counts = [math.ceil(size / limit) for size in view]
        self.sizes = [math.ceil(size / count) for size, count in zip(view, self.counts, strict=True)]
        self.count = math.prod(self.counts)

    def cut(self, x: Tensor) -> Tensor:
        """A tensor of shape (blocks, *sizes)."""
        x = ops.reshape(x, self.view)
        if self.count == 1:
            return ops.expand_dims(x, 0)
        missing = [[0, c * s - n] for c, s, n in zip(self.counts, self.sizes, self.view, strict=True)]
        x = ops.pad(x, missing) if any(after for _, after in missing) else x
        paired = [size for pair in zip(self.counts, self.sizes, strict=True) for size in pair]
        rank = len(self.view)
        x = ops.transpose(ops.reshape(x, paired), [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])
        return ops.reshape(x, [self.count, *self.sizes])

    def join(self, x: Tensor, shape: list[int]) -> Tensor:
        """The tensor of `shape` whose blocks these are."""
        if self.count == 1:
            return ops.reshape(x, shape)
        rank = len(self.view)
        x = ops.reshape(x, [*self.counts, *self.sizes])
        x = ops.transpose(x, [axis for i in range(rank) for axis in (i, rank + i)])
        x = ops.reshape(x, [c * s for c, s in zip(self.counts, self.sizes, strict=True)])
        return ops.reshape(x[tuple(slice(size) for size in self.view)], shape)


def block_outer(blocks: Tensor, axis: int) -> Tensor:
    """For each block the sum of its products with itself over all axes but one."""
    moved = ops.moveaxis(blocks, axis + 1, 1)
    flat = ops.reshape(moved, (*[int(size) for size in moved.shape[:2]], -1))
    return ops.matmul(flat, transpose(flat))


def multiply_blocks(blocks: Tensor, matrices: Tensor, axis: int) -> Tensor:
    """Each block multiplied along one axis by its symmetric matrix."""
    moved = ops.moveaxis(blocks, axis + 1, 1)
    shape = [int(size) for size in moved.shape]
    flat = ops.matmul(matrices, ops.reshape(moved, (*shape[:2], -1)))
    return ops.moveaxis(ops.reshape(flat, shape), 1, axis + 1)


def norm_ratio(wanted: Tensor, given: Tensor) -> Tensor:
    """For each block the norm of `wanted` over that of `given`, 0 where `given` is zero."""
    axes = tuple(range(1, len(given.shape)))
    top = ops.sqrt(ops.sum(ops.square(wanted), axis=axes, keepdims=True))
    bottom = ops.sqrt(ops.sum(ops.square(given), axis=axes, keepdims=True))
    return ops.where(bottom > 0, top / ops.where(bottom > 0, bottom, ops.ones_like(bottom)), ops.zeros_like(top))
