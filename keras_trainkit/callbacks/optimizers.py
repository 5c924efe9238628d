"""What callbacks ask of the optimizer of a compiled model."""

from __future__ import annotations

from typing import Any

from keras_trainkit.core import TransformOptimizer


def innermost(optimizer: Any) -> Any:
    """The optimizer inside a LossScaleOptimizer, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def of_the_kit(callback: Any) -> TransformOptimizer:
    """The model's optimizer, which must be one of the kit's."""
    optimizer = innermost(callback.model.optimizer)
    if not isinstance(optimizer, TransformOptimizer):
        raise TypeError(
            f"`{type(callback).__name__}` needs an optimizer of keras_trainkit; `optimizers.wrap` makes one of any "
            f"other. Received: {type(optimizer).__name__}"
        )
    return optimizer
