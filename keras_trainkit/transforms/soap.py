"""Adam in the eigenbasis of Shampoo's statistics."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.linear_algebra import eigenbasis, outer_product, rotate
from keras_trainkit.core.numerics import one_minus_power
from keras_trainkit.core.transform import LeafContext, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend


@register_transform
class ScaleBySoap(Transform):
    """Adam of gradients turned into slowly moving eigenbases (Vyas et al., 2024, arXiv:2409.11321).

    The first gradient of a variable only makes its bases, and gives no update. Every `precondition_frequency` updates
    one step of orthogonal iteration turns them. The arguments are those of `optimizers.SOAP`.
    """

    beta_1: float = 0.95
    beta_2: float = 0.95
    shampoo_beta: float | None = None
    epsilon: float = 1e-8
    precondition_frequency: int = 10
    max_precond_dim: int = 10000
    merge_dims: bool = False
    precondition_1d: bool = False
    normalize_grads: bool = False
    correct_bias: bool = True

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        if self.shampoo_beta is not None:
            checks.number("shampoo_beta", self.shampoo_beta, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.integer("precondition_frequency", self.precondition_frequency, at_least=1)
        checks.integer("max_precond_dim", self.max_precond_dim, at_least=0)
        for name in ("merge_dims", "precondition_1d", "normalize_grads", "correct_bias"):
            checks.boolean(name, getattr(self, name))

    def view(self, shape: list[int]) -> list[int]:
        """The shape in which a variable is preconditioned."""
        return merged(shape, self.max_precond_dim) if self.merge_dims and len(shape) > 1 else shape

    def axes(self, shape: list[int]) -> list[int]:
        """The axes of `view(shape)` that have a basis."""
        if len(shape) < (1 if self.precondition_1d else 2):
            return []
        return [axis for axis, size in enumerate(self.view(shape)) if size <= self.max_precond_dim]

    def slots(self, variable: Any) -> dict[str, Any]:
        shape = [int(size) for size in variable.shape]
        view = self.view(shape)
        slots: dict[str, Any] = {"momentum": 0.0, "velocity": 0.0, "gradients": Slot(0.0, [])}
        for axis in self.axes(shape):
            slots[f"statistics_{axis}"] = Slot(0.0, [view[axis], view[axis]])
            slots[f"basis_{axis}"] = Slot(0.0, [view[axis], view[axis]])
        return slots

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        shape = [int(size) for size in update.shape]
        view, axes = self.view(shape), self.axes(shape)
        seen = state["gradients"]
        first, count = ops.equal(seen, 0), ops.maximum(seen, 1)
        gradient, velocity = ops.reshape(update, view), ops.reshape(state["velocity"], view)
        bases = [state[f"basis_{axis}"] for axis in axes]
        statistics = [
            blend(self._shampoo_beta(), state[f"statistics_{axis}"], outer_product(gradient, axis)) for axis in axes
        ]

        momentum = ops.where(first, state["momentum"], blend(self.beta_1, state["momentum"], update))
        squares = ops.square(rotate(gradient, _spread(bases, axes, view)))
        velocity = ops.where(first, velocity, blend(self.beta_2, velocity, squares))
        turned = rotate(ops.reshape(momentum, view), _spread(bases, axes, view))
        direction = rotate(turned / (ops.sqrt(velocity) + self.epsilon), _spread(bases, axes, view), transposed=True)
        if self.correct_bias:
            direction *= ops.sqrt(one_minus_power(self.beta_2, count)) / one_minus_power(self.beta_1, count)
        if self.normalize_grads:
            direction /= ops.sqrt(ops.mean(ops.square(direction))) + 1e-30
        direction = ops.where(first, ops.zeros_like(direction), direction)

        # After the update, so that no gradient is turned into a basis that it has shaped.
        velocity, *bases = self._refreshed(seen, velocity, bases, statistics, axes)
        new = {
            "momentum": momentum,
            "velocity": ops.reshape(velocity, shape),
            "gradients": seen + 1,
            **{f"statistics_{axis}": matrix for axis, matrix in zip(axes, statistics, strict=True)},
            **{f"basis_{axis}": matrix for axis, matrix in zip(axes, bases, strict=True)},
        }
        return ops.reshape(direction, shape), new

    def _refreshed(
        self, seen: Tensor, velocity: Tensor, bases: list[Tensor], statistics: list[Tensor], axes: list[int]
    ) -> list[Tensor]:
        if not axes:
            return [velocity]

        def make() -> list[Tensor]:
            return [velocity, *[eigenbasis(matrix) for matrix in statistics]]

        def turn() -> list[Tensor]:
            return turned_bases(velocity, bases, statistics, axes)

        def keep() -> list[Tensor]:
            return [velocity, *bases]

        due = ops.equal(ops.mod(seen, self.precondition_frequency), 0)
        return backend.choose(due, lambda: backend.choose(ops.equal(seen, 0), make, turn), keep)

    def _shampoo_beta(self) -> float:
        return self.beta_2 if self.shampoo_beta is None else self.shampoo_beta


def turned_bases(velocity: Tensor, bases: list[Tensor], statistics: list[Tensor], axes: list[int]) -> list[Tensor]:
    """The second moment and each axis's basis after a step of orthogonal iteration, large eigenvalues first."""
    new = []
    for axis, basis, matrix in zip(axes, bases, statistics, strict=True):
        powered = ops.matmul(matrix, basis)
        estimates = ops.sum(basis * powered, axis=0)
        order = ops.argsort(-estimates)
        velocity = ops.take(velocity, order, axis=axis)
        new.append(ops.qr(ops.take(powered, order, axis=1))[0])
    return [velocity, *new]


def merged(shape: list[int], limit: int) -> list[int]:
    """Neighbouring axes joined, from the left, as long as their product is at most `limit`.

    >>> merged([3, 3, 64, 128], 1000)
    [576, 128]
    """
    sizes: list[int] = []
    current = 1
    for size in shape:
        if current * size <= limit:
            current *= size
        elif current > 1:
            sizes.append(current)
            current = size
        else:
            sizes.append(size)
    return [*sizes, current] if current > 1 or not sizes else sizes


def _spread(matrices: list[Tensor], axes: list[int], view: list[int]) -> list[Any]:
    return [matrices[axes.index(axis)] if axis in axes else None for axis in range(len(view))]
