"""Clipping of reduced gradients; Keras's `clipvalue`, `clipnorm` and `global_clipnorm` are made of these."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import squared_norm
from keras_trainkit.core.transform import Context, LeafContext, State, Tensor, Transform, register_transform


@register_transform
class ClipByValue(Transform):
    """Cuts every element of the gradient to [-limit, limit].

    >>> ClipByValue(0.5).get_config()
    {'limit': 0.5}
    """

    scope = "element"

    limit: float

    def validate(self) -> None:
        checks.number("limit", self.limit, above=0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return ops.clip(update, -self.limit, self.limit), state


@register_transform
class ClipByNorm(Transform):
    """Scales each variable's gradient down to the norm `max_norm`, if it is longer."""

    scope = "variable"

    max_norm: float

    def validate(self) -> None:
        checks.number("max_norm", self.max_norm, above=0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return update * shrink_factor(squared_norm([update]), self.max_norm, update.dtype), state


@register_transform
class ClipByGlobalNorm(Transform):
    """Scales all gradients by one factor, so that their joint norm is at most `max_norm` (Pascanu et al., 2013,
    arXiv:1211.5063)."""

    max_norm: float

    def validate(self) -> None:
        checks.number("max_norm", self.max_norm, above=0)

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        factor = self.factor(updates)
        return [u * ops.cast(factor, u.dtype) for u in updates], states

    def factor(self, updates: list[Tensor]) -> Tensor:
        """What every update is to be multiplied with; a scalar, 1 where they are short enough."""
        square = squared_norm(updates)
        return shrink_factor(square, self.max_norm, square.dtype)


def shrink_factor(square: Tensor, max_norm: float, dtype: str) -> Tensor:
    """max_norm / norm where the norm is longer than that, else 1; `square` is the norm's square."""
    return ops.cast(max_norm / ops.maximum(ops.sqrt(square), max_norm), dtype)


def clipping_from_arguments(
    clipnorm: float | None, clipvalue: float | None, global_clipnorm: float | None
) -> Transform | None:
    """The transform that Keras's three arguments ask for; at most one of them may be given."""
    given = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) > 1:
        received = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        raise ValueError(f"`clipnorm`, `clipvalue` and `global_clipnorm` exclude each other. Received: {received}")
    kinds: dict[str, Any] = {"clipnorm": ClipByNorm, "clipvalue": ClipByValue, "global_clipnorm": ClipByGlobalNorm}
    for name, value in asked.items():
        return kinds[name](checks.number(name, value, above=0))
    return None
