"""Gradients with their mean taken off."""

from __future__ import annotations

from keras import ops

from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform


@register_transform
class Centralize(Transform):
    """Gradient centralization: takes the mean off each unit's gradient.

    A unit is all that feeds one index of the last axis; vectors and scalars pass unchanged.

    Reference: Yong et al., 2020, arXiv:2004.01461.
    """

    scope = "variable"

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        if len(update.shape) < 2:
            return update, state
        return update - ops.mean(update, axis=tuple(range(len(update.shape) - 1)), keepdims=True), state
