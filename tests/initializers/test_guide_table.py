"""The numbers of the guide's table, computed."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.initializers import ScaledResidual, fixup, lsuv
from keras_trainkit.layers import ReZero

DEPTH, WIDTH = 50, 64
X = np.random.default_rng(0).normal(size=(256, WIDTH)).astype("float32")
GUIDE = Path(__file__).parents[2] / "docs" / "initializers.md"


def table():
    """The cells of the rows by the first backticked word of each."""
    lines = GUIDE.read_text(encoding="utf-8").split("## What fifty layers do")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0].split("`")[1].partition("(")[0]: row[1:] for row in rows if "`" in row[0]}


def dense(kind, seed, activation=None, name=None):
    initializer = keras.initializers.get("glorot_uniform" if kind in ("lsuv", "fixup") else kind)
    initializer = type(initializer)(seed=seed)
    return keras.layers.Dense(WIDTH, activation, kernel_initializer=initializer, name=name)


def plain(kind, activation):
    last = dense(kind, DEPTH)
    return keras.Sequential([keras.Input((WIDTH,)), *[dense(kind, i, activation) for i in range(DEPTH - 1)], last])


def residual(kind):
    base = "he_normal" if kind in ("ScaledResidual", "ReZero") else kind
    x = inputs = keras.Input((WIDTH,))
    for i in range(DEPTH):
        branch = dense(base, 2 * i, "relu", f"block_{i}_first")(keras.layers.Activation("relu")(x))
        last = dense(base, 2 * i + 1, None, f"block_{i}_last")
        if kind == "ScaledResidual":
            last.kernel_initializer = ScaledResidual(DEPTH, last.kernel_initializer, branches=1)
        x = (ReZero() if kind == "ReZero" else keras.layers.Add())([x, last(branch)])
    return keras.Model(inputs, x)


def deviation(model, kind):
    if kind == "lsuv":
        lsuv(model, X, seed=0)
    if kind == "fixup":
        fixup(model, r"block_(\d+)_", seed=0)
    return float(np.std(ops.convert_to_numpy(model(X)).astype("float64")))


@pytest.mark.tensorflow  # other backends draw other numbers
@pytest.mark.parametrize("kind", ["glorot_uniform", "he_normal", "orthogonal", "lsuv", "ScaledResidual", "ReZero"])
def test_the_numbers_of_the_guide(kind):
    cells = table()[kind]
    makes = [lambda: plain(kind, "relu"), lambda: plain(kind, "tanh"), lambda: residual(kind)]
    found = [deviation(make(), kind) if cell else None for cell, make in zip(cells, makes, strict=True)]
    for cell, value in zip(cells, found, strict=True):
        # One digit is shown, and the draws may change with Keras.
        assert value is None or 0.5 < value / float(cell) < 2, found


@pytest.mark.tensorflow
def test_fixup_is_in_the_same_row_as_rezero():
    assert deviation(residual("fixup"), "fixup") == pytest.approx(np.std(X.astype("float64")), rel=1e-6)
