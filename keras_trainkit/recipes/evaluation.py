"""Exact metrics of a model on arrays, on one device: no batch is dropped or padded, whatever the number of replicas."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_trainkit.data import Dataset

BATCH = 512


class Evaluator:
    """Measures a core model on parts of a dataset.

    Classification: `loss` (cross-entropy), `accuracy`. Regression: `loss` (mean squared error of the standardized
    target), and in the target's own units `mae`, `rmse`, with `r2`.
    """

    def __init__(self, model: keras.Model, dataset: Dataset) -> None:
        self.dataset = dataset
        signature = [tf.TensorSpec((None, *dataset.input_shape), "float32")]
        self._forward: Callable = tf.function(lambda x: model(x, training=False), input_signature=signature)

    def __call__(self, part: str) -> dict[str, float]:
        """The metrics on "train", "validation" or "test"."""
        x, y = getattr(self.dataset, part)
        outputs = np.concatenate([self._forward(x[i : i + BATCH]).numpy() for i in range(0, len(x), BATCH)])
        outputs = outputs.astype("float64")
        if self.dataset.task == "classification":
            return classification(outputs, y)
        return regression(outputs, y, self.dataset.target_deviation)


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy and accuracy of logits (n, classes) against class numbers (n,).

    >>> classification(np.array([[0.0, 9.0], [0.0, 9.0]]), np.array([1, 0]))["accuracy"]
    0.5
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_probabilities[np.arange(len(labels)), labels].mean()
    return {"loss": float(loss), "accuracy": float((logits.argmax(axis=1) == labels).mean())}


def regression(outputs: np.ndarray, targets: np.ndarray, deviation: float) -> dict[str, float]:
    """Errors of standardized predictions (n, 1) against standardized targets; mae and rmse in original units.

    `r2` is the share of the targets' variance that is explained; NaN where they have none.

    >>> regression(np.array([[1.0], [-1.0]]), np.array([[1.0], [-3.0]]), deviation=10.0)["mae"]
    10.0
    """
    errors = outputs.reshape(-1) - targets.reshape(-1)
    square, variance = float(np.mean(errors**2)), float(np.var(targets))
    return {
        "loss": square,
        "mae": float(np.abs(errors).mean()) * deviation,
        "rmse": float(np.sqrt(square)) * deviation,
        "r2": 1.0 - square / variance if variance > 0 else float("nan"),
    }
