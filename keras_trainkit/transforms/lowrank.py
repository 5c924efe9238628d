"""Adam's step sizes from a random low-rank image of the gradient."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras import ops

from keras_trainkit.core import checks, randomness
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.linear_algebra import transpose
from keras_trainkit.core.numerics import one_minus_power
from keras_trainkit.core.transform import Context, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend
from keras_trainkit.transforms.orthogonal import check_layouts, from_matrices, layout_of, matrix_shape, to_matrices

SCALINGS = ("channel", "tensor")

_TINY = 1e-8  # the authors', below norms that divide


@register_transform
class ScaleByLowRankAdam(Transform):
    """The gradient times factors that Adam would give it, seen through a random projection to `rank` dimensions.

    The arguments are those of `optimizers.APOLLO`, whose docstring holds the maths. Every variable must have at least
    two axes; `layouts` says how to see it as a matrix, as `Orthogonalize` takes it.
    """

    rank: int = 256
    scale: float = 1.0
    scaling: str = "channel"
    update_interval: int = 200
    growth_limit: float | None = 1.01
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    seed: int = 0
    layouts: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.integer("rank", self.rank, at_least=1)
        checks.number("scale", self.scale, above=0)
        checks.one_of("scaling", self.scaling, SCALINGS)
        checks.integer("update_interval", self.update_interval, at_least=1)
        if self.growth_limit is not None:
            checks.number("growth_limit", self.growth_limit, above=0)
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.integer("seed", self.seed)
        check_layouts(self.layouts)

    def check_variables(self, variables: list[Any]) -> None:
        for variable in variables:
            if len(variable.shape) < 2:
                path, shape = variable_path(variable), tuple(variable.shape)
                raise ValueError(f"`ScaleByLowRankAdam` takes matrices. Received: `{path}` of shape {shape}")

    def slots(self, variable: Any) -> dict[str, Any]:
        shape = [int(size) for size in variable.shape]
        layout = layout_of(variable_path(variable), shape, self.layouts)
        inputs, outputs = matrix_shape(shape, layout)
        stack = math.prod(shape) // (inputs * outputs)
        moment = Slot(shape=[stack, self.rank, max(inputs, outputs)])
        slots: dict[str, Any] = {"momentum": moment, "velocity": moment}
        if self.growth_limit is not None:
            slots["norm"] = Slot(shape=[])
        return slots

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        pairs = [
            self._scaled(i, update, state, context)
            for i, (update, state) in enumerate(zip(updates, states, strict=True))
        ]
        return [update for update, _ in pairs], [state for _, state in pairs]

    def _scaled(self, number: int, update: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        shape = [int(size) for size in update.shape]
        layout = layout_of(context.paths[number], shape, self.layouts)
        stack = to_matrices(update, layout)
        tall = stack.shape[-2] > stack.shape[-1]
        wide = transpose(stack) if tall else stack
        # The same numbers for the whole interval: regenerated, they cost no memory and need no refresh.
        interval = (context.step - 1) // self.update_interval
        size = [self.rank, int(wide.shape[-2])]
        projection = randomness.normal(size, self.seed, interval, number, update.dtype) / math.sqrt(self.rank)
        seen = ops.matmul(projection, wide)
        momentum = blend(self.beta_1, state["momentum"], seen)
        velocity = blend(self.beta_2, state["velocity"], ops.square(seen))
        new = {"momentum": momentum, "velocity": velocity}
        axes = -2 if self.scaling == "channel" else (-2, -1)
        scaled = wide * (_norm(momentum / (ops.sqrt(velocity) + self.epsilon), axes) / (_norm(seen, axes) + _TINY))
        if self.growth_limit is not None:
            norm, last = ops.sqrt(ops.sum(ops.square(scaled))), state["norm"]
            limit = ops.where(last > 0, self.growth_limit * (last + _TINY), norm)
            shrink = ops.where(norm > limit, limit / ops.where(norm > limit, norm, ops.ones_like(norm)), 1.0)
            scaled, new["norm"] = scaled * shrink, norm * shrink
        step = ops.cast(context.step, update.dtype)
        # As in the authors' code the debiasing comes after the limit, which therefore holds back the first steps.
        debiasing = ops.sqrt(one_minus_power(self.beta_2, step)) / one_minus_power(self.beta_1, step)
        scaled = scaled * (math.sqrt(self.scale) * debiasing)
        return from_matrices(transpose(scaled) if tall else scaled, shape, layout), new


def _norm(x: Tensor, axes: Any) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
