"""Refreshed BatchNormalization statistics are those of the population, and nothing else changes."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import refresh_batch_statistics

X = np.random.default_rng(0).normal(2.0, 3.0, size=(70, 6, 4)).astype("float32")


def convolutional(**options):
    inputs = keras.Input((6, 4))
    stream = keras.layers.Conv1D(3, 3, activation="relu")(inputs)
    stream = keras.layers.BatchNormalization(name="first", **options)(stream)
    stream = keras.layers.Dropout(0.5, seed=1)(stream)
    stream = keras.layers.Conv1D(3, 3)(stream)
    inner = keras.Sequential([keras.Input((2, 3)), keras.layers.BatchNormalization(name="second")], name="inner")
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(stream)))
    model.compile("sgd", "mse")
    return model


def layer(model, name):
    return model.get_layer(name) if name == "first" else model.get_layer("inner").get_layer(name)


def inputs_of(model, name, x=X):
    """What reaches the layer in inference, in float64."""
    point = layer(model, "first").input if name == "first" else model.layers[4].output
    return ops.convert_to_numpy(keras.Model(model.input, point)(x)).astype("float64")


def statistics(model, name):
    return [ops.convert_to_numpy(v) for v in (layer(model, name).moving_mean, layer(model, name).moving_variance)]


@pytest.mark.parametrize("batch_size", [7, 32, 100])
def test_batches_of_any_size_give_the_population(batch_size):
    model = convolutional()
    assert refresh_batch_statistics(model, X, batch_size=batch_size) == -(-70 // batch_size)
    rows = inputs_of(model, "first").reshape(-1, 3)
    mean, variance = statistics(model, "first")
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-6)


def test_one_batch_is_exact_at_every_depth():
    """What the deeper layer then sees in inference has its statistics: the first one's are the batch's own."""
    model = convolutional()
    refresh_batch_statistics(model, X, batch_size=70)
    rows = inputs_of(model, "second").reshape(-1, 3)
    mean, variance = statistics(model, "second")
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-4)


def test_a_large_mean_costs_no_digits():
    model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    x = (4096 + np.random.default_rng(1).normal(0, 0.5, size=(500, 1))).astype("float32")
    refresh_batch_statistics(model, x, batch_size=50)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.layers[0].moving_variance), x.astype("float64").var(axis=0), rtol=1e-6
    )


def test_everything_else_stays():
    model = convolutional()
    model.fit(X, np.zeros((70, 2, 2)), verbose=0)
    every = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    kept = [v for v in every if "moving" not in v.path]
    before = [ops.convert_to_numpy(v) for v in kept]
    prediction = model.predict(X, verbose=0)
    assert refresh_batch_statistics(model, X, batches=2, batch_size=10) == 2
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    assert np.abs(model.predict(X, verbose=0) - prediction).max() > 1e-3
    assert "call" not in vars(layer(model, "first"))


def test_frozen_layers_stay():
    model = convolutional()
    layer(model, "first").trainable = False
    before = statistics(model, "first")
    refresh_batch_statistics(model, X)
    np.testing.assert_array_equal(statistics(model, "first"), before)
    assert np.abs(statistics(model, "second")[0]).max() > 0


def test_an_error_leaves_the_old_statistics():
    model = convolutional()
    before = statistics(model, "first")

    def batches():
        yield X[:10]
        raise RuntimeError("the data ends badly")

    with pytest.raises(RuntimeError, match="ends badly"):
        refresh_batch_statistics(model, batches())
    np.testing.assert_array_equal(statistics(model, "first"), before)
    with pytest.raises(ValueError, match="at least one batch"):
        refresh_batch_statistics(model, [])


@pytest.mark.tensorflow  # on JAX Keras's BatchNormalization with a mask fails in training: "tuple index out of range"
def test_masked_positions_do_not_count():
    inputs = keras.Input((5, 1))
    masked = keras.layers.Masking(0.0)(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(masked))
    x = np.random.default_rng(2).normal(3.0, 1.0, size=(20, 5, 1)).astype("float32")
    x[:, 3:] = 0.0
    refresh_batch_statistics(model, x, batch_size=8)
    np.testing.assert_allclose(ops.convert_to_numpy(model.layers[-1].moving_mean), [x[:, :3].mean()], rtol=1e-6)


def test_channels_first():
    model = keras.Sequential([keras.Input((6, 4)), keras.layers.BatchNormalization(axis=1)])
    refresh_batch_statistics(model, X)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.layers[0].moving_mean), X.astype("float64").mean(axis=(0, 2)), rtol=1e-6
    )


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return X[10 * index : 10 * index + 10], np.zeros((10, 2, 2))


@pytest.mark.parametrize("kind", ["dataset", "sequence", "pairs", "dictionary"])
def test_kinds_of_data(kind):
    model, same = convolutional(), convolutional()
    same.set_weights(model.get_weights())
    pairs = [(X[i : i + 10], np.zeros((10, 2, 2))) for i in range(0, 70, 10)]
    if kind == "dataset":
        tensorflow = pytest.importorskip("tensorflow")
        data = tensorflow.data.Dataset.from_tensor_slices((X, np.zeros((70, 2, 2)))).batch(10)
    elif kind == "dictionary":
        model = keras.Model({"x": model.input}, model.output)
        data = {"x": X}
    else:
        data = Sequence() if kind == "sequence" else pairs
    assert refresh_batch_statistics(model, data, batch_size=10) == 7
    refresh_batch_statistics(same, X, batch_size=10)
    np.testing.assert_allclose(statistics(model, "first"), statistics(same, "first"), rtol=1e-6)


def test_a_model_without_such_layers():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert refresh_batch_statistics(model, np.zeros((4, 3))) == 0
    with pytest.raises(ValueError, match="`batches` must be an integer at least 1"):
        refresh_batch_statistics(model, np.zeros((4, 3)), batches=0)


@pytest.mark.tensorflow
def test_on_two_replicas(two_replicas):
    with two_replicas.scope():
        model = convolutional(synchronized=True)
    refresh_batch_statistics(model, X, batch_size=70)
    rows = inputs_of(model, "first").reshape(-1, 3)
    for copy in two_replicas.experimental_local_results(layer(model, "first").moving_mean.value):
        np.testing.assert_allclose(copy.numpy(), rows.mean(axis=0), rtol=1e-5)


@pytest.mark.tensorflow
def test_in_float16():
    keras.config.set_dtype_policy("mixed_float16")
    model = convolutional()
    refresh_batch_statistics(model, X)
    rows = inputs_of(model, "first").reshape(-1, 3)
    np.testing.assert_allclose(statistics(model, "first")[0], rows.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(statistics(model, "first")[1], rows.var(axis=0), rtol=1e-3)
