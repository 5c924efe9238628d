"""Steps that end in a proximal operator: penalties solved exactly, not followed by their slope."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform


@register_transform
class ProximalAdagradStep(Transform):
    """An Adagrad step, then the proximal operator of the l1 and l2 penalties at each element's own rate (Duchi and
    Singer, 2009); the update is the displacement.
    """

    scope = "element"

    initial_accumulator_value: float = 0.1
    l1: float = 0.0
    l2: float = 0.0

    def validate(self) -> None:
        checks.number("initial_accumulator_value", self.initial_accumulator_value, at_least=0)
        checks.number("l1", self.l1, at_least=0)
        checks.number("l2", self.l2, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"accumulator": self.initial_accumulator_value}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        total = state["accumulator"] + ops.square(update)
        known = total > 0
        rate = ops.where(known, context.learning_rate / ops.sqrt(ops.where(known, total, ops.ones_like(total))), 0.0)
        return elastic_net(parameter - rate * update, rate, self.l1, self.l2) - parameter, {"accumulator": total}


def elastic_net(x: Tensor, rate: Tensor, l1: float, l2: float) -> Tensor:
    """The w that minimizes (w - x)^2 / (2 rate) + l1 abs(w) + l2 w^2 / 2: exactly zero where abs(x) <= rate l1."""
    return ops.sign(x) * ops.maximum(ops.abs(x) - rate * l1, 0.0) / (1 + rate * l2)
