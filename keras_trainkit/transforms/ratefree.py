"""Directions that find their own step size: from the distance travelled, or by betting."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import one_minus_power
from keras_trainkit.core.transform import Context, LeafContext, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.decay import excluded
from keras_trainkit.transforms.moments import blend


@register_transform
class ScaleByProdigy(Transform):
    """Adam with an estimate d of the distance to the solution as its rate (Mishchenko and Defazio, 2023,
    arXiv:2306.06101, algorithm 4); the updates are displacements.

    The estimate is one number for all variables that the transform is given in a step. Every variable carries it (as
    `estimate`, 0 before its first gradient), and a step takes the largest: it never falls, so a variable that had no
    gradient for a while, or has its first one late, takes part again at once. The sums that the estimate is made of
    are kept by variable, too, so those without a gradient count neither above nor below the fraction line. Under
    `partition` or `masked` the group has an estimate of its own.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    beta_3: float | None = None
    epsilon: float = 1e-8
    d0: float = 1e-6
    d_coef: float = 1.0
    growth_rate: float | None = None
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    slice_p: int = 1
    weight_decay: float = 0.0
    decouple: bool = True
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        if self.beta_3 is not None:
            checks.number("beta_3", self.beta_3, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.number("d0", self.d0, above=0)
        checks.number("d_coef", self.d_coef, above=0)
        if self.growth_rate is not None:
            checks.number("growth_rate", self.growth_rate, at_least=1)
        checks.boolean("use_bias_correction", self.use_bias_correction)
        checks.boolean("safeguard_warmup", self.safeguard_warmup)
        checks.integer("slice_p", self.slice_p, at_least=1)
        checks.number("weight_decay", self.weight_decay, at_least=0)
        checks.boolean("decouple", self.decouple)

    def slots(self, variable: Any) -> dict[str, Any]:
        sliced = None
        if self.slice_p > 1:
            sliced = [-(-math.prod(int(size) for size in variable.shape) // self.slice_p)]
        declared = {
            "momentum": 0.0,
            "velocity": 0.0,
            "weighted_sum": Slot(shape=sliced),
            "start": Slot(shape=sliced),
            "numerator": Slot(shape=[]),
            "estimate": Slot(shape=[]),
        }
        if self.growth_rate is not None:
            declared["largest_estimate"] = Slot(shape=[])
        if not self.beta_1:
            del declared["momentum"]
        return declared

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        wide = _widest(parameters)
        beta_3 = math.sqrt(self.beta_2) if self.beta_3 is None else self.beta_3
        estimate = _largest(states, "estimate", self.d0, wide)
        rate = estimate * ops.cast(context.learning_rate, wide)
        if self.use_bias_correction:
            rate = rate * _adam_correction(self.beta_1, self.beta_2, ops.cast(context.step, wide))
        # Relative to d0, or the sums would be too small for float32.
        relative = estimate / self.d0
        weight = relative * (estimate if self.safeguard_warmup else rate)
        top, bottom = ops.zeros((), wide), ops.zeros((), wide)
        gradients, new = [], []
        for update, parameter, state, path in zip(updates, parameters, states, context.paths, strict=True):
            own = parameter.dtype
            decay = 0.0 if self.decouple or excluded(self.exclude, path) else self.weight_decay
            gradient = update + decay * parameter if decay else update
            gradients.append(gradient)
            here, slope = self._sliced(parameter), self._sliced(gradient)
            # The start is where the first gradient found the variable, whenever that was and whoever put it there.
            start = ops.where(state["estimate"] > 0, state["start"], here)
            travelled = ops.cast(ops.sum(slope * (start - here)), wide)
            numerator = beta_3 * ops.cast(state["numerator"], wide) + relative * rate * travelled
            weighted = beta_3 * state["weighted_sum"] + ops.cast(weight, own) * slope
            top = top + numerator
            bottom = bottom + ops.cast(ops.sum(ops.abs(weighted)), wide)
            size = ops.cast(estimate, own)
            velocity = self.beta_2 * state["velocity"] + (1 - self.beta_2) * ops.square(size * gradient)
            made = {
                "velocity": velocity,
                "weighted_sum": weighted,
                "start": start,
                "numerator": ops.cast(numerator, own),
            }
            if self.beta_1:
                made["momentum"] = self.beta_1 * state["momentum"] + (1 - self.beta_1) * size * gradient
            new.append(made)
        found = ops.where(bottom > 0, self.d_coef * top / ops.where(bottom > 0, bottom, 1.0), 0.0)
        longer, largest = self._grown(estimate, found, states, wide)
        displacements = []
        for gradient, parameter, state, path in zip(gradients, parameters, new, context.paths, strict=True):
            own = parameter.dtype
            state["estimate"] = ops.cast(longer, own)
            if self.growth_rate is not None:
                state["largest_estimate"] = ops.cast(largest, own)
            direction = state["momentum"] if self.beta_1 else ops.cast(estimate, own) * gradient
            direction = direction / (ops.sqrt(state["velocity"]) + ops.cast(longer, own) * self.epsilon)
            if self.decouple and self.weight_decay and not excluded(self.exclude, path):
                direction = direction + self.weight_decay * parameter
            displacements.append(-ops.cast(rate, own) * direction)
        return displacements, new

    def _sliced(self, x: Tensor) -> Tensor:
        return x if self.slice_p == 1 else ops.reshape(x, [-1])[:: self.slice_p]

    def _grown(self, estimate: Tensor, found: Tensor, states: list[State], dtype: str) -> tuple[Tensor, Tensor]:
        """The next estimate, and the largest one found so far."""
        if self.growth_rate is None:
            largest = ops.maximum(estimate, found)
            return largest, largest
        largest = ops.maximum(_largest(states, "largest_estimate", self.d0, dtype), found)
        # The first step away from d0 is not limited.
        untouched = estimate <= self.d0 * (1 + 1e-6)
        limit = ops.where(untouched, ops.maximum(estimate, found), estimate) * self.growth_rate
        return ops.minimum(largest, limit), largest


@register_transform
class ScaleByDAdaptAdam(Transform):
    """Adam with D-Adaptation's lower bound d of the distance to the solution as its rate (Defazio and Mishchenko,
    2023, arXiv:2301.07733, algorithm 5); the updates are displacements.

    The estimate is kept as `ScaleByProdigy` keeps its own: by variable, the largest counts.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    d0: float = 1e-6
    growth_rate: float | None = None
    use_bias_correction: bool = False
    weight_decay: float = 0.0
    decouple: bool = True
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, above=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.number("d0", self.d0, above=0)
        if self.growth_rate is not None:
            checks.number("growth_rate", self.growth_rate, at_least=1)
        checks.boolean("use_bias_correction", self.use_bias_correction)
        checks.number("weight_decay", self.weight_decay, at_least=0)
        checks.boolean("decouple", self.decouple)

    def slots(self, variable: Any) -> dict[str, Any]:
        whole = dict.fromkeys(["momentum", "velocity", "weighted_sum"], 0.0)
        return whole | {"numerator": Slot(shape=[]), "estimate": Slot(shape=[])}

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        wide = _widest(parameters)
        slow = math.sqrt(self.beta_2)
        estimate = _largest(states, "estimate", self.d0, wide)
        rate = estimate * ops.cast(context.learning_rate, wide)
        if self.use_bias_correction:
            rate = rate * _adam_correction(self.beta_1, self.beta_2, ops.cast(context.step, wide))
        top, bottom = ops.zeros((), wide), ops.zeros((), wide)
        displacements, new = [], []
        for update, parameter, state, path in zip(updates, parameters, states, context.paths, strict=True):
            own = parameter.dtype
            decay = 0.0 if excluded(self.exclude, path) else self.weight_decay
            gradient = update + decay * parameter if decay and not self.decouple else update
            size = ops.cast(rate, own)
            preconditioned = state["weighted_sum"] / (ops.sqrt(state["velocity"]) + self.epsilon)
            progress = ops.cast(ops.sum(gradient * preconditioned), wide)
            numerator = blend(slow, ops.cast(state["numerator"], wide), rate * progress)
            weighted = blend(slow, state["weighted_sum"], size * gradient)
            momentum = blend(self.beta_1, state["momentum"], size * gradient)
            velocity = blend(self.beta_2, state["velocity"], ops.square(gradient))
            top = top + numerator
            bottom = bottom + ops.cast(ops.sum(ops.abs(weighted)), wide)
            # The rate is in the momentum, so what remains of it must be stopped where the rate is 0.
            moves = ops.cast(context.learning_rate > 0, own)
            displacement = -moves * momentum / (ops.sqrt(velocity) + self.epsilon)
            displacements.append(displacement - size * decay * parameter if decay and self.decouple else displacement)
            new.append({
                "momentum": momentum,
                "velocity": velocity,
                "weighted_sum": weighted,
                "numerator": ops.cast(numerator, own),
            })  # fmt: skip
        found = ops.where(bottom > 0, top / ((1 - slow) * ops.where(bottom > 0, bottom, 1.0)), 0.0)
        if self.growth_rate is not None:
            found = ops.minimum(found, estimate * self.growth_rate)
        longer = ops.maximum(estimate, found)
        for parameter, state in zip(parameters, new, strict=True):
            state["estimate"] = ops.cast(longer, parameter.dtype)
        return displacements, new


@register_transform
class BetCoins(Transform):
    """Each element bets a share of its wealth on the sign of its next gradient (Orabona and Tommasi, 2017,
    arXiv:1705.07795, algorithm 2); the update is minus the change of the bet.

    L is the largest gradient so far (from `epsilon` on), G the sum of their sizes, S their sum and R the reward, at
    least 0; the bet is -S (R + L) / (L max(G + L, alpha L)).
    """

    scope = "element"

    alpha: float = 100.0
    epsilon: float = 1e-8

    def validate(self) -> None:
        checks.number("alpha", self.alpha, above=0)
        checks.number("epsilon", self.epsilon, above=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"largest": self.epsilon, "size_sum": 0.0, "gradient_sum": 0.0, "reward": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        last = bet(state, self.alpha)
        size = ops.abs(update)
        new = {
            "largest": ops.maximum(state["largest"], size),
            "size_sum": state["size_sum"] + size,
            "gradient_sum": state["gradient_sum"] + update,
            "reward": ops.maximum(state["reward"] - update * last, 0.0),
        }
        return last - bet(new, self.alpha), new


def bet(state: State, alpha: float) -> Tensor:
    """What the wealth and the gradients so far make each element bet."""
    largest = state["largest"]
    limit = ops.maximum(state["size_sum"] + largest, alpha * largest)
    return -state["gradient_sum"] / largest * ((state["reward"] + largest) / limit)


def _widest(parameters: list[Tensor]) -> str:
    return "float64" if any("float64" in str(p.dtype) for p in parameters) else "float32"


def _largest(states: list[State], name: str, least: float, dtype: str) -> Tensor:
    values = [ops.cast(state[name], dtype) for state in states]
    return ops.maximum(ops.max(ops.stack(values)), least)


def _adam_correction(beta_1: float, beta_2: float, step: Tensor) -> Tensor:
    return ops.sqrt(one_minus_power(beta_2, step)) / one_minus_power(beta_1, step)
