"""The gradient noise scale, against problems where it is known."""

import keras
import numpy as np
import pytest

from keras_trainkit import finders, optimizers
from keras_trainkit.core import backend
from keras_trainkit.resuming import snapshot

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(8)
X = RNG.normal(size=(500, 4)).astype("float32")
Y = (X @ np.array([[1.0], [0.5], [-1.0], [2.0]]) + RNG.normal(size=(500, 1))).astype("float32")


def linear(weights=0.2):
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(weights))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(optimizers.SGD(0.1), "mse")
    return model


def of_samples(weights=0.2):
    """The gradient of each sample."""
    x, y = X.astype("float64"), Y.astype("float64")
    return 2 * (x @ np.full((4, 1), weights) - y) * x


def test_it_is_the_one_of_the_data():
    each = of_samples()
    mean = each.mean(axis=0)
    norm, trace = (mean**2).sum(), ((each - mean) ** 2).sum() / len(each)
    found = finders.noise_scale(linear(), X, Y, batch_size=4, batches=8, measurements=300)
    assert found.standard_error < 0.2 * found.noise_scale
    assert abs(found.noise_scale - trace / norm) < 5 * found.standard_error
    errors = found.measurements.std(axis=0, ddof=1) / np.sqrt(300)
    assert (np.abs(found.measurements.mean(axis=0) - [norm, trace]) < 5 * errors).all()
    assert found.critical_batch_size == round(found.noise_scale) and "300 measurements of 4 and 32" in str(found)


def test_the_same_in_numpy_over_the_same_batches():
    rows = np.random.default_rng(1).integers(0, 500, (6, 10))
    batches = [(X[r], Y[r]) for r in rows]
    found = finders.noise_scale(linear(), batches, batches=3, measurements=2)
    gradients = np.array([of_samples()[r].mean(axis=0) for r in rows]).reshape(2, 3, 4)
    small = (gradients**2).sum(axis=2).mean(axis=1)
    big = (gradients.mean(axis=1) ** 2).sum(axis=1)
    expected = np.stack([(30 * big - 10 * small) / 20, (small - big) / (1 / 10 - 1 / 30)], axis=1)
    np.testing.assert_allclose(found.measurements, expected, rtol=1e-4, atol=1e-5)
    assert found.noise_scale == pytest.approx(expected[:, 1].mean() / expected[:, 0].mean(), rel=1e-3)


def test_nothing_changes_and_dropout_is_noise():
    def model_of(rate):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(rate), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile(optimizers.Adam(0.01), "mse", metrics=["mae"])
        model.fit(X, Y, verbose=0)
        return model

    def everything(model):
        values = [np.asarray(backend.held(backend.copies(v, model.distribute_strategy)[0])).tobytes()
                  for group in snapshot.variables(model).values() for v in group]  # fmt: skip
        return values, np.random.get_state()[1].tolist(), backend.operation_seeds()

    model = model_of(0.5)
    before = everything(model)
    noisy = finders.noise_scale(model, X, Y, measurements=8)
    assert everything(model) == before
    assert noisy.trace > 1.2 * finders.noise_scale(model_of(0.0), X, Y, measurements=8).trace


def test_where_there_is_no_gradient_it_says_so():
    x = np.concatenate([np.ones((50, 4)), np.ones((50, 4))]).astype("float32")
    y = np.concatenate([np.ones((50, 1)), -np.ones((50, 1))]).astype("float32")
    found = [finders.noise_scale(linear(0.0), x, y, batch_size=2, measurements=3, seed=s) for s in range(8)]
    unknown = [one for one in found if one.critical_batch_size is None]
    assert unknown and "too large to tell" in str(unknown[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size`"),
        ({"batches": 1}, "`batches`"),
        ({"measurements": 1}, "`measurements`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        finders.noise_scale(linear(), X, Y, **arguments)


def test_bad_batches():
    with pytest.raises(ValueError, match="batches of one size"):
        finders.noise_scale(linear(), [(X[:4], Y[:4]), (X[:3], Y[:3])])
    with pytest.raises(ValueError, match="fewer batches"):
        finders.noise_scale(linear(), iter([(X[:4], Y[:4])] * 3), batches=2, measurements=2)
