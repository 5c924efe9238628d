"""For variables that begin to train later than the others: moments that know how old they are."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.transform import LeafContext, Slot, State, Tensor, Transform, register_transform


@register_transform
class CountOwnUpdates(Transform):
    """Has Adam's bias corrections count the updates of each variable, not those of the optimizer.

    The moments of a variable that was frozen for t updates begin at zero, while the corrections, which count from the
    beginning of training, are over: with betas 0.9 and 0.999 its first steps are up to 6.6 times too long (after n
    updates of its own by (1 - beta_1^n) / sqrt(1 - beta_2^n)). torch counts for each parameter; so does Adam with this
    in `after`. The displacement is multiplied with

        (1 - beta_1^t) / (1 - beta_1^n) * sqrt((1 - beta_2^n) / (1 - beta_2^t)),

    1 for a variable that is as old as the optimizer. It is exact for Adam and for what adds to its displacements later
    (the optimizer's own `weight_decay`), but for epsilon, and if the variable was frozen at the beginning only; put it
    before decays in `after`. It keeps one number for each variable.

    Args:
        beta_1: that of the optimizer, from 0 to below 1.
        beta_2: likewise.

    >>> from keras_trainkit import optimizers
    >>> optimizer = optimizers.AdamW(1e-3, after=[CountOwnUpdates(0.9, 0.999)])
    """

    scope = "variable"

    beta_1: float = 0.9
    beta_2: float = 0.999

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"updates": Slot(0.0, shape=[])}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        own = state["updates"] + 1
        all_updates = ops.cast(context.step, own.dtype)
        first = _correction(self.beta_1, all_updates) / _correction(self.beta_1, own)
        second = ops.sqrt(_correction(self.beta_2, own) / _correction(self.beta_2, all_updates))
        return update * ops.cast(first * second, update.dtype), {"updates": own}


def _correction(beta: float, count: Tensor) -> Tensor:
    """1 - beta^count, with all its digits for a beta near 1."""
    return ops.ones_like(count) if beta == 0 else -ops.expm1(count * math.log(beta))
