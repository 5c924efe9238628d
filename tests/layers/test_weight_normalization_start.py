"""Initialization by a batch: mean 0 and variance 1 on it, at every depth, and nothing else."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import WeightNormalization, initialize_weight_normalization

RNG = np.random.default_rng(14)

LAYERS = {
    "dense": (lambda: keras.layers.Dense(5), (4, 3), (0, 1)),
    "relu": (lambda: keras.layers.Dense(5, activation="relu"), (4, 3), (0, 1)),
    "conv2": (lambda: keras.layers.Conv2D(6, 2, strides=2), (5, 6, 3), (0, 1, 2)),
    "transposed": (lambda: keras.layers.Conv1DTranspose(5, 3), (6, 3), (0, 1)),
    "depthwise": (lambda: keras.layers.DepthwiseConv1D(2, depth_multiplier=2), (6, 3), (0, 1)),
    "separable": (lambda: keras.layers.SeparableConv2D(5, 2), (6, 4, 3), (0, 1, 2)),
    "einsum": (lambda: keras.layers.EinsumDense("abc,dce->abed", (4, 2, 5), bias_axes="ed"), (4, 3), (0, 1)),
    "einsum-dots": (lambda: keras.layers.EinsumDense("...x,xy->...y", (4, 5), bias_axes="y"), (4, 3), (0, 1)),
    "float16": (lambda: keras.layers.Dense(5, dtype="mixed_float16"), (40, 3), (0, 1)),
}


def numpy(value):
    return ops.convert_to_numpy(ops.cast(value, "float32"))


def normal(*shape):
    return RNG.normal(3.0, 5.0, size=shape).astype("float32")


def before_activation(layer, x):
    layer.layer.activation = None
    return numpy(layer(x))


@pytest.mark.parametrize("name", list(LAYERS))
def test_outputs_have_mean_0_and_variance_1(name):
    make, shape, axes = LAYERS[name]
    layer, x = WeightNormalization(make()), normal(60, *shape)
    v = layer(x) is not None and numpy(layer.layer.weights[0])
    assert initialize_weight_normalization(layer, x) == 1
    np.testing.assert_array_equal(numpy(layer.layer.weights[0]), v)
    if name == "relu":
        assert layer.layer.activation is keras.activations.relu
    out = before_activation(layer, x)
    tolerance = 5e-3 if name == "float16" else 1e-4
    np.testing.assert_allclose(out.mean(axes), 0, atol=tolerance)
    np.testing.assert_allclose(out.var(axes), 1, rtol=tolerance)


def test_is_the_formula_of_the_paper():
    """g = 1 / deviation of t and b = - mean / deviation, with t = v x / norm(v), whatever g and b were."""
    layer, x = WeightNormalization(keras.layers.Dense(4)), normal(50, 3)
    layer.build(x.shape)
    v = numpy(layer.layer.kernel)
    layer.g[0].assign([0.0, -3.0, 1.0, 7.0])
    layer.layer.bias.assign([1.0, 2.0, 3.0, 4.0])
    initialize_weight_normalization(layer, x)
    t = x @ (v / np.linalg.norm(v, axis=0))
    np.testing.assert_allclose(numpy(layer.g[0]), 1 / t.std(0), rtol=1e-4)
    np.testing.assert_allclose(numpy(layer.layer.bias), -t.mean(0) / t.std(0), rtol=1e-4, atol=1e-5)


def deep():
    return keras.Sequential(
        [
            keras.Input((6, 3)),
            WeightNormalization(keras.layers.Conv1D(8, 3, activation="relu"), name="first"),
            keras.layers.Dropout(0.5),
            keras.layers.BatchNormalization(),
            keras.Sequential([keras.Input((4, 8)), WeightNormalization(keras.layers.Dense(5), name="second")]),
            keras.layers.GlobalMaxPooling1D(),
            WeightNormalization(keras.layers.Dense(4, use_bias=False), name="third"),
            keras.layers.Dense(2),
        ]
    )


def found(model, x):
    outputs = [keras.Model(model.inputs, model.layers[i].output)(x) for i in (3, 5)]
    return [numpy(value) for value in outputs]


def test_in_a_model_each_layer_sees_inputs_of_those_that_are_done():
    model, x = deep(), normal(80, 6, 3)
    others = [v for v in model.variables if "weight_norm" not in v.path and v.path.split("/")[-1] not in ("g", "bias")]
    before = [ops.convert_to_numpy(v) for v in others]
    assert initialize_weight_normalization(model, x) == 3
    for variable, value in zip(others, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    second, third = found(model, x)
    np.testing.assert_allclose(second.mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(second.var((0, 1)), 1, rtol=1e-4)
    np.testing.assert_allclose(third.var(0), 1, rtol=1e-4)  # it has no bias for the mean
    weights = model.get_weights()
    initialize_weight_normalization(model, x)  # once or twice is the same
    for one, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_outputs_that_do_not_vary_stay():
    layer, x = WeightNormalization(keras.layers.Dense(3)), normal(40, 2)
    layer.build(x.shape)
    layer.layer.kernel.assign([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    layer.g[0].assign([1.0, 2.0, 3.0])
    layer.layer.bias.assign([1.0, 2.0, 3.0])
    x[:, 0] = 4.0  # and so the third output is constant
    initialize_weight_normalization(layer, x)
    np.testing.assert_array_equal(numpy(layer.g[0])[1:], [2.0, 3.0])
    np.testing.assert_array_equal(numpy(layer.layer.bias)[1:], [2.0, 3.0])
    assert numpy(layer.g[0])[0] != 1.0


def test_recurrent_layers_stay():
    layer = WeightNormalization(keras.layers.LSTM(3))
    x = normal(4, 5, 2)
    before = numpy(layer(x))
    assert initialize_weight_normalization(layer, x) == 0
    np.testing.assert_array_equal(numpy(layer(x)), before)


def test_an_error_leaves_the_layers_as_they_were():
    model = deep()
    before = model.get_weights()
    with pytest.raises(Exception):  # noqa: B017, the error is Keras's
        initialize_weight_normalization(model, normal(4, 6, 7))
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


@pytest.mark.tensorflow
def test_on_replicas_all_get_the_same_and_fit_does_not_do_it_again(two_replicas):
    x = normal(64, 6, 3)
    with two_replicas.scope():
        model = deep()
        model.compile(keras.optimizers.SGD(0.0), "mse")
    initialize_weight_normalization(model, x)
    once = model.get_weights()
    for variable in model.trainable_variables:
        copies = [copy.numpy() for copy in two_replicas.experimental_local_results(variable.value)]
        np.testing.assert_array_equal(copies[0], copies[1])
    second, _ = found(model, x)
    np.testing.assert_allclose(second.var((0, 1)), 1, rtol=1e-4)
    model.fit(x + 5, np.zeros((64, 2)), batch_size=16, verbose=0)
    for variable, value in zip(model.weights, once, strict=True):
        if "moving" not in variable.path:
            np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
