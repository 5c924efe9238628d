"""Traced train functions, and the steps that stand on a model for a while."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras


def trace_anew(model: Any) -> None:
    """Has the model make its train function once more: the one that there is keeps what it was traced with."""
    step = vars(model).get("train_step")
    if step is not None and keras.backend.backend() != "tensorflow":
        # JAX compiles no function twice that it knows already. A method is a new one each time that it is asked for.
        renewed = functools.partial(step)
        vars(renewed).update(getattr(step, "__dict__", {}))
        object.__setattr__(model, "train_step", renewed)
    model.make_train_function(force=True)


def has_step(model: Any, step: Any) -> bool:
    """Whether this train step is the one that stands on the model, `trace_anew` or not."""
    found = vars(model).get("train_step")
    while isinstance(found, functools.partial) and found is not step:
        found = found.func
    return found is step


def variables_of(model: Any) -> contextlib.AbstractContextManager:
    """The scope in which to make variables that the model's train step reads."""
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def take_step_off(model: Any, ours: Any, before: Any) -> None:
    """Gives the model the `train_step` that it had before ours, if ours is still there; None stands for its class's."""
    if has_step(model, ours):
        del model.train_step
        if before is not None:
            object.__setattr__(model, "train_step", before)
