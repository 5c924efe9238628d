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
