"""The scale of the draws, what it is for, and how the initializer is saved."""

import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.initializers import ScaledResidual


def draw(initializer, shape=(300, 300), dtype=None):
    return ops.convert_to_numpy(ops.cast(initializer(shape, dtype=dtype), "float32"))


@pytest.mark.parametrize(
    ("depth", "branches", "expected"), [(12, 2, 0.02 / math.sqrt(24)), (8, 1, 0.02 / math.sqrt(8))]
)
def test_the_standard_deviation_is_that_of_gpt_2(depth, branches, expected):
    # 90,000 draws: the standard error of the deviation is 0.24%, the bound five of them.
    values = draw(ScaledResidual(depth, branches=branches, seed=1))
    assert np.std(values) == pytest.approx(expected, rel=0.012)
    assert abs(np.mean(values)) < 5 * expected / 300


@pytest.mark.parametrize(
    "inner",
    [
        keras.initializers.GlorotUniform(seed=3),
        keras.initializers.Orthogonal(seed=3),
        keras.initializers.Constant(2.0),
        keras.initializers.TruncatedNormal(stddev=0.5, seed=3),
    ],
    ids=lambda i: type(i).__name__,
)
def test_any_initializer_can_be_scaled(inner):
    np.testing.assert_allclose(
        draw(ScaledResidual(8, inner), (20, 20)), draw(inner, (20, 20)) / 4, rtol=1e-6, atol=1e-9
    )


def test_a_stream_keeps_its_variance_at_any_depth():
    # 2 * 16 branches of variance 1 / 32 each multiply the variance by (1 + 1/32)**32 = 2.68, unscaled by 2**32.
    depth, width = 16, 256
    inner = keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal", seed=keras.random.SeedGenerator(4))
    scaled = ScaledResidual(depth, inner)
    stream = np.random.default_rng(0).normal(size=(64, width)).astype("float32")
    start = np.var(stream)
    for _ in range(2 * depth):
        stream = stream + stream @ draw(scaled, (width, width))
    assert 1.5 < np.var(stream) / start < 4.5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_the_rounded_float32(dtype):
    initializer = ScaledResidual(12, seed=5)
    values = initializer((50, 50), dtype=dtype)
    assert keras.backend.standardize_dtype(values.dtype) == dtype
    rounded = ops.convert_to_numpy(ops.cast(ops.cast(initializer((50, 50), dtype="float32"), dtype), "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(values, "float32")), rounded)


def test_the_default_dtype_is_floatx():
    keras.config.set_floatx("float16")
    assert keras.backend.standardize_dtype(ScaledResidual(2)((3, 3)).dtype) == "float16"


def test_seeds_mean_what_they_mean_in_keras():
    fixed = ScaledResidual(4, seed=7)
    np.testing.assert_array_equal(draw(fixed), draw(fixed))
    np.testing.assert_array_equal(draw(fixed), draw(ScaledResidual(4, seed=7)))
    assert not np.array_equal(draw(fixed), draw(ScaledResidual(4, seed=8)))
    moving = ScaledResidual(4, seed=keras.random.SeedGenerator(7))
    assert not np.array_equal(draw(moving), draw(moving))
    named = ScaledResidual(4, "glorot_uniform", seed=7)
    np.testing.assert_allclose(draw(named), draw(keras.initializers.GlorotUniform(seed=7)) / math.sqrt(8), rtol=1e-6)


@pytest.mark.parametrize("inner", [None, "he_normal", keras.initializers.Orthogonal(gain=2.0, seed=2)])
def test_configuration_survives_json(inner):
    initializer = ScaledResidual(6, inner, branches=3, seed=None if isinstance(inner, keras.Initializer) else 9)
    config = json.loads(json.dumps(keras.initializers.serialize(initializer)))
    loaded = keras.initializers.get(config)
    np.testing.assert_array_equal(draw(loaded, (9, 9)), draw(initializer, (9, 9)))
    assert json.loads(json.dumps(keras.initializers.serialize(loaded))) == config


def test_it_survives_a_saved_layer(tmp_path):
    layer = keras.layers.Dense(4, kernel_initializer=ScaledResidual(6, seed=9))
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[0].kernel_initializer
    assert (loaded.depth, loaded.branches, loaded.initializer.seed) == (6, 2, 9)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"depth": 0}, ValueError, "Received: depth=0"),
        ({"depth": 2.5}, TypeError, "`depth` must be an integer"),
        ({"depth": 2, "branches": 0}, ValueError, "Received: branches=0"),
        ({"depth": 2, "initializer": "glorot_unifrom"}, ValueError, "glorot_unifrom"),
        ({"depth": 2, "initializer": keras.initializers.GlorotUniform(), "seed": 1}, ValueError, "`seed` is for"),
        ({"depth": 2, "initializer": "zeros", "seed": 1}, ValueError, "`seed` is for"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, error, words):
    with pytest.raises(error, match=words):
        ScaledResidual(**arguments)
