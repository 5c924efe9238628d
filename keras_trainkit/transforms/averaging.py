"""Averages of the weights that the optimizer itself steps with."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform


@register_transform
class Lookahead(Transform):
    """Slow weights that follow every `sync_period` updates, and take the fast weights back to them.

    At a synchronisation: slow = slow + slow_step_size (fast - slow), fast = slow. The slow weights start at the
    initial weights, as in the paper and TensorFlow Addons; timm's start one period later. It belongs in `after`, and
    keeps one copy of the weights.

    Reference: Zhang et al., 2019, arXiv:1907.08610.

    Args:
        sync_period: updates between synchronisations, at least 1; the paper's k.
        slow_step_size: how far the slow weights go, above 0 and at most 1; the paper's alpha.
    """

    scope = "element"

    sync_period: int = 6
    slow_step_size: float = 0.5

    def validate(self) -> None:
        checks.integer("sync_period", self.sync_period, at_least=1)
        checks.number("slow_step_size", self.slow_step_size, above=0, at_most=1)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"slow": "copy"}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        slow = state["slow"]
        due = ops.equal(ops.mod(context.step, self.sync_period), 0)
        moved = slow + self.slow_step_size * (parameter + update - slow)
        return ops.where(due, moved - parameter, update), {"slow": ops.where(due, moved, slow)}


@register_transform
class DualAverage(Transform):
    """MADGRAD: weights from the sum of all gradients, scaled by the cube root of their squares' sum
    (Defazio and Jelassi, 2021, arXiv:2101.11075).

    z = w_0 - s / (cbrt(v) + epsilon), where s and v add the gradients and their squares with the weight
    learning_rate sqrt(t); the weights move towards z by 1 - momentum. The update is the displacement, and the authors'
    code adds `epsilon` to the learning rate.
    """

    scope = "element"

    momentum: float = 0.9
    epsilon: float = 1e-6

    def validate(self) -> None:
        checks.number("momentum", self.momentum, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"initial": "copy", "gradient_sum": 0.0, "square_sum": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        # A rate of exactly zero means rest; the authors' epsilon would move the weights all the same.
        weight = ops.where(context.learning_rate > 0, context.learning_rate + self.epsilon, 0.0) * ops.sqrt(
            context.step
        )
        total = state["gradient_sum"] + weight * update
        squares = state["square_sum"] + weight * ops.square(update)
        target = state["initial"] - total / (ops.power(squares, 1 / 3) + self.epsilon)
        new = {"initial": state["initial"], "gradient_sum": total, "square_sum": squares}
        return (1 - self.momentum) * (target - parameter), new
