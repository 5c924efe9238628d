"""A small regression, and the weights that its updates go through."""

import keras
import numpy as np
from keras import ops

from keras_trainkit.testing import contracts

_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(64, 5)).astype("float32")
Y = np.tanh(X @ _RNG.normal(size=(5, 3))).astype("float32")


def small_model(optimizer):
    model = contracts.small_model(optimizer)
    if keras.backend.backend() == "jax":
        model.compile(optimizer, "mse", jit_compile=True)  # each step op by op takes JAX a second
    return model


def train(model, *callbacks, epochs=3, validate=False, **options):
    options = {"x": X, "y": Y, "batch_size": 16, "shuffle": False, "verbose": 0} | options
    if validate:
        options["validation_data"] = (X, Y)
    return model.fit(epochs=epochs, callbacks=list(callbacks), **options).history


def innermost(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


class Record(keras.callbacks.Callback):
    """The weights after each update, and before each batch."""

    def __init__(self):
        super().__init__()
        self.after, self.before, self._updates = [], [], 0

    def on_train_batch_begin(self, batch, logs=None):
        self.before.append(weights_of(self.model))

    def on_train_batch_end(self, batch, logs=None):
        updates = int(ops.convert_to_numpy(innermost(self.model).iterations))
        if updates > self._updates:
            self.after.append(weights_of(self.model))
        self._updates = updates


def weights_of(model):
    return [np.array(ops.convert_to_numpy(v)) for v in model.trainable_variables]


def trajectory(model, **options):
    """The weights after each update of a run without averages."""
    record = Record()
    train(model, record, **options)
    return record.after


def loss_at(weights, x=X, y=Y):
    model = small_model("sgd")
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    return model.evaluate(x, y, batch_size=16, verbose=0)


def assert_bits(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_near(one, other, tolerance=2e-6):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
