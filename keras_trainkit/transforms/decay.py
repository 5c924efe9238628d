"""Weight decay other than the optimizer's own `weight_decay`: inside the direction, proximal, on its own schedule."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import require_matches, require_pattern, table
from keras_trainkit.core.transform import (
    Context,
    LeafContext,
    State,
    Tensor,
    Transform,
    Treatment,
    register_transform,
)


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


@register_transform
class DecoupledDecay(Transform):
    """Shrinks the weights by a fraction that has a schedule of its own: w = w - rate_t w + d, for a displacement d.

    Unlike the optimizer's `weight_decay`, the fraction is not multiplied by the learning rate ("fully decoupled"; in
    Loshchilov and Hutter, 2017, arXiv:1711.05101, rate_t = eta_t lambda, with a schedule eta_t from 1 down). It is of
    the size of their product: 1e-3 times 0.1 is 1e-4. It belongs in `after`, and at a learning rate of 0 it still
    decays.

    Args:
        rate: a number at least 0, or a schedule, which is called with the number of updates done before.
        exclude: list of regular expressions; variables in whose path one is found do not decay.
        follow_learning_rate: multiply by the learning rate, too. Then it is the optimizer's own `weight_decay`, but as
            a link that `ScaleByPath` and `LayerwiseDecay` behind it scale, as torch's parameter groups do.

    >>> from keras_trainkit import optimizers, schedules
    >>> decay = DecoupledDecay(schedules.Cosine(1e-4, 1000), exclude=["bias"])
    >>> optimizer = optimizers.Adam(1e-3, after=[decay])
    """

    rate: Any
    exclude: list = dataclasses.field(default_factory=list)
    follow_learning_rate: bool = False

    def validate(self) -> None:
        if not isinstance(self.rate, keras.optimizers.schedules.LearningRateSchedule):
            checks.number("rate", self.rate, at_least=0)
        for pattern in self.exclude:
            require_pattern("exclude", pattern)
        checks.boolean("follow_learning_rate", self.follow_learning_rate)

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        rate = self.rate(context.step - 1) if callable(self.rate) else self.rate
        moved = []
        for update, parameter, path in zip(updates, parameters, context.paths, strict=True):
            share = ops.cast(rate, parameter.dtype) if callable(self.rate) else rate
            if self.follow_learning_rate:
                share = share * ops.cast(context.learning_rate, parameter.dtype)
            moved.append(update if excluded(self.exclude, path) else update - share * parameter)
        return moved, states

    def treatment(self, path: str) -> Treatment | None:
        # A user's schedule may do what cannot be compiled.
        return None if callable(self.rate) else Treatment((excluded(self.exclude, path),), True)


@register_transform
class CorrectedDecay(Transform):
    """Decay that keeps the gradients of normalized layers from growing as the learning rate falls: AdamC.

    Variables that match `normalized` shrink by learning_rate weight_decay (learning_rate / peak_rate) of themselves,
    all others by learning_rate weight_decay, as with `weight_decay` of the optimizer (leave that out then).
    Normalized are the weights whose output goes into a normalization layer, so that their scale does not change the
    function: in the paper all layers of the network but the last, which has none behind it. It belongs in `after`.

    Reference: Defazio, 2025, arXiv:2506.02285.

    Args:
        weight_decay: at least 0.
        peak_rate: the largest learning rate of the schedule, above 0.
        normalized: list of regular expressions, looked for in the variables' paths. One that takes no variable is an
            error when the optimizer is built.
        exclude: list of regular expressions; variables in whose path one is found do not decay at all.

    >>> from keras_trainkit import optimizers, schedules
    >>> decay = CorrectedDecay(0.1, 1e-3, normalized=["conv.*/kernel"], exclude=["bias", "gamma", "beta"])
    >>> optimizer = optimizers.Adam(schedules.Cosine(1e-3, 1000), after=[decay])
    """

    weight_decay: float
    peak_rate: float
    normalized: list
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.number("weight_decay", self.weight_decay, at_least=0)
        checks.number("peak_rate", self.peak_rate, above=0)
        for name, patterns in {"normalized": self.normalized, "exclude": self.exclude}.items():
            if not isinstance(patterns, list):
                raise TypeError(f"`{name}` must be a list of regular expressions. Received: {name}={patterns!r}")
            for pattern in patterns:
                require_pattern(name, pattern)

    def matched(self, variables: list[Any]) -> list[list[Any]]:
        """A row for each variable: its path, and `"corrected"`, `"plain"` or `"none"`."""
        return [[path, self._kind(path)] for path in map(variable_path, variables)]

    def report(self, variables: list[Any]) -> str:
        """`matched` as a table of text."""
        return table(["variable", "decay"], self.matched(variables))

    def check_variables(self, variables: list[Any]) -> None:
        require_matches("normalized", self.normalized, [variable_path(v) for v in variables])

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        kind, rate = self._kind(context.path), context.learning_rate
        if kind == "none":
            return update, state
        share = self.weight_decay * rate * (rate / self.peak_rate if kind == "corrected" else 1)
        return update - share * parameter, state

    def treatment(self, path: str) -> Treatment:
        return Treatment((self._kind(path),), True)

    def _kind(self, path: str) -> str:
        if excluded(self.exclude, path):
            return "none"
        return "corrected" if excluded(self.normalized, path) else "plain"


def excluded(patterns: list, path: str) -> bool:
    """Whether one of the regular expressions is found in the path."""
    return any(re.search(pattern, path) for pattern in patterns)
