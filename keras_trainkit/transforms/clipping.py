"""Limits on the gradient, by value, by norm, and by the size of the weights."""

from __future__ import annotations

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.clipping import ClipByGlobalNorm, ClipByNorm, ClipByValue
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform

__all__ = ["AdaptiveClip", "ClipByGlobalNorm", "ClipByNorm", "ClipByValue"]


@register_transform
class AdaptiveClip(Transform):
    """Adaptive gradient clipping: limits each unit's gradient to a fraction of the unit's weights.

    A unit is all that feeds one index of the last axis (one output of a dense or convolution kernel); a vector or
    scalar is one unit. Where norm(g) > clip_factor max(norm(w), epsilon), g is scaled down to that bound.

    Reference: Brock et al., 2021, arXiv:2102.06171. Their best networks leave the last layer unclipped: use
    `core.masked(AdaptiveClip(), "head", invert=True)`. Their code takes the units of a kernel of rank 3 along
    axis 0, ours (with torch's implementations) all axes but the last.

    Args:
        clip_factor: the bound's fraction, above 0; the paper uses 0.01 to 0.16, the smaller the larger the batch.
        epsilon: the smallest weight norm that counts, so that zero weights can start to move.
    """

    scope = "variable"

    clip_factor: float = 0.01
    epsilon: float = 1e-3

    def validate(self) -> None:
        checks.number("clip_factor", self.clip_factor, above=0)
        checks.number("epsilon", self.epsilon, above=0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        limit = self.clip_factor * ops.maximum(_unit_norm(parameter), self.epsilon)
        norm = _unit_norm(update)
        return update * (limit / ops.maximum(norm, limit)), state


def _unit_norm(x: Tensor) -> Tensor:
    axes = tuple(range(len(x.shape) - 1)) if len(x.shape) > 1 else None
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
