"""Steps that stay in a set without projecting onto it."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, Treatment, register_transform

NORMS = ("fro", "nuclear")


@register_transform
class FrankWolfeStep(Transform):
    """A step of size `learning_rate` towards the point of a ball that the gradient points away from (Frank and Wolfe,
    1956); the update is the displacement.

    The ball of each variable has its centre at 0 and the radius `lambda_`, in the Frobenius or the nuclear norm (the
    sum of the singular values, of a variable flattened to its last axis; of vectors and scalars both are the
    Euclidean). Where the gradient is 0 the centre is the aim.
    """

    lambda_: float = 1.0
    epsilon: float = 1e-7
    ord: str = "fro"

    def validate(self) -> None:
        checks.number("lambda_", self.lambda_, above=0)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.one_of("ord", self.ord, NORMS)

    def treatment(self, path: str) -> Treatment | None:
        # XLA's singular value decomposition is far slower on a CPU than TensorFlow's own.
        return Treatment((), False) if self.ord == "fro" else None

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        if self.ord == "nuclear" and len(update.shape) > 1:
            extreme = top_singular_pair(update)
        else:
            extreme = unit(update, self.epsilon)
        return -context.learning_rate * (parameter + self.lambda_ * extreme), state


def unit(x: Tensor, epsilon: float) -> Tensor:
    """x / (norm(x) + epsilon), whatever the size of x; 0 for 0."""
    largest = ops.max(ops.abs(x))
    safe = ops.where(largest > 0, largest, ops.ones_like(largest))
    # Squares of very large or small numbers leave float32's range, those of their quotients do not.
    scaled = x / safe
    norm = ops.sqrt(ops.sum(ops.square(scaled)))
    return scaled / ops.where(largest > 0, norm + epsilon / safe, ops.ones_like(norm))


def top_singular_pair(x: Tensor) -> Tensor:
    """u v' of the largest singular value of x, flattened to its last axis, in x's shape; 0 for 0."""
    largest = ops.max(ops.abs(x))
    matrix = ops.reshape(x / ops.where(largest > 0, largest, ops.ones_like(largest)), [-1, x.shape[-1]])
    left, _, right = _svd(matrix)
    pair = ops.reshape(left[:, :1] * right[:1, :], x.shape)
    return ops.where(largest > 0, pair, ops.zeros_like(pair))


def _svd(matrix: Tensor) -> Any:
    return ops.svd(matrix, full_matrices=False)
