"""The gradient noise scale: its estimates, and the gradients of the pieces that they are made of."""

import contextlib
import json

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, optimizers, precision
from keras_trainkit.monitoring import noise_scale

TENSORFLOW = pytest.mark.tensorflow
RNG = np.random.default_rng(5)
SIZE, SPREAD = 16, 1.5


class Constant(keras.layers.Layer):
    """Puts out its weight, whatever comes in."""

    def build(self, shape):
        self.value = self.add_weight(shape=(SIZE,), initializer="zeros", name="value")

    def call(self, inputs):
        return inputs * 0 + self.value


def make_model(optimizer):
    """The loss of a sample t is the mean of (w - t)^2, so its gradient is 2 (w - t) / SIZE."""
    model = keras.Sequential([keras.Input((SIZE,)), Constant()])
    model.compile(optimizer, "mse")
    return model


def piece_gradients(targets, pieces):
    return np.stack([(-2 / SIZE * part).mean(axis=0) for part in np.split(targets.astype("float64"), pieces)])


@pytest.mark.parametrize("case", ["accumulation", "replicas", "both", "both scaled", "samples"])
def test_estimates_of_a_problem_that_is_known(tmp_path, case, request, monkeypatch):
    """At w = 0 with targets of mean m: abs(G)^2 = 4 abs(m)^2 / SIZE^2, and S = 4 SPREAD^2 / SIZE."""
    if case != "accumulation" and keras.backend.backend() != "tensorflow":
        pytest.skip("these cases need Keras on TensorFlow")
    replicated = case in ("replicas", "both", "both scaled")
    window = 1 if case == "replicas" else 3
    pieces = window * (2 if replicated else 1)
    scope = request.getfixturevalue("two_replicas").scope() if replicated else contextlib.nullcontext()
    with scope:
        optimizer = optimizers.SGD(0.0, gradient_accumulation_steps=window)
        if case == "both scaled":
            optimizer = precision.LossScaleOptimizer(optimizer, initial_scale=256.0)
        model = make_model(optimizer)
    updates, batch = 150, 4
    mean = np.linspace(0.2, 1.0, SIZE)
    rows = updates * window * batch
    targets = (mean + SPREAD * RNG.normal(size=(rows, SIZE))).astype("float32")
    added = []
    add = noise_scale.NoiseScale.add
    monkeypatch.setattr(noise_scale.NoiseScale, "add", lambda self, *a: added.append(a) or add(self, *a))
    monitor = callbacks.TrainingMonitor(tmp_path, every=1, tensorboard=False, noise_scale=True)
    if case == "samples":
        from keras_trainkit import training

        training.weigh_samples(model)
    model.fit(np.zeros_like(targets), targets, batch_size=batch, shuffle=False, verbose=0, callbacks=[monitor])

    assert len(added) == updates
    whole = batch * window
    for number, (small, big, count) in enumerate(added):
        gradients = piece_gradients(targets[number * whole : (number + 1) * whole], pieces)
        assert count == pieces
        assert small == pytest.approx((gradients**2).sum(axis=1).mean(), rel=1e-4)
        assert big == pytest.approx((gradients.mean(axis=0) ** 2).sum(), rel=1e-4)

    found = np.array([noise_scale.estimates(*one) for one in added])
    truth = [4 * (mean**2).sum() / SIZE**2, 4 * SPREAD**2 / SIZE / whole]
    errors = found.std(axis=0, ddof=1) / np.sqrt(updates)
    assert (np.abs(found.mean(axis=0) - truth) < 5 * errors).all()
    assert (errors < 0.1 * np.array(truth)).all(), "too few updates for the test to tell anything"

    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-2]
    assert written["gradient_noise_scale"] == pytest.approx(written["noise_to_batch_ratio"] * whole, rel=1e-6)
    assert 0.3 < written["gradient_noise_scale"] / (truth[1] * whole / truth[0]) < 3


def test_noise_of_parts_of_a_window_that_changes_goes_with_its_count():
    """Measurements of windows of any length estimate the same noise for each sample."""
    for pieces in (2, 5, 40):
        signal, noise = noise_scale.estimates(1 + 8 / 2, 1 + 8 / (2 * pieces), pieces)
        assert signal == pytest.approx(1) and noise * 2 * pieces == pytest.approx(8)


def test_averages_pass_over_what_is_not_finite_and_survive():
    noise = noise_scale.NoiseScale(decay=0.5)
    noise.add(5.0, 1.5, 8)
    noise.add(float("inf"), 1.5, 8)
    noise.add(float("nan"), 1.5, 8)
    again = noise_scale.NoiseScale(decay=0.5)
    again.set_state(json.loads(json.dumps(noise.get_state())))
    assert again.in_batches == noise.in_batches == pytest.approx(0.5)
    hidden = noise_scale.NoiseScale()
    hidden.add(5.0, 0.1, 8)
    assert hidden.in_batches is None, "no gradient can be seen"


def test_says_when_nothing_can_be_measured(tmp_path):
    model = make_model(optimizers.SGD(0.1))
    monitor = callbacks.TrainingMonitor(tmp_path, every=1, tensorboard=False, noise_scale=True)
    zeros = np.zeros((8, SIZE), "float32")
    with pytest.warns(UserWarning, match="noise scale cannot be measured: it needs gradients of two batch sizes"):
        model.fit(zeros, zeros + 1, batch_size=4, verbose=0, callbacks=[monitor])
    assert "noise" not in (tmp_path / "metrics.jsonl").read_text()


@TENSORFLOW
def test_embeddings_of_replicas_count_repeated_rows_once(two_replicas):
    """The gradient of an embedding comes by rows, some of them twice: as a table its norm is another one."""
    ids = np.array([[1, 1], [2, 1], [3, 3], [0, 3]])
    y = np.array([[1.0], [2.0], [-1.0], [3.0]], "float32")
    keras.utils.set_random_seed(3)
    with two_replicas.scope():
        layers = [keras.layers.Embedding(5, 2), keras.layers.Flatten(), keras.layers.Dense(1, trainable=False)]
        model = keras.Sequential([keras.Input((2,), dtype="int32"), *layers])
        model.compile(optimizers.SGD(0.0), "mse")
    model.optimizer.watch(1, pieces=True)
    table, kernel, _ = model.get_weights()
    model.fit(ids, y, batch_size=4, shuffle=False, verbose=0)
    gradients = []
    for rows in (slice(0, 2), slice(2, 4)):
        gradient = np.zeros_like(table)
        error = table[ids[rows]].reshape(2, 4) @ kernel - y[rows]
        for sample, e in zip(ids[rows], error[:, 0], strict=True):
            for place, token in enumerate(sample):
                gradient[token] += 2 * e * kernel[2 * place : 2 * place + 2, 0] / 2
        gradients.append(gradient)
    small, big, count = model.optimizer.piece_statistics()
    assert count == 2
    assert small == pytest.approx(np.mean([(g**2).sum() for g in gradients]), rel=1e-4)
    assert big == pytest.approx((np.mean(gradients, axis=0) ** 2).sum(), rel=1e-4)
