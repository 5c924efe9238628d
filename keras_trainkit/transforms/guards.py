"""Vetoes: updates that are not trusted are left out."""

from __future__ import annotations

from keras import ops

from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform


@register_transform
class Cautious(Transform):
    """Keeps only those elements of the displacement that go downhill on this step's gradient.

    The kept elements of each variable are scaled by one over their share (at least 0.001), as in the authors'
    C-AdamW and timm; the authors' C-Lion normalises otherwise. It belongs in `after`, behind the learning rate.

    Reference: Liang et al., 2024, arXiv:2411.16085.
    """

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        mask = ops.cast(update * context.gradient < 0, update.dtype)
        return update * (mask / ops.maximum(ops.mean(mask), 1e-3)), state
