"""Residual branches that begin at nothing."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks


@keras.saving.register_keras_serializable("keras_trainkit")
class ReZero(keras.layers.Layer):
    """A residual branch times one learned number that starts at 0: ReZero, which is SkipInit.

    The block starts as the identity, whatever is in the branch, and a net of such blocks as its shortcuts alone, at
    any depth: signals and gradients pass, no normalization is needed, and each branch comes in as far as it helps.
    Called on a branch it multiplies; called on `[shortcut, branch]` it also adds.

    References: Bachlechner et al. 2020 (ReZero), arXiv 2003.04887; De and Smith 2020 (SkipInit), arXiv 2002.10444, who
    show that normalized residual nets start near the identity as well, and that 0 or 1 / sqrt(blocks) as
    `initial_value` do without the normalization. One number for each channel is LayerScale. In ReZero transformers
    the number is better left out of weight decay.

    Args:
        initial_value: where the number starts; 0 in both papers.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: the branch, a floating tensor of any shape, or a list `[shortcut, branch]` of two tensors of one shape.

    Returns:
        A tensor of the branch's shape, in the layer's compute dtype. A mask passes through; of two, as in Keras's
        `Add`, what either has.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when built, for inputs that are not
            one tensor or two of the same shape.

    >>> import numpy as np
    >>> block = ReZero()
    >>> np.array(block([np.ones((1, 2)), np.full((1, 2), 9.0)])).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, initial_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_value = checks.number("initial_value", initial_value)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks the shapes and makes the number."""
        shapes = _shapes(input_shape)
        if len(shapes) > 2 or len({len(shape) for shape in shapes}) > 1 or not _equal(shapes[0], shapes[-1]):
            raise ValueError(
                f"ReZero takes a branch, or [shortcut, branch] of one shape. Received: input_shape={input_shape}"
            )
        self.scale = self.add_weight(
            name="scale", shape=(), initializer=keras.initializers.Constant(self.initial_value)
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The branch times the number; added to the shortcut where there is one."""
        shortcut, branch = inputs if isinstance(inputs, (list, tuple)) else (None, inputs)
        branch = branch * ops.cast(self.scale, branch.dtype)
        return branch if shortcut is None else shortcut + branch

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask of a branch; of two inputs, what either has, or none where one has none."""
        if not isinstance(mask, (list, tuple)):
            return mask
        if any(one is None for one in mask):
            return None
        return ops.logical_or(*mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The branch's shape."""
        return tuple(_shapes(input_shape)[-1])

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "initial_value": self.initial_value}


def _shapes(input_shape: Any) -> list[Any]:
    """The shapes of one input or of a list of them."""
    several = len(input_shape) > 0 and isinstance(input_shape[0], (list, tuple))
    return list(input_shape) if several else [input_shape]


def _equal(first: Any, second: Any) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(first, second, strict=True))
