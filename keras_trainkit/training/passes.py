"""A model's outputs once more in the same train step, without a trace of it in the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend

State = list[tuple[Any, Any]]


def state_now(model: Any) -> State:
    """The values that the model's non-trainable variables have at this moment: statistics and seeds."""
    # A TensorFlow variable passes for a tensor, and would be read when it is used: after it was written.
    return [(v, ops.copy(backend.read(v))) for v in model.non_trainable_variables]


def outputs_again(model: Any, x: Any, state: State) -> tuple[Any, keras.StatelessScope]:
    """What the model gives for `x` in training, begun with `state`, and the scope that knows what it wrote.

    Nothing is written: not the statistics, not the seeds, not the losses that layers added in the first pass.
    """
    known = list(state)
    if not backend.ON_TENSORFLOW:
        # On TensorFlow the variables themselves: the tape watches those alone, and gradients of embeddings stay sparse.
        known += [(v, v.value) for v in model.trainable_variables]
    with keras.StatelessScope(state_mapping=known) as scope:
        entry = _Entry(lambda: model(x, training=True) if backend.takes_training(model) else model(x))
        entry(ops.zeros(()))
    return entry.found, scope


def seeds(model: Any) -> Iterable[Any]:
    """The variables of the model's random layers: those that count as no weights."""
    weights = {id(v) for v in model.non_trainable_weights}
    return [v for v in model.non_trainable_variables if id(v) not in weights]


class _Entry(keras.layers.Layer):
    """Stands outside of the model: the layer that is called first forgets the losses of all layers inside of it."""

    def __init__(self, function: Any) -> None:
        super().__init__(name="second_pass", dtype="float32")
        self._function = function
        self.found: Any = None

    def call(self, inputs: Any) -> Any:
        """Calls the model."""
        self.__dict__["found"] = self._function()  # past `__setattr__`, which would wrap structures
        return inputs
