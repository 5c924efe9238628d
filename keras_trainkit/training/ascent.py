"""The maths of sharpness-aware training: where to take the second gradient, and what to make of the two."""

from __future__ import annotations

import dataclasses
import numbers
import re
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import wide_dtype

Tensor = Any
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Ascent:
    """SAM: up the gradient by the distance `rho`, and the gradient from there.

    Attributes:
        rho: a number at least 0, or a schedule of the updates done.
        synchronized: whether the gradients are summed over the replicas before they tell the direction.
    """

    rho: Any
    synchronized: bool = True

    def __post_init__(self) -> None:
        if not callable(self.rho):
            checks.number("rho", self.rho, at_least=0)
        checks.boolean("synchronized", self.synchronized)

    def radius(self, step: Any) -> Any:
        """`rho` after `step` updates."""
        return self.rho(step) if callable(self.rho) else self.rho

    def offsets(self, parameters: list[Tensor], gradients: list[Tensor], paths: list[str], radius: Any) -> list[Tensor]:
        """What to add to each parameter before the second gradient is taken."""
        return scaled_to(gradients, radius)

    def combined(self, first: list[Tensor], second: list[Tensor]) -> list[Tensor] | None:
        """The gradients to step with; None for the second ones as they are."""
        return None


@dataclasses.dataclass(frozen=True)
class AdaptiveAscent(Ascent):
    """ASAM: the distance is measured relative to the size of the weights."""

    eta: float = 0.01
    exclude: tuple = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("eta", self.eta, at_least=0)
        for pattern in self.exclude:
            re.compile(pattern)

    def offsets(self, parameters: list[Tensor], gradients: list[Tensor], paths: list[str], radius: Any) -> list[Tensor]:
        scales = [
            ops.ones_like(p) if any(re.search(e, path) for e in self.exclude) else ops.abs(p) + self.eta
            for p, path in zip(parameters, paths, strict=True)
        ]
        relative = scaled_to([s * g for s, g in zip(scales, gradients, strict=True)], radius)
        return [s * r for s, r in zip(scales, relative, strict=True)]


@dataclasses.dataclass(frozen=True)
class SurrogateAscent(Ascent):
    """GSAM: also away from where only the first gradient falls."""

    alpha: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("alpha", self.alpha, at_least=0)

    def combined(self, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
        return [s - self.alpha * v for s, v in zip(second, orthogonal(first, second), strict=True)]


@dataclasses.dataclass(frozen=True)
class LookAscent(Ascent):
    """LookSAM: SAM in every `every`-th update; between them the last one's change of direction is used again."""

    every: int = 5
    alpha: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer("every", self.every, at_least=1)
        checks.number("alpha", self.alpha, at_least=0)

    def reused(self, first: list[Tensor], turn: list[Tensor]) -> list[Tensor]:
        """The first gradients, turned by `turn` in proportion to their length."""
        ratio = self.alpha * norm(first) / ops.maximum(norm(turn), _TINY)
        return [f + ops.cast(ratio, f.dtype) * t for f, t in zip(first, turn, strict=True)]


def scaled_to(tensors: list[Tensor], radius: Any) -> list[Tensor]:
    """The tensors scaled to the joint norm `radius`; zeros stay zeros."""
    length = norm(tensors)
    wanted = radius if isinstance(radius, numbers.Real) else ops.cast(radius, length.dtype)
    return [t * ops.cast(wanted / ops.maximum(length, _TINY), t.dtype) for t in tensors]


def orthogonal(tensors: list[Tensor], to: list[Tensor]) -> list[Tensor]:
    """What is left of `tensors` without their part along `to`, all of a list taken as one vector."""
    share = dot(tensors, to) / ops.maximum(dot(to, to), _TINY)
    return [t - ops.cast(share, t.dtype) * o for t, o in zip(tensors, to, strict=True)]


def dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The inner product of two lists, each taken as one vector."""
    wide = "float64" if any(wide_dtype(t.dtype) == "float64" for t in first) else "float32"
    return sum(ops.sum(ops.cast(a, wide) * ops.cast(b, wide)) for a, b in zip(first, second, strict=True))


def norm(tensors: list[Tensor]) -> Tensor:
    """The norm of a list taken as one vector."""
    return ops.sqrt(dot(tensors, tensors))
