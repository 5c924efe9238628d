"""Directions that use how the gradient changed since the last step."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.clipping import shrink_factor
from keras_trainkit.core.numerics import one_minus_power, squared_norm
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend


@register_transform
class ScaleByAdan(Transform):
    """Momentum of the gradient and of its change, over the root of their Nesterov blend's mean square
    (Xie et al., 2022, arXiv:2208.06677).

    The betas are the authors' code's: decays (0.98, 0.92, 0.99), where the paper writes one minus them. The first
    step's change is zero.
    """

    scope = "element"

    beta_1: float = 0.98
    beta_2: float = 0.92
    beta_3: float = 0.99
    epsilon: float = 1e-8

    def validate(self) -> None:
        for name in ("beta_1", "beta_2", "beta_3"):
            checks.number(name, getattr(self, name), at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return dict.fromkeys(["momentum", "change", "velocity", "last_gradient"], 0.0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        moved = ops.where(context.step < 1.5, ops.zeros_like(update), update - state["last_gradient"])
        momentum = blend(self.beta_1, state["momentum"], update)
        change = blend(self.beta_2, state["change"], moved)
        velocity = blend(self.beta_3, state["velocity"], ops.square(update + self.beta_2 * moved))
        debiased = momentum / one_minus_power(self.beta_1, context.step)
        ahead = self.beta_2 * change / one_minus_power(self.beta_2, context.step)
        root = ops.sqrt(velocity / one_minus_power(self.beta_3, context.step))
        new = {"momentum": momentum, "change": change, "velocity": velocity, "last_gradient": update}
        return (debiased + ahead) / (root + self.epsilon), new


@register_transform
class ReduceVariance(Transform):
    """MARS's corrected gradient: g + gamma beta_1 / (1 - beta_1) (g - g of the last step), of norm at most 1 for each
    variable (Yuan et al., 2024, arXiv:2411.10438; the approximate form, which needs no second gradient).

    The gradient before the first counts as zero, as in the authors' code.
    """

    scope = "variable"

    beta_1: float = 0.95
    gamma: float = 0.025

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("gamma", self.gamma, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"last_gradient": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        scale = self.gamma * self.beta_1 / (1 - self.beta_1)
        corrected = update + scale * (update - state["last_gradient"])
        corrected = corrected * shrink_factor(squared_norm([corrected]), 1.0, corrected.dtype)
        return corrected, {"last_gradient": update}


@register_transform
class ScaleByAdEMAMix(Transform):
    """Adam with a second, much slower momentum beside the first (Pagliardini et al., 2024, arXiv:2409.03137).

    (m_1 / (1 - beta_1^t) + alpha m_2) / (sqrt(v / (1 - beta_2^t)) + epsilon); m_2 decays by `beta_3` and is not
    debiased.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    beta_3: float = 0.9999
    alpha: float = 5.0
    epsilon: float = 1e-8

    def validate(self) -> None:
        for name in ("beta_1", "beta_2", "beta_3"):
            checks.number(name, getattr(self, name), at_least=0, below=1)
        checks.number("alpha", self.alpha, at_least=0)
        checks.number("epsilon", self.epsilon, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "slow_momentum": 0.0, "velocity": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        fast = blend(self.beta_1, state["momentum"], update)
        slow = blend(self.beta_3, state["slow_momentum"], update)
        velocity = blend(self.beta_2, state["velocity"], ops.square(update))
        mixed = fast / one_minus_power(self.beta_1, context.step) + self.alpha * slow
        root = ops.sqrt(velocity / one_minus_power(self.beta_2, context.step))
        return mixed / (root + self.epsilon), {"momentum": fast, "slow_momentum": slow, "velocity": velocity}
