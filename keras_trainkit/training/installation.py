"""How the helpers get around a model's `train_step`, and off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras

Model = TypeVar("Model", bound=keras.Model)

_MARK = "keras_trainkit_helper"


def install(model: Model, kind: str, around: Callable[[Any], Any]) -> Model:
    """Puts `around(train_step)` in the place of the model's `train_step`, once for each kind of helper.

    A step that has a function `undo` is given it to call when it is taken off.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    original = model.train_step
    below = getattr(original, _MARK, None)
    while below is not None:
        if below[0] == kind:
            raise ValueError(
                f"`model` has a {kind} helper around its `train_step` already; `training.plain(model)` takes it off."
            )
        below = getattr(below[1], _MARK, None)
    step = around(original)
    setattr(step, _MARK, (kind, original))
    model.train_step = step
    model.train_function = None  # one that was made before would go on with the old step
    return model


def plain(model: Model) -> Model:
    """Takes all helpers off a model again, and gives it back its own train step and train function."""
    in_parts = "make_train_function" in vars(model)
    if not in_parts and not hasattr(getattr(model, "train_step", None), _MARK):
        raise ValueError("`model` has no helper around its `train_step`.")
    if in_parts:
        del model.make_train_function
    while hasattr(model.train_step, _MARK):
        undo = getattr(model.train_step, "undo", None)
        if undo is not None:
            undo()
        model.train_step = getattr(model.train_step, _MARK)[1]
    model.train_function = None
    return model
