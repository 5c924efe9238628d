"""Weight decay other than the optimizer's own `weight_decay`: inside the direction, or proximal."""

from __future__ import annotations

import re

from keras_trainkit.core import checks
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, Treatment, register_transform


@register_transform
class AddDecay(Transform):
    """Adds `weight_decay` times the weights to the update, but for paths in which an `exclude` pattern is found."""

    weight_decay: float
    exclude: list

    def validate(self) -> None:
        checks.number("weight_decay", self.weight_decay, at_least=0)

    def treatment(self, path: str) -> Treatment:
        return Treatment((excluded(self.exclude, path),), True)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        if excluded(self.exclude, context.path):
            return update, state
        return update + self.weight_decay * parameter, state


@register_transform
class ProximalDecay(Transform):
    """Decay that follows the step: w = (w + d) / (1 + learning_rate weight_decay), for a displacement d.

    It is the proximal operator of the squared norm (Zhuang et al., 2022, arXiv:2202.00089), and belongs behind
    `ScaleByLearningRate`.
    """

    weight_decay: float
    exclude: list

    def validate(self) -> None:
        checks.number("weight_decay", self.weight_decay, at_least=0)

    def treatment(self, path: str) -> Treatment:
        return Treatment((excluded(self.exclude, path),), True)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        if excluded(self.exclude, context.path):
            return update, state
        return (parameter + update) / (1 + context.learning_rate * self.weight_decay) - parameter, state


def excluded(patterns: list, path: str) -> bool:
    """Whether one of the regular expressions is found in the path."""
    return any(re.search(pattern, path) for pattern in patterns)
