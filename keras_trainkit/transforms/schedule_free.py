"""Schedule-Free learning: gradients at a blend of the fast weights and their running average."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import Slot, checks
from keras_trainkit.core.numerics import one_minus_power, wide_dtype
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend


@register_transform
class ScheduleFree(Transform):
    """From a direction u, taken at y, to the displacement of y (Defazio et al., 2024, arXiv:2405.15682).

    z = z - l u, where l is the warmed-up learning rate; x averages the z's so far with the weights
    step^r max(l)^weight_lr_power; and y = (1 - beta) z + beta x is where the next gradient is taken. The parameter is
    y, the state z, and x follows from both, so that no third copy is kept: in float32 a stored x would be no more
    exact, because each step adds one rounding to x either way. Half-precision weights cannot hold y (its steps are
    lost beside it), and for them the state holds y as well, in float32.

    The weight of the newest z is kept as the sum of all weights over the last one: for constant weights that counts
    1, 2, 3 without rounding, where a float32 sum of squared learning rates drifts.

    Args:
        beta: the blend, above 0 and below 1.
        warmup_steps: l grows in so many updates to the learning rate, which the first update gets 1/warmup_steps of.
        r: the power of the step in the weights of the average, at least 0.
        weight_lr_power: the power of the largest rate so far in them, at least 0.
    """

    scope = "element"

    beta: float = 0.9
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0

    def validate(self) -> None:
        checks.number("beta", self.beta, above=0, below=1)
        checks.integer("warmup_steps", self.warmup_steps, at_least=0)
        checks.number("r", self.r, at_least=0)
        checks.number("weight_lr_power", self.weight_lr_power, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        narrow = {"y": "copy"} if wide_dtype(dtype) != dtype else {}
        return {
            "z": "copy",
            **narrow,
            **{name: Slot(0.0, shape=[], common=True) for name in ("peak", "weight", "mass")},
        }

    def rate(self, context: LeafContext) -> Tensor:
        """The learning rate of this update."""
        if not self.warmup_steps:
            return context.learning_rate
        return context.learning_rate * ops.minimum(context.step / self.warmup_steps, 1.0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        rate = self.rate(context)
        peak = ops.maximum(state["peak"], rate)
        weight = _power(context.step, self.r) * _power(peak, self.weight_lr_power)
        mass, share = newest_share(state["weight"], weight, state["mass"])
        y, z = trained(parameter, state), state["z"]
        moved = share * (z - y) + rate * (self.beta * (1 - share) - 1) * update
        new = {"z": z - rate * update, "peak": peak, "weight": weight, "mass": mass}
        if "y" not in state:
            return moved, new
        return y + moved - parameter, {**new, "y": y + moved}

    def exchange(self, parameter: Tensor, state: State, path: str, to_evaluation: bool) -> Tensor:
        if to_evaluation:
            y = trained(parameter, state)
            return y + (1 - 1 / self.beta) * (state["z"] - y)
        return parameter + (1 - self.beta) * (state["z"] - parameter)


@register_transform
class ScheduleFreeRectified(ScheduleFree):
    """`ScheduleFree` whose rate is multiplied by RAdam's rectification term, and needs no warm-up.

    While rho, the length of the approximated simple average of the squares, is at most 4, the rate is 0 (a silent
    phase, in which the state alone moves) or, with `silent_sgd_phase=False`, the whole learning rate.
    """

    beta_2: float = 0.999
    silent_sgd_phase: bool = True

    def validate(self) -> None:
        super().validate()
        checks.number("beta_2", self.beta_2, above=0, below=1)
        checks.boolean("silent_sgd_phase", self.silent_sgd_phase)

    def rate(self, context: LeafContext) -> Tensor:
        tractable, factor = rectification(self.beta_2, context.step)
        early = ops.cast(0.0 if self.silent_sgd_phase else 1.0, factor.dtype)
        return super().rate(context) * ops.where(tractable, factor, early)


@register_transform
class ScaleBySquares(Transform):
    """g / (sqrt(v) + epsilon), where v is the debiased average of the squared gradients: Adam without momentum.

    With `rectified`, the gradient itself for as long as RAdam's rho is at most 4.
    """

    scope = "element"

    beta_2: float = 0.999
    epsilon: float = 1e-8
    rectified: bool = False

    def validate(self) -> None:
        checks.number("beta_2", self.beta_2, above=0 if self.rectified else None, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.boolean("rectified", self.rectified)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"velocity": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        velocity = blend(self.beta_2, state["velocity"], ops.square(update))
        scaled = update / (ops.sqrt(velocity / one_minus_power(self.beta_2, context.step)) + self.epsilon)
        if self.rectified:
            scaled = ops.where(rectification(self.beta_2, context.step)[0], scaled, update)
        return scaled, {"velocity": velocity}


def newest_share(last: Tensor, weight: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The new sum of the weights over the newest one, and the newest one's share of the sum; 0 for a weight of 0.

    `last` and `mass` are the weight and the returned sum of the step before.
    """
    positive = weight > 0
    safe = ops.where(positive, weight, ops.ones_like(weight))
    # Where the weight has not changed the quotient is one, whatever a compiler makes of the division.
    mass = 1 + mass * ops.where(ops.equal(last, weight), ops.ones_like(weight), last / safe)
    return ops.where(positive, mass, ops.zeros_like(mass)), ops.where(positive, 1 / mass, ops.zeros_like(mass))


def rectification(beta_2: float, step: Tensor) -> tuple[Tensor, Tensor]:
    """Whether RAdam's rho exceeds 4, and its rectification term where it does (Liu et al., 2019, arXiv:1908.03265)."""
    bias = one_minus_power(beta_2, step)
    longest = 2 / (1 - beta_2) - 1
    length = longest - 2 * step * (1 - bias) / bias
    tractable = length > 4
    safe = ops.where(tractable, length, 5.0)
    longest = longest if longest > 4 else 5.0  # otherwise never tractable
    return tractable, ops.sqrt((safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe))


def trained(parameter: Tensor, state: State) -> Tensor:
    """y: the parameter, or, where that is in half precision, the float32 value that it was rounded from."""
    if "y" not in state:
        return parameter
    # Farther away than rounding to 8 bits can take it, the parameter was set from outside, and counts.
    rounded = ops.abs(state["y"] - parameter) <= ops.abs(parameter) * 2.0**-8 + 1e-7
    return ops.where(rounded, state["y"], parameter)


def _power(base: Tensor, exponent: float) -> Tensor:
    # Also 0 to the power of 0 is 1.
    return ops.power(base, exponent) if exponent else ops.ones_like(base)
