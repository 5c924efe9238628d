"""Layer-wise trust ratios: steps in proportion to the weights they change."""

from __future__ import annotations

import dataclasses

from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.numerics import squared_norm
from keras_trainkit.core.transform import Context, LeafContext, State, Tensor, Transform, Treatment, register_transform
from keras_trainkit.transforms.decay import excluded


@register_transform
class ScaleByTrustRatio(Transform):
    """Scales each variable's direction to the norm of the variable: u norm(w) / norm(u).

    Reference: You et al., 2019, arXiv:1904.00962.

    The ratio is 1 where either norm is zero.
    """

    scope = "variable"

    def treatment(self, path: str) -> Treatment:
        return Treatment((), False)

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        # The ratios of all variables at once: on small ones, the arithmetic of scalars is what takes time.
        weights, steps = _squared_norms(parameters), _squared_norms(updates)
        ratios = ops.sqrt(ops.divide_no_nan(weights, steps))
        ratios = ops.unstack(ops.where(ratios > 0, ratios, ops.ones_like(ratios)), len(updates))
        return [u * ops.cast(ratio, u.dtype) for u, ratio in zip(updates, ratios, strict=True)], states


@register_transform
class ScaleByLarsRatio(Transform):
    """LARS's ratio of gradients: (g + decay w) trust norm(w) / (norm(g) + decay norm(w) + epsilon) (You et al., 2017,
    arXiv:1708.03888).

    The ratio is 1 where either norm is zero.
    """

    trust_coefficient: float = 1e-3
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.number("trust_coefficient", self.trust_coefficient, above=0)
        checks.number("weight_decay", self.weight_decay, at_least=0)
        checks.number("epsilon", self.epsilon, at_least=0)

    def treatment(self, path: str) -> Treatment:
        return Treatment((excluded(self.exclude, path),), False)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        weight, gradient = _norm(parameter, update), _norm(update, update)
        decay = 0.0 if excluded(self.exclude, context.path) else self.weight_decay
        known = ops.logical_and(weight > 0, gradient > 0)
        bottom = ops.where(known, gradient + decay * weight + self.epsilon, ops.ones_like(gradient))
        ratio = ops.where(known, self.trust_coefficient * weight / bottom, ops.ones_like(bottom))
        return (update + decay * parameter) * ratio, state


def _squared_norms(tensors: list[Tensor]) -> Tensor:
    norms = [squared_norm([tensor]) for tensor in tensors]
    wide = "float64" if any(backend.dtype(norm) == "float64" for norm in norms) else "float32"
    return ops.stack([ops.cast(norm, wide) for norm in norms])


def _norm(x: Tensor, like: Tensor) -> Tensor:
    return ops.cast(ops.sqrt(squared_norm([x])), like.dtype)
