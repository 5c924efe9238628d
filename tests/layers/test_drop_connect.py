"""DropConnect: the layer with the masked weights, sample by sample, and all that belongs to the layer inside."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Conv1D, Conv2D, Conv2DTranspose, Conv3D, Dense, DepthwiseConv2D, EinsumDense

from keras_trainkit.layers import DropConnect, drop_connect
from keras_trainkit.testing.layer_contracts import gradients

RNG = np.random.default_rng(22)
JAX = keras.backend.backend() == "jax"
LAYERS = {
    "dense": (lambda: Dense(3, "tanh"), (4,)),
    "dense, sequence": (lambda: Dense(3, use_bias=False), (2, 5, 4)),
    "einsum": (lambda: EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), (4, 5)),
    "einsum, dots": (lambda: EinsumDense("...x,xy->...y", 3, bias_axes="y"), (2, 2, 4)),
    "conv1d, causal": (lambda: Conv1D(4, 3, padding="causal", dilation_rate=2, groups=2), (9, 4)),
    "conv1d, even": (lambda: Conv1D(4, 4, strides=3, padding="same"), (10, 2)),
    "conv2d, valid": (lambda: Conv2D(3, (3, 2), strides=(1, 2), activation="relu"), (6, 7, 2)),
    "conv2d, same": (lambda: Conv2D(3, 3, strides=2, padding="same", use_bias=False), (6, 7, 2)),
    "conv2d, dilated": (lambda: Conv2D(2, 3, dilation_rate=2, padding="same"), (7, 6, 2)),
    "conv3d": (lambda: Conv3D(2, (2, 1, 3), padding="same"), (3, 4, 5, 2)),
}
FIRST = {
    "conv1d, first": (lambda: Conv1D(4, 2, data_format="channels_first", groups=2), (4, 9)),
    "conv2d, first": (lambda: Conv2D(3, 3, padding="same", data_format="channels_first"), (2, 5, 6)),
}
FOR_BATCHES = {
    "transposed": (lambda: Conv2DTranspose(2, 3), (4, 5, 2)),
    "depthwise": (lambda: DepthwiseConv2D(3), (6, 5, 2)),
}


def run(layer, x, **kwargs):
    return ops.convert_to_numpy(layer(x, **kwargs))


def given_masks(monkeypatch, share=0.6):
    """Has the layer take masks of ours; returns the list of those it took."""
    masks = []

    def give(shape, probability, seed):
        masks.append(RNG.random(tuple(shape)) < share)
        return ops.convert_to_tensor(masks[-1])

    monkeypatch.setattr(drop_connect, "drawn_below", give)
    return masks


def ramped(layer, shape):
    layer.build((None, *shape))
    layer.set_weights([RNG.normal(size=w.shape).astype("float32") for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("name", [*LAYERS, *(FIRST if JAX else {})])
@pytest.mark.parametrize("drop_bias", [True, False])
def test_each_sample_has_the_layer_with_its_masked_weights(name, drop_bias, monkeypatch):
    make, shape = {**LAYERS, **FIRST}[name]
    masks = given_masks(monkeypatch)
    inner = ramped(make(), shape)
    x = RNG.normal(size=(5, *shape)).astype("float32")
    found = run(DropConnect(inner, 0.25, drop_bias=drop_bias), x, training=True)
    weights = inner.get_weights()
    assert len(masks) == (len(weights) if drop_bias else 1)
    twin = ramped(make(), shape)
    for sample in range(5):
        masked = [w * m[sample] / 0.75 for w, m in zip(weights, masks, strict=False)]
        twin.set_weights([*masked, *weights[len(masked) :]])
        np.testing.assert_allclose(found[sample], run(twin, x[sample : sample + 1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*LAYERS, *FOR_BATCHES])
def test_a_batch_has_the_layer_with_masked_weights(name, monkeypatch):
    make, shape = {**LAYERS, **FOR_BATCHES}[name]
    masks = given_masks(monkeypatch)
    inner = ramped(make(), shape)
    x = RNG.normal(size=(5, *shape)).astype("float32")
    before = inner.get_weights()
    found = run(DropConnect(inner, 0.25, "batch"), x, training=True)
    twin = ramped(make(), shape)
    twin.set_weights([w * m / 0.75 for w, m in zip(before, masks, strict=True)])
    np.testing.assert_allclose(found, run(twin, x), rtol=1e-4, atol=1e-5)
    for now, then in zip(inner.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_the_gradient_of_a_weight_that_is_dropped_is_0(mode, monkeypatch):
    masks = given_masks(monkeypatch)
    layer = DropConnect(ramped(Dense(3), (4,)), 0.25, mode)
    x = RNG.normal(size=(6, 4)).astype("float32")
    _, of_kernel, of_bias = gradients(layer, x)
    kernel, bias = layer.get_weights()
    kernel_mask, bias_mask = (np.broadcast_to(m, (6, *m.shape[-d:])) / 0.75 for m, d in zip(masks, (2, 1), strict=True))
    out = np.einsum("ni,nio->no", x, kernel * kernel_mask) + bias * bias_mask
    slope = 2 * out / out.size  # of the mean square
    np.testing.assert_allclose(of_kernel, np.einsum("ni,no,nio->io", x, slope, kernel_mask), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_bias, np.einsum("no,no->o", slope, bias_mask), rtol=1e-4, atol=1e-6)


def test_mean_and_variance_are_those_of_dropped_weights():
    inner = ramped(Dense(3), (5,))
    kernel, bias = inner.get_weights()
    x = RNG.normal(size=(1, 5)).astype("float32")
    out = run(DropConnect(inner, 0.3, seed=1), np.repeat(x, 40_000, axis=0), training=True)
    mean, variance = x @ kernel + bias, 0.3 / 0.7 * (x**2 @ kernel**2 + bias**2)
    assert np.all(np.abs(out.mean(0) - mean[0]) <= 5 * np.sqrt(variance[0] / 40_000))
    # The standard error of a variance: the root of (fourth moment - variance^2) / n.
    fourth = ((out - out.mean(0)) ** 4).mean(0)
    assert np.all(np.abs(out.var(0) - variance[0]) <= 5 * np.sqrt((fourth - variance[0] ** 2) / 40_000))


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_the_share_of_dropped_weights_is_the_rate(mode):
    inner = Dense(200, kernel_initializer="ones", use_bias=False)
    x = np.eye(200, dtype="float32")  # so that a row of the output is a row of the kernel
    out = run(DropConnect(inner, 0.3, mode, seed=3), x, training=True)
    assert np.mean(out == 0) == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 40_000))
    np.testing.assert_allclose(out[out > 0], 1 / 0.7, rtol=1e-5)
    same = run(DropConnect(inner, 0.3, mode, seed=3), np.ones((8, 200), "float32"), training=True)
    assert (same != same[0]).any() == (mode == "sample")


def test_rates_0_and_1():
    x = RNG.normal(size=(3, 4)).astype("float32")
    inner = ramped(Dense(2), (4,))
    np.testing.assert_array_equal(run(DropConnect(inner, 0), x, training=True), run(inner, x))
    for mode in ("sample", "batch"):
        np.testing.assert_array_equal(run(DropConnect(inner, 1, mode), x, training=True), np.zeros((3, 2)))


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_losses_are_those_of_the_layer(mode):
    inner = Dense(2, kernel_regularizer="l2", activity_regularizer="l1")
    layer = DropConnect(ramped(inner, (4,)), 0.5, mode, seed=1)
    x = RNG.normal(size=(3, 4)).astype("float32")
    out = run(layer, x, training=True)
    plain = keras.layers.Activation("linear", activity_regularizer="l1")
    plain(out)
    expected = sorted([0.01 * (inner.get_weights()[0] ** 2).sum(), float(plain.losses[0])])
    assert sorted(float(loss) for loss in layer.losses) == pytest.approx(expected, rel=1e-4)


def test_it_takes_the_dtype_policy_of_the_layer():
    layer = DropConnect(Dense(2, dtype="mixed_float16"), 0.5)
    for training in (False, True):
        assert keras.backend.standardize_dtype(layer(np.ones((3, 4)), training=training).dtype) == "float16"
    assert layer.dtype_policy.name == "mixed_float16" and layer.layer.kernel.dtype == "float32"


@pytest.mark.tensorflow
def test_sizes_that_are_unknown_when_traced_change_nothing():
    import tensorflow as tf

    inner = ramped(Conv2D(3, 3, strides=2, padding="same"), (7, 6, 2))
    known, unknown = DropConnect(inner, 0.3, seed=1), DropConnect(inner, 0.3, seed=1)
    traced = tf.function(lambda v: unknown(v, training=True), input_signature=[tf.TensorSpec([None, None, None, 2])])
    x = RNG.normal(size=(4, 7, 6, 2)).astype("float32")
    np.testing.assert_allclose(traced(x).numpy(), run(known, x, training=True), rtol=1e-4, atol=1e-5)


class Twice(Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_a_layer_that_computes_otherwise_has_one_mask_for_the_batch():
    with pytest.raises(TypeError, match="with the `call` of its class"):
        DropConnect(Twice(2), 0.5)
    x = np.ones((3, 4), "float32")
    layer = DropConnect(Twice(2, kernel_initializer="ones"), 0.5, "batch", seed=1)
    assert np.all(run(layer, x, training=True) % 4 == 0)
    assert np.all(run(layer, x) == 8)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DropConnect(Dense(2), 1.1), ValueError, "Received: rate=1.1"),
        (lambda: DropConnect(Dense(2), 0.1, "row"), ValueError, "`mode` must be one of 'sample', 'batch'"),
        (lambda: DropConnect(Dense(2), 0.1, drop_bias="no"), TypeError, "Received: drop_bias='no'"),
        (lambda: DropConnect(keras.layers.Dropout(0.1), 0.1), TypeError, "`layer` must be one of Dense, EinsumDense"),
        (lambda: DropConnect(Conv2DTranspose(2, 3), 0.1), TypeError, 'Conv3D in mode "sample"'),
        (lambda: DropConnect(EinsumDense("ab,ac->c", 2), 0.1), ValueError, "must keep its first axis"),
        (lambda: DropConnect(EinsumDense("ab,abc->ac", 2), 0.1), ValueError, "must keep its first axis"),
    ],
)
def test_bad_arguments_fail(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_low_rank_adaptation_is_refused(mode):
    inner = ramped(Dense(4), (4,))
    inner.enable_lora(2)
    with pytest.raises(ValueError, match="without LoRA"):
        DropConnect(inner, 0.5, mode)(np.ones((2, 4)), training=True)
