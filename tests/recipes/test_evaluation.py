"""Exact metrics, against scikit-learn."""

import keras
import numpy as np
import pytest
from sklearn import metrics

from keras_trainkit import data
from keras_trainkit.recipes import evaluation


def test_classification_equals_scikit_learn():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 4)) * 50, random.integers(0, 4, 50)
    labels[:4] = range(4)
    found = evaluation.classification(logits, labels)
    probabilities = np.asarray(keras.ops.softmax(logits.astype("float64")))
    assert found["accuracy"] == metrics.accuracy_score(labels, logits.argmax(axis=1))
    # scikit-learn clips probabilities near 0, the loss here does not.
    assert found["loss"] >= metrics.log_loss(labels, probabilities / probabilities.sum(axis=1, keepdims=True)) - 1e-9
    mild = evaluation.classification(logits / 50, labels)["loss"]
    softened = np.exp(logits / 50) / np.exp(logits / 50).sum(axis=1, keepdims=True)
    assert mild == pytest.approx(metrics.log_loss(labels, softened), rel=1e-9)


def test_regression_equals_scikit_learn_in_original_units():
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=(50, 1)), random.normal(size=(50, 1))
    found = evaluation.regression(outputs, targets, deviation=30.0)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(targets * 30 + 5, outputs * 30 + 5))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(targets * 30 + 5, outputs * 30 + 5))
    assert found["r2"] == pytest.approx(metrics.r2_score(targets, outputs))
    assert found["loss"] == pytest.approx(metrics.mean_squared_error(targets, outputs))
    assert np.isnan(evaluation.regression(outputs, np.ones((50, 1)), 1.0)["r2"])


@pytest.mark.tensorflow
def test_every_example_counts_once_whatever_the_batch(monkeypatch):
    dataset = data.load()
    image = keras.Input(dataset.input_shape)
    flat = keras.layers.Flatten()(image)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Dropout(0.5)(flat)))
    whole = evaluation.Evaluator(model, dataset)("test")
    monkeypatch.setattr(evaluation, "BATCH", 100)
    assert len(dataset.test[0]) % 100
    parts = evaluation.Evaluator(model, dataset)("test")
    assert parts["accuracy"] == whole["accuracy"] and parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    x, y = dataset.test
    logits = keras.ops.convert_to_numpy(model(x, training=False))
    assert whole["accuracy"] == float((logits.argmax(axis=1) == y).mean())
