"""The value and gradient of the penalty, what it does to a model, and how it is saved."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from slopes import gradient

from keras_trainkit.regularizers import GroupLasso


def slow_penalty(weights, factor, axis, scale):
    """Group by group, in float64."""
    moved = np.moveaxis(weights.astype("float64"), axis, list(range(len(axis))))
    groups = moved.reshape(int(np.prod(moved.shape[: len(axis)])), -1)
    return factor * sum(np.linalg.norm(group) * (np.sqrt(group.size) if scale else 1) for group in groups)


@pytest.mark.parametrize("axis", [-1, 0, [-1], [-2, -1], [0, 1], [0, 3], [3, -2], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("scale", [True, False])
def test_the_value_is_the_sum_over_groups(axis, scale):
    weights = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype("float32")
    expected = slow_penalty(weights, 0.3, [axis] if isinstance(axis, int) else axis, scale)
    found = GroupLasso(0.3, axis, scale)(ops.convert_to_tensor(weights))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([-2, -1, 0, 1]))
@settings(max_examples=25, deadline=None)
def test_the_value_is_a_norm(rows, columns, seed, axis):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, rows, columns)).astype("float32")
    penalty = GroupLasso(1.0, axis)
    one, other, both = (float(penalty(ops.convert_to_tensor(w))) for w in (a, b, a + b))
    assert both <= (one + other) * (1 + 1e-5)
    assert float(penalty(ops.convert_to_tensor(-3 * a))) == pytest.approx(3 * one, rel=1e-5)


def test_the_gradient_is_the_direction_of_each_group():
    weights = np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]], "float32")
    found = gradient(GroupLasso(0.5, scale_by_size=False), weights)
    np.testing.assert_allclose(found, [[0.3, 0, 0.5], [0.4, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(gradient(GroupLasso(0.5), weights), np.sqrt(2) * found, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12])
def test_the_gradient_is_finite_at_and_near_zero(value):
    weights = np.full((4, 3), value, "float32")
    found = gradient(GroupLasso(0.5), weights)
    assert np.all(np.isfinite(found))
    assert np.max(np.abs(found)) <= 0.5 * np.sqrt(4) + 1e-6
    if value == 0:
        np.testing.assert_array_equal(found, 0)


def test_the_plain_form_gives_nan_at_zero():
    """What the double choice in `core.groups.safe_sqrt` is for."""
    plain = gradient(lambda w: ops.sum(ops.sqrt(ops.sum(ops.square(w), axis=0))), np.zeros((4, 3), "float32"))
    assert np.all(np.isnan(plain))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_summed_in_float32(dtype):
    weights = ops.full((4096, 2), 0.1, dtype=dtype)
    value = float(ops.cast(weights[0, 0], "float32"))
    found = GroupLasso(1.0, scale_by_size=False)(weights)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert float(found) == pytest.approx(2 * 64 * value, rel=1e-4)
    assert np.all(np.isfinite(gradient(GroupLasso(1.0), weights)))


def test_training_zeroes_the_inputs_that_say_nothing():
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 6)).astype("float32")
    y = x[:, :2] @ np.array([[1.0, -2.0], [2.0, 1.0]], "float32")
    layer = keras.layers.Dense(2, use_bias=False, kernel_regularizer=GroupLasso(0.1, axis=0))
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, batch_size=64, epochs=40, verbose=0)
    norms = np.linalg.norm(np.array(layer.kernel), axis=1)
    assert norms[:2].min() > 1.0
    assert norms[2:].max() < 0.05


def test_a_layer_that_starts_at_zero_trains():
    layer = keras.layers.Dense(1, kernel_initializer="zeros", kernel_regularizer=GroupLasso(1e-3))
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    model.fit(x, x @ np.array([[1.0], [-1.0]], "float32"), epochs=10, verbose=0)
    np.testing.assert_allclose(np.array(layer.kernel).ravel(), [1, -1], atol=0.1)


def test_configuration_survives_json_and_a_saved_model(tmp_path):
    regularizer = GroupLasso(0.2, axis=[-2, -1], scale_by_size=False)
    config = json.loads(json.dumps(keras.regularizers.serialize(regularizer)))
    assert keras.regularizers.get(config).get_config() == regularizer.get_config()
    model = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 2, kernel_regularizer=regularizer)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.losses[0]) == pytest.approx(float(model.losses[0])) != 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"factor": -0.1}, ValueError, "Received: factor=-0.1"),
        ({"factor": None}, TypeError, "`factor` must be a number"),
        ({"axis": 1.5}, TypeError, "`axis` must be an integer"),
        ({"axis": []}, ValueError, "`axis` must be an integer or a list"),
        ({"axis": "rows"}, TypeError, "`axis` must be an integer"),
        ({"scale_by_size": 1}, TypeError, "`scale_by_size` must be True or False"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, error, words):
    with pytest.raises(error) as caught:
        GroupLasso(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("axis", [2, -3, [0, 2]])
def test_an_axis_that_the_weights_lack_is_named(axis):
    with pytest.raises(ValueError, match="`axis` must exist in the weights"):
        GroupLasso(axis=axis)(ops.ones((2, 3)))
