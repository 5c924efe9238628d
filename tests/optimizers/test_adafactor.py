"""Adafactor against Keras's own, and its memory."""

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers, transforms
from keras_trainkit.testing.problems import Stepper

RNG = np.random.default_rng(3)
INITIAL = [RNG.normal(size=shape).astype("float32") for shape in [(6, 4), (3, 2, 5, 4), (4,), ()]]
GRADIENTS = [[(RNG.normal(size=p.shape) * 3).astype("float32") for p in INITIAL] for _ in range(25)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"learning_rate": 0.5}, {"beta_2_decay": -0.5, "clip_threshold": 0.3}, {"epsilon_1": 0.01, "epsilon_2": 2.0}],
    ids=str,
)
def test_equals_keras_on_every_rank(arguments):
    arguments = {"learning_rate": 0.01} | arguments
    ours = Stepper(optimizers.Adafactor(**arguments), INITIAL, dtype="float32").run(GRADIENTS)
    theirs = Stepper(keras.optimizers.Adafactor(**arguments), INITIAL, dtype="float32").run(GRADIENTS)
    moved = 0.0
    for mine, keras_own, start in zip(ours, theirs, INITIAL, strict=True):
        np.testing.assert_allclose(mine, keras_own, rtol=1e-6, atol=1e-6)
        moved = max(moved, np.abs(mine - start).max())
    assert moved > 1e-2


def test_a_large_matrix_costs_its_rows_and_columns():
    optimizer = optimizers.Adafactor()
    optimizer.build([keras.Variable(np.zeros((1024, 1024), "float32"))])
    state = sum(4 * int(np.prod(v.shape)) for v in optimizer.variables if len(v.shape))
    assert state == 4 * (1024 + 1024)
    assert state / 1024**2 == optimizers.info("adafactor").state_bytes


def test_a_gradient_that_was_always_zero_moves_nothing():
    for epsilon in (0.0, 1e-30):
        step = Stepper(optimizers.Adafactor(0.1, epsilon_1=epsilon), INITIAL, dtype="float32")
        step([np.zeros_like(p) for p in INITIAL])
        for after, before in zip(step.parameters(), INITIAL, strict=True):
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_size_of_the_gradient_does_not_matter(size):
    plain = Stepper(optimizers.Adafactor(0.1), INITIAL, dtype="float32").run(GRADIENTS)
    scaled = [[g * np.float32(size) for g in step] for step in GRADIENTS]
    for after, expected in zip(
        Stepper(optimizers.Adafactor(0.1), INITIAL, dtype="float32").run(scaled), plain, strict=True
    ):
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)


def test_names_a_wrong_argument():
    with pytest.raises(ValueError, match=r"`factored_axes` must be one of 'last', 'largest'. Received: .*'biggest'"):
        optimizers.Adafactor(factored_axes="biggest")
    with pytest.raises(ValueError, match=r"`beta_2_decay` must be a number at most 0"):
        optimizers.Adafactor(beta_2_decay=0.8)
    with pytest.raises(ValueError, match=r"`threshold` must be a number above 0"):
        transforms.ClipUpdateRms(0.0)
