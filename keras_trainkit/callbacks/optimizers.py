"""What callbacks ask of the optimizer of a compiled model."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

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


def trace_anew(model: Any) -> None:
    """Has the model make its train function once more: the one that there is keeps what it was traced with."""
    model.make_train_function(force=True)


def variables_of(model: Any) -> contextlib.AbstractContextManager:
    """The scope in which to make variables that the model's train step reads."""
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()
