"""`FlushAccumulation` ends windows with epochs; without it `fit` ends them once."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers
from keras_trainkit.callbacks.flush_accumulation import FlushAccumulation
from keras_trainkit.testing.contracts import assert_close, fit, small_model


def train(every, epochs, callbacks, last_window="apply", **options):
    model = small_model(optimizers.SGD(0.1, gradient_accumulation_steps=every, last_window=last_window, **options))
    rng = np.random.default_rng(3)
    x = rng.normal(size=(48, 5)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(5, 3))).astype("float32")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(int(ops.convert_to_numpy(self.model.optimizer.iterations)))

    model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, validation_data=(x, y),
              callbacks=[*callbacks, Look()])  # fmt: skip
    return model, seen


def test_each_epoch_ends_its_window_before_validation():
    model, seen = train(2, 3, [FlushAccumulation()])
    assert seen == [2, 4, 6]
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 6


def test_without_it_windows_go_on_and_fit_ends_the_last():
    model, seen = train(2, 3, [])
    assert seen == [1, 3, 4]
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 5


def test_a_window_longer_than_the_epoch_learns_all_the_same():
    # Plain Keras never updates here: 8 micro-batches asked for, 3 there are.
    model, _ = train(8, 1, [])
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 1
    untouched = small_model(optimizers.SGD(0.1))
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), untouched.get_weights(), strict=True)) > 1e-3


def test_whole_epoch_as_one_window_is_full_batch_descent():
    model, _ = train(100, 4, [FlushAccumulation()], global_clipnorm=0.5)
    full = small_model(optimizers.SGD(0.1, global_clipnorm=0.5))
    rng = np.random.default_rng(3)
    x = rng.normal(size=(48, 5)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(5, 3))).astype("float32")
    full.fit(x, y, batch_size=48, epochs=4, shuffle=False, verbose=0)
    assert_close(model.get_weights(), full.get_weights(), 1e-6)


@pytest.mark.parametrize(("policy", "expected"), [("drop", 3), ("carry", 4)])
def test_other_policies(policy, expected):
    model, _ = train(2, 3, [FlushAccumulation()], last_window=policy)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == expected


def test_no_accumulation_no_effect():
    model = small_model(optimizers.Adam(0.01))
    fit(model, epochs=1)
    before = model.get_weights()
    callback = FlushAccumulation()
    callback.set_model(model)
    callback.on_epoch_end(0)
    assert_close(model.get_weights(), before, 0.0)


@pytest.mark.tensorflow
def test_under_two_replicas(two_replicas):
    alone, _ = train(2, 2, [FlushAccumulation()])
    with two_replicas.scope():
        together, _ = train(2, 2, [FlushAccumulation()])
    assert_close(together.get_weights(), alone.get_weights(), 2e-6)
