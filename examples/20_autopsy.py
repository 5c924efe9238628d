"""A run that goes bad on purpose, in two ways: a layer that makes NaN of good data, and a batch of broken labels.

Run it with `python examples/20_autopsy.py`; it takes some seconds. The first run is ended by `NonFiniteGuard`, and the
autopsy names the layer. The second one has `SpikeGuard`, which leaves the bad update out, beside the same run without.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_trainkit import callbacks, guards, optimizers
from keras_trainkit.cli.main import main as command

BATCH, BAD = 32, 40


class Normalize(keras.layers.Layer):
    """Divides by the norm. Dead units make it 0, and 0 / 0 is NaN: it lacks a small number below the line."""

    def call(self, x):
        return x / keras.ops.sqrt(keras.ops.sum(keras.ops.square(x), axis=-1, keepdims=True))


def data():
    """The digits, shuffled once, in whole batches: the gradient of a short one is noisier, and may be a spike."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(x))[: len(x) // BATCH * BATCH]
    return x[order].astype("float32") / 16, y[order]


def classifier():
    """Narrow, with a layer that is wrong in one case of many."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, "relu", name="hidden"),
            keras.layers.Dense(3, "relu", name="bottleneck"),
            Normalize(name="normalize"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.AdamW(1e-2), loss)
    return model


def goes_bad(folder):
    """The loss is NaN at once; which layer made it?"""
    x, y = data()
    guard = callbacks.NonFiniteGuard(folder, recipe={"batch": BATCH, "seed": 1})
    classifier().fit(x, y, batch_size=BATCH, epochs=5, shuffle=False, verbose=0, callbacks=[guard])
    assert command(["autopsy", str(folder)]) == 0
    found = guards.autopsy(folder)
    assert (found.where, found.layer) == ("forward", "normalize")
    with np.load(found.path / "batch.npz") as batch, np.load(found.path / "weights.npz") as weights:
        hidden = np.maximum(batch["x"] @ weights[path(weights, "hidden/kernel")], 0)
        outputs = np.maximum(hidden @ weights[path(weights, "bottleneck/kernel")], 0)
        print(f"samples of the batch without a living unit in the bottleneck: {np.flatnonzero(~outputs.any(axis=1))}")


def path(weights, end):
    """The full name of a variable."""
    return next(name for name in weights.files if name.endswith(end))


def spikes(*listed):
    """Linear regression on the digits' pixels, with a batch whose targets someone has stored in other units."""
    x, _ = data()
    y = x.sum(axis=1, keepdims=True) / 20
    y[BAD * BATCH : (BAD + 1) * BATCH] *= 1e4
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.02), "mse")
    model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=list(listed))
    good = np.r_[0 : BAD * BATCH, (BAD + 1) * BATCH : len(x)]
    return model.evaluate(x[good], y[good], verbose=0)


def main():
    """Both runs."""
    with tempfile.TemporaryDirectory() as parent:
        goes_bad(Path(parent, "bad"))
    guard = callbacks.SpikeGuard(warmup=16)
    without, with_guard = spikes(), spikes(guard)
    print(f"loss on the good samples: {without:.4g} without a guard, {with_guard:.4g} with SpikeGuard")
    assert len(guard.events) == 1 and with_guard < without / 10


if __name__ == "__main__":
    main()
