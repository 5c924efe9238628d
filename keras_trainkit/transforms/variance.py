"""Second moments that are not Adam's: of the surprise, of additive steps, of a norm, of the past alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import one_minus_power, squared_norm
from keras_trainkit.core.transform import LeafContext, Slot, State, Tensor, Transform, Treatment, register_transform
from keras_trainkit.transforms.decay import excluded
from keras_trainkit.transforms.moments import blend, debiased_direction, rectified


@register_transform
class ScaleByBelief(Transform):
    """Momentum over the root of the mean squared surprise, (g - m)^2 (Zhuang et al., 2020, arXiv:2010.07468).

    With `rectify` the step is RAdam's: momentum alone until the variance is tractable, rectified afterwards.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-16
    rectify: bool = False

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, above=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.boolean("rectify", self.rectify)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "surprise": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        momentum = blend(self.beta_1, state["momentum"], update)
        surprise = blend(self.beta_2, state["surprise"], ops.square(update - momentum)) + self.epsilon
        new = {"momentum": momentum, "surprise": surprise}
        if self.rectify:
            return rectified(momentum, surprise, self.beta_1, self.beta_2, self.epsilon, context.step, 5.0), new
        return debiased_direction(momentum, surprise, self.beta_1, self.beta_2, self.epsilon, context.step, False), new


@register_transform
class ScaleByYogi(Transform):
    """Adam whose second moment moves by g^2 at most, up or down (Zaheer et al., NeurIPS 2018)."""

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-3
    initial_momentum: float = 1e-6
    initial_accumulator_value: float = 1e-6
    epsilon_hat: bool = False

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.number("initial_momentum", self.initial_momentum)
        checks.number("initial_accumulator_value", self.initial_accumulator_value, at_least=0)
        checks.boolean("epsilon_hat", self.epsilon_hat)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": self.initial_momentum, "velocity": self.initial_accumulator_value}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        momentum = blend(self.beta_1, state["momentum"], update)
        square = ops.square(update)
        velocity = state["velocity"] - (1 - self.beta_2) * ops.sign(state["velocity"] - square) * square
        direction = debiased_direction(
            momentum, velocity, self.beta_1, self.beta_2, self.epsilon, context.step, self.epsilon_hat
        )
        return direction, {"momentum": momentum, "velocity": velocity}


@register_transform
class ScaleByNAdam(Transform):
    """Adam with Nesterov's momentum and the paper's momentum schedule (Dozat, 2016).

    The momentum of step t is beta_1 (1 - 0.5 * 0.96^(t momentum_decay)), as in torch.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    momentum_decay: float = 4e-3

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.number("momentum_decay", self.momentum_decay, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "velocity": 0.0, "product": Slot(1.0, shape=[], common=True)}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        now, then = self._momentum(context.step), self._momentum(context.step + 1)
        product = state["product"] * now
        momentum = blend(self.beta_1, state["momentum"], update)
        velocity = blend(self.beta_2, state["velocity"], ops.square(update))
        ahead = update * ((1 - now) / (1 - product)) + momentum * (then / (1 - product * then))
        root = ops.sqrt(velocity / one_minus_power(self.beta_2, context.step))
        return ahead / (root + self.epsilon), {"momentum": momentum, "velocity": velocity, "product": product}

    def _momentum(self, step: Tensor) -> Tensor:
        return self.beta_1 * (1 - 0.5 * ops.exp(step * (self.momentum_decay * math.log(0.96))))


@register_transform
class ScaleByAdamax(Transform):
    """Adam with the largest recent gradient in place of the root mean square (Kingma and Ba, 2014, section 7.1)."""

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "norm": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        momentum = blend(self.beta_1, state["momentum"], update)
        norm = ops.maximum(self.beta_2 * state["norm"], ops.abs(update))
        direction = momentum / one_minus_power(self.beta_1, context.step) / (norm + self.epsilon)
        return direction, {"momentum": momentum, "norm": norm}


@register_transform
class ScaleByAdopt(Transform):
    """Adam that divides by the second moment of the steps before, and takes the momentum of the quotients
    (Taniguchi et al., 2024, arXiv:2411.02853).

    The first step only fills the second moment. Quotients of step t are cut to (t - 1)^`clip_exponent`.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.9999
    epsilon: float = 1e-6
    clip_exponent: float = 0.25

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.number("clip_exponent", self.clip_exponent, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "velocity": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        first = context.step < 1.5
        square = ops.square(update)
        limit = ops.power(ops.maximum(context.step - 1, 1.0), self.clip_exponent)
        quotient = update / ops.maximum(ops.sqrt(state["velocity"]), self.epsilon)
        momentum = blend(self.beta_1, state["momentum"], ops.clip(quotient, -limit, limit))
        momentum = ops.where(first, state["momentum"], momentum)
        velocity = ops.where(first, square, blend(self.beta_2, state["velocity"], square))
        return ops.where(first, ops.zeros_like(momentum), momentum), {"momentum": momentum, "velocity": velocity}


@register_transform
class ScaleByNovoGrad(Transform):
    """Momentum of gradients divided by their own layer's norm (Ginsburg et al., 2019, arXiv:1905.11286).

    One second moment for each variable: v = norm(g)^2 at step 1, then v = beta_2 v + (1 - beta_2) norm(g)^2; and
    m = beta_1 m + g / (sqrt(v) + epsilon) + weight_decay w, times 1 - beta_1 with `grad_averaging`.
    """

    beta_1: float = 0.95
    beta_2: float = 0.98
    epsilon: float = 1e-8
    grad_averaging: bool = False
    weight_decay: float = 0.0
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.boolean("grad_averaging", self.grad_averaging)
        checks.number("weight_decay", self.weight_decay, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "velocity": Slot(0.0, shape=[])}

    def treatment(self, path: str) -> Treatment:
        return Treatment((excluded(self.exclude, path),), False)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        square = ops.cast(squared_norm([update]), update.dtype)
        velocity = ops.where(context.step < 1.5, square, blend(self.beta_2, state["velocity"], square))
        share = 1 - self.beta_1 if self.grad_averaging else 1.0
        decay = 0.0 if excluded(self.exclude, context.path) else self.weight_decay
        normalized = update / (ops.sqrt(velocity) + self.epsilon) + decay * parameter
        momentum = self.beta_1 * state["momentum"] + share * normalized
        return momentum, {"momentum": momentum, "velocity": velocity}
