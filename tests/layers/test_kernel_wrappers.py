"""WeightNormalization and WeightStandardization: formulas by layer, invariants, what stays of the wrapped layer."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import layers
from keras_trainkit.layers.kernel_wrapper import kernels_of
from keras_trainkit.testing.layer_contracts import gradients

RNG = np.random.default_rng(13)

# The layer, the shape of a sample, and for each kernel the axes of one output's weights.
WRAPPED = {
    "dense": (lambda: keras.layers.Dense(5, activation="relu"), (3,), [(0,)]),
    "conv1": (lambda: keras.layers.Conv1D(5, 2), (6, 3), [(0, 1)]),
    "conv2-groups": (lambda: keras.layers.Conv2D(6, 2, groups=3, strides=2), (5, 6, 3), [(0, 1, 2)]),
    "conv3": (lambda: keras.layers.Conv3D(4, 2), (3, 3, 3, 2), [(0, 1, 2, 3)]),
    "transposed": (lambda: keras.layers.Conv2DTranspose(5, 2), (4, 4, 3), [(0, 1, 3)]),
    "depthwise": (lambda: keras.layers.DepthwiseConv2D(2, depth_multiplier=2), (4, 4, 3), [(0, 1)]),
    "separable": (lambda: keras.layers.SeparableConv1D(5, 3, depth_multiplier=2), (6, 3), [(0,), (0, 1)]),
    "einsum": (
        lambda: keras.layers.EinsumDense("abc,dce->abed", (4, 2, 5), bias_axes="ed"),
        (4, 3),
        [(1,)],
    ),
    "einsum-dots": (lambda: keras.layers.EinsumDense("...x,xy->...y", (4, 5), bias_axes="y"), (4, 3), [(0,)]),
    "lstm": (lambda: keras.layers.LSTM(4, return_sequences=True), (5, 3), [(0,), (0,)]),
}
every_layer = pytest.mark.parametrize("name", list(WRAPPED))
KERNELS = {"weight normalization": layers.WeightNormalization, "standardization": layers.WeightStandardization}


def normal(*shape):
    return RNG.normal(1.0, 2.0, size=shape).astype("float32")


def run(layer, x, **keywords):
    return ops.convert_to_numpy(ops.cast(layer(x, **keywords), "float32"))


def built(wrapper, name, **options):
    make, shape, axes = WRAPPED[name]
    layer = wrapper(make(), **options)
    layer.build((None, *shape))
    layer.set_weights([RNG.normal(0.3, 1.0, size=w.shape) for w in layer.get_weights()])
    return layer, normal(2, *shape), axes


def plainly(layer, kernels):
    """The wrapped layer alone, with other kernels."""
    plain = type(layer.layer).from_config(layer.layer.get_config())
    plain.build_from_config(layer.layer.get_build_config())
    plain.set_weights(layer.layer.get_weights())
    for kernel, value in zip(kernels_of(plain), kernels, strict=True):
        kernel.variable.assign(value)
    return plain


def arrays(layer):
    return [ops.convert_to_numpy(kernel.variable).astype("float64") for kernel in kernels_of(layer.layer)]


def broadcast(values, kernel, axes):
    """Values by output beside a kernel: axes of size 1 where weights are summed."""
    return ops.convert_to_numpy(values).reshape([1 if i in axes else n for i, n in enumerate(kernel.shape)])


# -- the formulas


@every_layer
def test_weight_normalization_is_its_formula(name):
    layer, x, axes = built(layers.WeightNormalization, name)
    kernels = []
    for v, g, summed in zip(arrays(layer), layer.g, axes, strict=True):
        kernels.append(broadcast(g, v, summed) * v / np.sqrt((v**2).sum(summed, keepdims=True)))
    np.testing.assert_allclose(run(layer, x), run(plainly(layer, kernels), x), rtol=1e-4, atol=1e-5)


@every_layer
@pytest.mark.parametrize("scaled", [False, True])
def test_weight_standardization_is_its_formula(name, scaled):
    if name == "lstm":
        with pytest.raises(ValueError, match="`layer` must not be recurrent"):
            layers.WeightStandardization(WRAPPED[name][0]())
        return
    layer, x, axes = built(layers.WeightStandardization, name, scaled=scaled)
    kernels = []
    for position, (w, summed) in enumerate(zip(arrays(layer), axes, strict=True)):
        apart = w - w.mean(summed, keepdims=True)
        if not scaled:
            kernels.append(apart / np.sqrt(w.var(summed, keepdims=True) + 1e-5))
        else:
            count = np.prod([w.shape[axis] for axis in summed])
            gain = broadcast(layer.weights[position], w, summed)
            kernels.append(gain * apart / np.sqrt(np.maximum(count * w.var(summed, keepdims=True), 1e-4)))
    np.testing.assert_allclose(run(layer, x), run(plainly(layer, kernels), x), rtol=1e-3, atol=1e-4)


def test_the_epsilons():
    tiny = 1e-3 * np.array([[1.0], [-1.0], [1.0], [-1.0]])
    for options, expected in [
        ({"epsilon": 1e-6}, 1e-3 / np.sqrt(2e-6)),
        ({"epsilon": 8e-6, "scaled": True}, 1e-3 / np.sqrt(8e-6)),  # 4 weights of variance 1e-6 are less
        ({"epsilon": 1e-9, "scaled": True}, 0.5),
    ]:
        layer = layers.WeightStandardization(keras.layers.Dense(1, use_bias=False), **options)
        layer.build((None, 4))
        layer.layer.kernel.assign(tiny)
        assert float(run(layer, np.array([[1, 0, 0, 0]], "float32"))[0, 0]) == pytest.approx(expected, rel=1e-4)


@every_layer
def test_weight_normalization_starts_as_the_plain_layer(name):
    make, shape, _ = WRAPPED[name]
    x = normal(2, *shape)
    keras.utils.set_random_seed(1)
    plain = run(make(), x)
    keras.utils.set_random_seed(1)
    np.testing.assert_allclose(run(layers.WeightNormalization(make()), x), plain, rtol=1e-4, atol=1e-5)


# -- invariants


@every_layer
@pytest.mark.parametrize("kind", list(KERNELS))
def test_scale_of_the_kernel_does_not_matter(name, kind):
    if kind == "standardization" and name == "lstm":
        pytest.skip("not for recurrent layers")
    options = {} if kind != "standardization" else {"epsilon": 1e-12}
    layer, x, axes = built(KERNELS[kind], name, **options)
    before = run(layer, x)
    for kernel, value, summed in zip(kernels_of(layer.layer), arrays(layer), axes, strict=True):
        factors = RNG.uniform(0.5, 3.0, size=[1 if i in summed else n for i, n in enumerate(value.shape)])
        offset = 1.0 if kind == "standardization" else 0.0
        kernel.variable.assign(factors * value + offset)
    np.testing.assert_allclose(run(layer, x), before, rtol=2e-3, atol=2e-3)


@every_layer
def test_the_gradient_is_orthogonal_to_v(name):
    """And for a standardized kernel to ones, too: its scale and its offset make no difference."""
    layer, x, axes = built(layers.WeightNormalization, name)
    found = gradients(layer, x)[1:]
    by_path = {v.path: g for v, g in zip(layer.trainable_variables, found, strict=True)}
    for kernel, v, summed in zip(kernels_of(layer.layer), arrays(layer), axes, strict=True):
        gradient = by_path[kernel.variable.path]
        size = np.sqrt((gradient**2).sum(summed) * (v**2).sum(summed))
        assert np.abs((gradient * v).sum(summed)).max() < 1e-5 * size.max()
    if name == "lstm":
        return
    layer, x, axes = built(layers.WeightStandardization, name, epsilon=1e-12)
    by_path = {v.path: g for v, g in zip(layer.trainable_variables, gradients(layer, x)[1:], strict=True)}
    for kernel, w, summed in zip(kernels_of(layer.layer), arrays(layer), axes, strict=True):
        gradient = by_path[kernel.variable.path]
        size = np.sqrt((gradient**2).sum(summed) * (w**2).sum(summed)).max()
        assert np.abs((gradient * w).sum(summed)).max() < 1e-4 * size
        assert np.abs(gradient.sum(summed)).max() < 1e-4 * np.abs(gradient).sum(summed).max()


def test_steps_of_gradient_descent_make_v_longer():
    model = keras.Sequential([keras.Input((3,)), layers.WeightNormalization(keras.layers.Dense(2))])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, lengths = normal(32, 3), []
    for _ in range(5):
        lengths.append(np.linalg.norm(ops.convert_to_numpy(model.layers[0].layer.kernel), axis=0))
        model.train_on_batch(x, x[:, :2] * 3)
    assert np.all(np.diff(lengths, axis=0) > -1e-6) and np.all(lengths[-1] > lengths[0])


def test_a_kernel_of_zeros_is_no_nan():
    layer = layers.WeightNormalization(keras.layers.Dense(2, kernel_initializer="zeros"))
    assert not run(layer, normal(2, 3)).any()
    assert all(np.isfinite(g).all() for g in gradients(layer, normal(2, 3)))


# -- what stays of the wrapped layer


@pytest.mark.parametrize("kind", list(KERNELS))
@pytest.mark.parametrize("name", ["dense", "separable", "transposed", "einsum"])
def test_removed_it_is_a_plain_layer_that_computes_the_same(kind, name):
    layer, x, _ = built(KERNELS[kind], name)
    plain = layer.remove()
    assert type(plain) is type(layer.layer) and plain is not layer.layer
    before = [ops.convert_to_numpy(w) for w in layer.weights]
    np.testing.assert_allclose(run(plain, x), run(layer, x), rtol=1e-4, atol=1e-5)
    for variable, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    with pytest.raises(ValueError, match="is not built"):
        KERNELS[kind](keras.layers.Dense(2)).remove()


def test_a_whole_model_is_folded():
    inner = keras.Sequential([keras.Input((6, 4)), layers.WeightStandardization(keras.layers.Conv1D(4, 3))])
    inputs = keras.Input((6, 3))
    x = layers.WeightNormalization(keras.layers.Conv1D(4, 1, activation="relu"))(inputs)
    x = keras.layers.BatchNormalization()(inner(keras.layers.Add()([x, keras.layers.Dense(4)(inputs)])))
    model = keras.Model(inputs, layers.WeightNormalization(keras.layers.LSTM(3))(x))
    model.set_weights([np.abs(RNG.normal(size=w.shape)) for w in model.get_weights()])
    plain = layers.fold_kernels(model)
    data = normal(4, 6, 3)
    np.testing.assert_allclose(run(plain, data), run(model, data), rtol=1e-4, atol=1e-5)
    kinds = {type(layer).__name__ for layer in plain._flatten_layers()}
    assert not kinds & {"WeightNormalization", "WeightStandardization"} and {"Conv1D", "LSTM"} <= kinds
    hidden = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.TimeDistributed(layers.WeightNormalization(keras.layers.Dense(2)))]
    )
    with pytest.raises(ValueError, match="must not hold a wrapper inside of another layer"):
        layers.fold_kernels(hidden)


@pytest.mark.parametrize("kind", list(KERNELS))
def test_regularizers_masks_names_and_losses_pass(kind):
    inner = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(1.0), activity_regularizer="l1")
    layer = KERNELS[kind](inner)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Masking(), layer])
    x = normal(2, 4, 3)
    out = run(model, x)
    activity = keras.layers.ActivityRegularization(l1=0.01)  # by the batch's size or not, as Keras's version has it
    activity(out)
    expected = np.sum(ops.convert_to_numpy(inner.kernel) ** 2) + float(sum(activity.losses))
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)
    model.compile("sgd", "mse")
    loss = model.train_on_batch(x, out)  # the prediction is right, so all loss is the regularizers'
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    layer.trainable = False
    assert not model.trainable_variables
    masked = KERNELS[kind](keras.layers.Dense(2))
    assert masked.compute_mask(x, "a mask") == "a mask"


def test_masks_reach_a_recurrent_layer():
    layer = layers.WeightNormalization(keras.layers.GRU(4))
    x = normal(2, 5, 3)
    mask = ops.convert_to_tensor([[True, True, True, False, False]] * 2)
    np.testing.assert_allclose(run(layer, x, mask=mask), run(layer, x[:, :3]), rtol=1e-4, atol=1e-5)
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.Masking(0.0), layer])
    x[:, 3:] = 0
    np.testing.assert_allclose(run(model, x), run(layer, x[:, :3]), rtol=1e-4, atol=1e-5)


def test_state_and_random_numbers_of_the_wrapped_layer_are_its_own():
    layer = layers.WeightNormalization(keras.layers.LSTM(3, stateful=True, dropout=0.5, seed=1))
    model = keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), layer])
    x = normal(2, 4, 3)
    first, second = run(model, x), run(model, x)
    assert np.abs(first - second).max() > 1e-4  # it went on from its state
    assert np.abs(run(model, x, training=True) - run(model, x, training=True)).max() > 1e-4
    if keras.backend.backend() != "tensorflow":
        return  # the train step of Keras on JAX leaves the states of its own layers, too, as they were
    model.compile("sgd", "mse")
    state = [ops.convert_to_numpy(s) for s in layer.layer.states]
    model.train_on_batch(x, first)
    assert all(np.abs(ops.convert_to_numpy(a) - b).max() > 0 for a, b in zip(layer.layer.states, state, strict=True))


@pytest.mark.parametrize("kind", list(KERNELS))
def test_kernels_are_computed_in_float32(kind):
    """A kernel of 1000s has squares that are no float16."""
    make = lambda: keras.layers.Dense(2, use_bias=False)  # noqa: E731
    full = KERNELS[kind](make())
    x, v = normal(4, 512), 1000 * RNG.normal(size=(512, 2))
    full.build(x.shape)
    full.layer.kernel.assign(v)
    half = KERNELS[kind](keras.layers.Dense(2, use_bias=False, dtype="mixed_float16"))
    assert half.compute_dtype == "float16" and half.variable_dtype == "float32"
    half.build(x.shape)
    half.set_weights(full.get_weights())
    if kind == "weight normalization":
        for layer in (full, half):
            layer.g[0].assign([1.0, 2.0])
    right = x @ (v / np.linalg.norm(v, axis=0) * [1, 2] if "norm" in kind else (v - v.mean(0)) / v.std(0))
    assert keras.backend.standardize_dtype(half(x).dtype) == "float16"
    np.testing.assert_allclose(run(full, x), right, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(run(half, x), right, rtol=0.02, atol=0.02 * np.abs(right).max())
    symbolic = half(keras.Input((512,)))
    assert symbolic.dtype == "float16"


@pytest.mark.tensorflow
def test_replicas_agree_with_one_device(two_replicas):
    def model():
        keras.utils.set_random_seed(3)
        inner = layers.WeightStandardization(keras.layers.Conv1D(4, 2), scaled=True)
        made = keras.Sequential([keras.Input((5, 3)), inner, layers.WeightNormalization(keras.layers.Dense(2))])
        made.compile(keras.optimizers.SGD(0.05), "mse")
        return made

    x = normal(16, 5, 3)
    alone = model()
    with two_replicas.scope():
        together = model()
    for each in (alone, together):
        each.fit(x, x[:, :4, :2], batch_size=8, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(alone.get_weights(), together.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.WeightNormalization("dense"), "supplied to Wrapper"),
        (lambda: layers.WeightNormalization(keras.layers.ReLU())(normal(2, 3)), "must have a kernel"),
        (lambda: layers.WeightNormalization(keras.layers.Embedding(3, 2))(np.zeros((2, 3))), "must have a kernel"),
        (lambda: layers.WeightStandardization(keras.layers.Conv1D(3, 2), epsilon=0), "Received: epsilon=0"),
        (
            lambda: layers.WeightNormalization(keras.layers.Dense(2, lora_rank=1))(normal(2, 3)),
            "a variable of its own",
        ),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
