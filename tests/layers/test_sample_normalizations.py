"""InstanceNormalization, FilterResponseNormalization, TLU and EvoNormS0: formulas, axes, masks, large numbers."""

import keras
import normalization_twins as twins
import numpy as np
import pytest
from keras import ops

from keras_trainkit import layers
from keras_trainkit.testing import layer_contracts

RNG = np.random.default_rng(11)
V = np.linspace(-1, 2, 4).astype("float32")
GAMMA, BETA = np.array([1.0, 2.0, -1.0, 0.5], "float32"), np.array([0.0, 1.0, 2.0, -3.0], "float32")
KINDS = {
    "instance": (lambda **options: layers.InstanceNormalization(epsilon=1e-4, **options), twins.instance, (1e-4,)),
    "response": (
        lambda **options: layers.FilterResponseNormalization(epsilon=1e-4, **options),
        twins.filter_response,
        (1e-4,),
    ),
    "evonorm": (lambda **options: layers.EvoNormS0(2, epsilon=1e-4, **options), twins.evonorm, (V, 2, 1e-4)),
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def made(kind, shape, **options):
    """The layer with weights that tell channels apart."""
    layer = KINDS[kind][0](**options)
    layer.build((None, *shape))
    layer.gamma.assign(GAMMA)
    layer.beta.assign(BETA)
    if kind == "evonorm":
        layer.v.assign(V)
    return layer


def expected(kind, x, **options):
    """x is (batch, positions, 4)."""
    _, twin, arguments = KINDS[kind]
    return twin(x, *arguments, **options) * GAMMA + BETA


def run(layer, x, **keywords):
    return ops.convert_to_numpy(ops.cast(layer(x, **keywords), "float32"))


def normal(*shape):
    return RNG.normal(1.0, 2.0, size=shape).astype("float32")


@every_kind
@pytest.mark.parametrize("positions", [(6,), (2, 3), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("axis", ["last", "first", "middle"])
def test_equals_its_twin_in_any_rank_and_format(kind, positions, axis):
    x = normal(3, *positions, 4)
    at = {"last": -1, "first": 1, "middle": -2}[axis]
    layer = made(kind, np.moveaxis(x, -1, at).shape[1:], axis=at)
    out = np.moveaxis(run(layer, np.moveaxis(x, -1, at)), at, -1)
    np.testing.assert_allclose(out.reshape(3, 6, 4), expected(kind, x.reshape(3, 6, 4)), rtol=1e-4, atol=1e-5)


@every_kind
def test_padding_does_not_count(kind):
    x = normal(3, 6, 4)
    valid = np.arange(6) < np.array([[6], [4], [1]])
    layer = made(kind, (6, 4))
    out = run(layer, x, mask=ops.convert_to_tensor(valid))
    np.testing.assert_allclose(out[valid], expected(kind, x, valid=valid)[valid], rtol=1e-4, atol=1e-5)
    # What stands there may be anything, and a sample alone gives the same.
    worse = np.where(valid[..., None], x, np.float32(np.inf))
    np.testing.assert_allclose(run(layer, worse, mask=ops.convert_to_tensor(valid))[valid], out[valid], rtol=1e-6)
    np.testing.assert_allclose(run(layer, x[1:2, :4]), out[1:2, :4], rtol=1e-4, atol=1e-5)


@every_kind
def test_a_mask_by_rows_of_an_image_and_none_kept(kind):
    x = normal(2, 3, 2, 4)
    rows = np.array([[True, True, False], [False, False, False]])
    out = run(made(kind, (3, 2, 4)), x, mask=ops.convert_to_tensor(rows))
    valid = np.repeat(rows, 2, axis=1)[:1]
    np.testing.assert_allclose(
        out[:1, :2].reshape(1, 4, 4),
        expected(kind, x[:1].reshape(1, 6, 4), valid=valid)[:, :4],
        rtol=1e-4,
        atol=1e-5,
    )
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="a mask must have the axes of batch and positions"):
        made(kind, (3, 2, 4))(x, mask=np.ones(x.shape, bool))


@every_kind
def test_samples_do_not_meet(kind):
    x = normal(4, 5, 4)
    layer = made(kind, (5, 4))
    together = run(layer, x)
    for sample in range(4):
        np.testing.assert_allclose(run(layer, x[sample : sample + 1])[0], together[sample], rtol=1e-5, atol=1e-6)


def test_instance_equals_keras_where_keras_can():
    x = normal(3, 4, 5, 4)
    for axis in (-1, 1):
        ours, theirs = layers.InstanceNormalization(axis), keras.layers.GroupNormalization(-1, axis=axis)
        np.testing.assert_allclose(run(ours, x), run(theirs, x), rtol=1e-4, atol=1e-5)
    theirs.set_weights(ours.get_weights())
    # Why it is a class: Keras's counts padding.
    valid = np.arange(6) < np.array([[6], [3]])
    x, more = normal(2, 6, 4), normal(2, 6, 4)
    other = np.where(valid[..., None], x, more)
    ours, theirs = layers.InstanceNormalization(), keras.layers.GroupNormalization(-1)
    assert np.abs(run(theirs, x)[valid] - run(theirs, other)[valid]).max() > 0.1
    mask = ops.convert_to_tensor(valid)
    np.testing.assert_allclose(run(ours, x, mask=mask)[valid], run(ours, other, mask=mask)[valid], rtol=1e-6)


def test_instance_is_blind_to_scale_and_offset_and_response_to_scale():
    x = normal(3, 7, 4)
    scale, offset = np.abs(normal(3, 1, 4)) + 0.5, normal(3, 1, 4)
    instance = layers.InstanceNormalization(epsilon=1e-12)
    np.testing.assert_allclose(run(instance, x * scale + offset), run(instance, x), rtol=1e-3, atol=1e-4)
    response = layers.FilterResponseNormalization(epsilon=1e-12)
    np.testing.assert_allclose(run(response, x * scale), run(response, x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.mean(run(response, x) ** 2, axis=1), 1, rtol=1e-4)


@every_kind
@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_float16_does_not_overflow(kind, policy):
    """Squares of 1000 are no float16, nor is the sum of 4096 such numbers."""
    x = (1000 * RNG.normal(size=(2, 4096, 4))).astype("float16")
    assert np.isinf(np.square(x)).any() and np.isinf(np.abs(x).sum(dtype="float16"))
    layer = KINDS[kind][0](dtype=policy)
    out = run(layer, x)
    full = run(KINDS[kind][0](), x.astype("float32"))
    assert keras.backend.standardize_dtype(layer(x).dtype) == "float16"
    np.testing.assert_allclose(out, full, rtol=2e-3, atol=2e-3)


def test_float64_stays():
    if keras.backend.backend() == "jax":
        pytest.skip("Keras on JAX has no float64")
    x = RNG.normal(size=(2, 9, 4))
    for kind, (make, twin, arguments) in KINDS.items():
        layer = make(dtype="float64")
        layer.build(x.shape)
        if kind == "evonorm":
            layer.v.assign(V)
        np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), twin(x, *arguments), rtol=1e-12, atol=1e-12)


def test_learned_epsilon():
    layer = layers.FilterResponseNormalization(epsilon=1e-6, learned_epsilon=True)
    layer.build((None, 4))
    assert [v.name for v in layer.trainable_variables] == ["gamma", "beta", "epsilon_weight"]
    np.testing.assert_allclose(ops.convert_to_numpy(layer.epsilon_weight), 1e-4)
    layer.epsilon_weight.assign([0.5, -0.5, 3.0, 0.0])
    x = normal(5, 4)
    expected = x / np.sqrt(x**2 + 1e-6 + np.array([0.5, 0.5, 3.0, 0.0]))
    np.testing.assert_allclose(run(layer, x), expected, rtol=1e-5)
    assert len(layers.FilterResponseNormalization().weights) == 0


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_threshold(axis):
    layer = layers.TLU(axis)
    x = normal(3, 4, 4)
    np.testing.assert_array_equal(run(layer, x), np.maximum(x, 0))
    layer.tau.assign([-1.0, 0.0, 1.0, 5.0])
    tau = np.array([-1.0, 0.0, 1.0, 5.0]).reshape((1, 1, 4) if axis == -1 else (1, 4, 1))
    np.testing.assert_array_equal(run(layer, x), np.maximum(x, tau.astype("float32")))
    # The slope of the output's mean square: 2 tau for each element that lies below its threshold.
    _, slope = layer_contracts.gradients(layer, x)
    below = (x < tau).sum(axis=(0, 1) if axis == -1 else (0, 2))
    np.testing.assert_allclose(slope, 2 * tau.ravel() * below / x.size, rtol=1e-5)


@every_kind
def test_arguments_of_the_weights(kind):
    layer = KINDS[kind][0](gamma_regularizer=keras.regularizers.L2(0.5), beta_initializer="ones")
    x = normal(2, 3, 4)
    layer(x)
    assert float(sum(layer.losses)) == pytest.approx(2.0)
    again = type(layer).from_config(layer.get_config())
    np.testing.assert_allclose(run(again, x), run(layer, x), rtol=1e-6)
    assert again.gamma_regularizer.l2 == 0.5
    layer.trainable = False
    assert not layer.trainable_variables


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: layers.InstanceNormalization(epsilon=0), ValueError, "Received: epsilon=0"),
        (lambda: layers.FilterResponseNormalization(epsilon=-1), ValueError, "Received: epsilon=-1"),
        (lambda: layers.FilterResponseNormalization(learned_epsilon=1), TypeError, "`learned_epsilon`"),
        (lambda: layers.EvoNormS0(0), ValueError, "Received: groups=0"),
        (lambda: layers.EvoNormS0(3)(normal(2, 3, 4)), ValueError, "must divide the number of channels, 4"),
        (lambda: layers.EvoNormS0(2, axis=0)(normal(2, 3, 4)), ValueError, "Received: axis=0"),
        (lambda: layers.TLU(axis=3)(normal(2, 3, 4)), ValueError, "Received: axis=3"),
        (lambda: layers.InstanceNormalization()(normal(2, 4)), ValueError, "must have at least 3 axes"),
        (lambda: layers.TLU()(keras.Input((4, None))), ValueError, "must be known"),
        (lambda: layers.TLU(axis=1.5), TypeError, "Received: axis=1.5"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
