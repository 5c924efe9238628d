"""Draws docs/images/dropout-masks.png from what the layers do in training: `python docs/dropout_masks.py [FILE]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from keras_trainkit import layers

RATE, SIZE, SAMPLES, CHANNELS = 0.3, 24, 2, 3


def maps(layer):
    """What a layer makes of maps of ones in training: rows of samples and channels."""
    return np.array(layer(np.ones((SAMPLES, SIZE, SIZE, CHANNELS), "float32"), training=True))


def patches(layer):
    """The same for a layer of tokens, one for each patch of 4 x 4 pixels: what is left out is 0."""
    tokens = (SIZE // 4) ** 2
    _, kept = layer(np.ones((SAMPLES, tokens, 1), "float32"), training=True)
    mask = np.zeros((SAMPLES, tokens))
    np.put_along_axis(mask, np.array(kept), 1, axis=1)
    grid = mask.reshape(SAMPLES, SIZE // 4, SIZE // 4)
    return np.kron(grid, np.ones((4, 4)))[..., None] * np.ones(CHANNELS)


def weights(layer):
    """The kernel of a dense layer of ones, in training: one for each sample, whatever the channel."""
    identity = np.broadcast_to(np.eye(SIZE, dtype="float32"), (SAMPLES, SIZE, SIZE))
    return np.array(layer(identity, training=True))[..., None] * np.ones(CHANNELS)


def dense():
    """A layer whose output for a row of the identity is a row of its kernel."""
    return keras.layers.Dense(SIZE, kernel_initializer="ones", use_bias=False)


def pictures():
    """The masks by title."""
    return {
        "Keras: Dropout": maps(keras.layers.Dropout(RATE, seed=1)),
        "Keras: SpatialDropout2D": maps(keras.layers.SpatialDropout2D(RATE, seed=7)),
        "DropBlock2D, blocks of 5": maps(layers.DropBlock2D(RATE, 5, seed=1)),
        "DropBlock2D, shared": maps(layers.DropBlock2D(RATE, 5, share_channels=True, seed=1)),
        "StochasticDepth": maps(layers.StochasticDepth(0.5, seed=1)),
        "PatchDropout, 6 x 6 patches": patches(layers.PatchDropout(0.5, return_indices=True, seed=1)),
        "DropConnect: weights": weights(layers.DropConnect(dense(), RATE, seed=1)),
    }


def draw(file: Path) -> None:
    """One column for each layer, one row for each channel of each sample; what is dropped is dark."""
    found = pictures()
    rows = [(sample, channel) for sample in range(SAMPLES) for channel in range(CHANNELS)]
    figure, axes = pyplot.subplots(len(rows), len(found), figsize=(2 * len(found), 2 * len(rows)))
    for column, (title, values) in enumerate(found.items()):
        for row, (sample, channel) in enumerate(rows):
            axis = axes[row, column]
            axis.imshow(values[sample, :, :, channel] > 0, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=10)
            if column == 0:
                axis.set_ylabel(f"sample {sample + 1}, channel {channel + 1}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    here = Path(__file__).parent / "images" / "dropout-masks.png"
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else here)
