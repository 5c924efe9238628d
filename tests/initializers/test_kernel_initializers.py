"""What convolutions and dense layers compute with these kernels, and how the initializers are saved."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.initializers import ICNR, DeltaOrthogonal, Dirac, Sparse, ZerO

RNG = np.random.default_rng(0)

CASES = [
    DeltaOrthogonal(1.5, groups=2, seed=3),
    Dirac(groups=2, gain=0.5),
    Dirac("depthwise"),
    ICNR(2, "glorot_uniform", "pixel_shuffle", seed=4),
    ICNR([2, 2], keras.initializers.Orthogonal(seed=2)),
    Sparse(0.6, 0.5, seed=5),
    ZerO(2.0),
]


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def draw(initializer, shape, dtype=None):
    return numpy(initializer(shape, dtype=dtype))


# -- all of them


@pytest.mark.parametrize("initializer", CASES, ids=lambda i: type(i).__name__)
def test_configuration_survives_json_and_a_file(initializer, tmp_path):
    config = json.loads(json.dumps(keras.initializers.serialize(initializer)))
    loaded = keras.initializers.get(config)
    np.testing.assert_array_equal(draw(loaded, (3, 3, 2, 8)), draw(initializer, (3, 3, 2, 8)))
    assert json.loads(json.dumps(keras.initializers.serialize(loaded))) == config
    layer = keras.layers.Conv2D(8, 3, kernel_initializer=initializer)
    model = keras.Sequential([keras.Input((5, 5, 2)), layer])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[0].kernel_initializer
    assert again.get_config() == initializer.get_config()


@pytest.mark.parametrize("initializer", CASES, ids=lambda i: type(i).__name__)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_the_rounded_float32(initializer, dtype):
    if isinstance(initializer, ICNR):
        pytest.skip("the values are the inner initializer's, in the dtype asked for")
    values = initializer((3, 4, 8), dtype=dtype)
    assert keras.backend.standardize_dtype(values.dtype) == dtype
    rounded = numpy(ops.cast(initializer((3, 4, 8), dtype="float32"), dtype))
    np.testing.assert_array_equal(numpy(values), rounded)


@pytest.mark.parametrize(
    "kind", [DeltaOrthogonal, lambda seed: Sparse(0.5, seed=seed), lambda seed: ICNR(2, seed=seed)]
)
def test_seeds_mean_what_they_mean_in_keras(kind):
    shape = (3, 3, 4, 8)
    np.testing.assert_array_equal(draw(kind(seed=1), shape), draw(kind(seed=1), shape))
    assert not np.array_equal(draw(kind(seed=1), shape), draw(kind(seed=2), shape))
    moving = kind(seed=keras.random.SeedGenerator(1))
    assert not np.array_equal(draw(moving, shape), draw(moving, shape))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DeltaOrthogonal(gain=0), ValueError, "Received: gain=0"),
        (lambda: DeltaOrthogonal(groups=0), ValueError, "Received: groups=0"),
        (lambda: DeltaOrthogonal()((3, 3, 4, 2)), ValueError, "as many outputs as inputs"),
        (lambda: DeltaOrthogonal(groups=2)((3, 4, 6)), ValueError, "as many outputs as inputs"),
        (lambda: DeltaOrthogonal()((4, 4)), ValueError, "3 to 5 axes"),
        (lambda: Dirac(groups="deptwise"), TypeError, "Received: groups='deptwise'"),
        (lambda: Dirac(groups=3)((3, 2, 4)), ValueError, "must divide the 4 output channels"),
        (lambda: Dirac()((4, 4)), ValueError, "3 to 5 axes"),
        (lambda: ICNR(0), ValueError, "Received: scale=0"),
        (lambda: ICNR([2, 0]), ValueError, "Received: scale=0"),
        (lambda: ICNR(2, order="torch"), ValueError, "Received: order='torch'"),
        (lambda: ICNR(2, "he_norml"), ValueError, "he_norml"),
        (lambda: ICNR(2, keras.initializers.HeNormal(), seed=1), ValueError, "`seed` is for"),
        (lambda: ICNR(2)((3, 3, 4, 6)), ValueError, "4 pixels of one"),
        (lambda: ICNR([2])((3, 3, 4, 8)), ValueError, "each of the 2 spatial axes"),
        (lambda: Sparse(1.0), ValueError, "Received: sparsity=1.0"),
        (lambda: Sparse(0.5, stddev=0), ValueError, "Received: stddev=0"),
        (lambda: Sparse(0.5)((4,)), ValueError, "two axes"),
        (lambda: ZerO(0), ValueError, "Received: gain=0"),
        (lambda: ZerO()((4,)), ValueError, "3 to 5 axes"),
    ],
)
def test_bad_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


# -- DeltaOrthogonal


def convolve(x, kernel, groups=1):
    """A circular convolution, slowly: y[p] = the sum over taps t of x[p + t - centre] kernel[t]."""
    spatial, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
    y = np.zeros((*x.shape[:-1], outputs))
    for tap in np.ndindex(*spatial):
        shift = [(size - 1) // 2 - t for t, size in zip(tap, spatial, strict=True)]
        moved = np.roll(x, shift, axis=tuple(range(1, len(spatial) + 1)))
        for g in range(groups):
            own = slice(g * (outputs // groups), (g + 1) * (outputs // groups))
            y[..., own] += moved[..., g * inputs : (g + 1) * inputs] @ kernel[tap][:, own]
    return y


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 3, 8), (3, 3, 4, 6), (2, 3, 2, 3, 5)])
def test_a_circular_convolution_keeps_the_norm_at_every_position(shape):
    kernel = draw(DeltaOrthogonal(gain=1.5, seed=1), shape)
    x = RNG.normal(size=(2, *[7] * (len(shape) - 2), shape[-2]))
    y = convolve(x, kernel)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 1.5 * np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_each_group_keeps_its_norm():
    kernel = draw(DeltaOrthogonal(groups=2, seed=1), (3, 3, 8))
    x = RNG.normal(size=(2, 7, 6))
    y = convolve(x, kernel, groups=2)
    for half in range(2):
        inputs, outputs = x[..., 3 * half : 3 * half + 3], y[..., 4 * half : 4 * half + 4]
        np.testing.assert_allclose(np.linalg.norm(outputs, axis=-1), np.linalg.norm(inputs, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "orthogonal"])
def test_sixty_layers_keep_an_image_where_an_orthogonal_kernel_loses_it(kind):
    make = DeltaOrthogonal if kind == "ours" else keras.initializers.Orthogonal
    x = RNG.normal(size=(1, 8, 8, 6)).astype("float32")
    y = ops.convert_to_tensor(x)
    for seed in range(60):
        layer = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, kernel_initializer=make(seed=seed))
        y = layer(y)
    ratio = np.linalg.norm(numpy(y)) / np.linalg.norm(x)
    assert ratio == pytest.approx(1, abs=1e-4) if kind == "ours" else abs(np.log10(ratio)) > 1


def test_matrices_are_uniform_over_all_rotations():
    # Each entry of a random orthogonal 4 x 4 matrix has mean 0 and mean square 1/4, with a variance of the square of
    # 3 / (4 * 6) - 1/16 = 1/16; five standard errors of 400 draws.
    moving = DeltaOrthogonal(seed=keras.random.SeedGenerator(1))
    values = np.array([draw(moving, (1, 4, 4))[0] for _ in range(400)])
    assert np.abs(values.mean(0)).max() < 5 * 0.5 / 20
    assert np.abs(np.square(values).mean(0) - 0.25).max() < 5 * 0.25 / 20


# -- Dirac


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (keras.layers.Conv1D(4, 3, padding="same", kernel_initializer=Dirac()), 1),
        (keras.layers.Conv1D(4, 4, padding="same", kernel_initializer=Dirac()), 1),
        (keras.layers.Conv2D(4, (3, 2), padding="same", kernel_initializer=Dirac()), 2),
        (keras.layers.Conv2D(4, 3, padding="same", groups=2, kernel_initializer=Dirac(2)), 2),
        (keras.layers.Conv3D(4, 3, padding="same", kernel_initializer=Dirac()), 3),
        (keras.layers.Conv2D(4, 3, padding="same", dilation_rate=2, kernel_initializer=Dirac()), 2),
        (keras.layers.Conv2DTranspose(4, 3, padding="same", kernel_initializer=Dirac()), 2),
        (keras.layers.DepthwiseConv2D(3, padding="same", depthwise_initializer=Dirac("depthwise")), 2),
        (
            keras.layers.SeparableConv1D(
                4, 3, padding="same", depthwise_initializer=Dirac("depthwise"), pointwise_initializer=Dirac()
            ),
            1,
        ),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_output_is_the_input(layer, rank):
    x = RNG.normal(size=(2, *[6] * rank, 4)).astype("float32")
    np.testing.assert_allclose(numpy(layer(x)), x, rtol=1e-6)


def test_more_and_fewer_channels():
    x = RNG.normal(size=(2, 5, 3)).astype("float32")
    wide = numpy(keras.layers.Conv1D(5, 3, padding="same", kernel_initializer=Dirac(gain=2.0))(x))
    np.testing.assert_allclose(wide, np.concatenate([2 * x, 0 * x[..., :2]], axis=-1), rtol=1e-6)
    narrow = numpy(keras.layers.Conv1D(2, 3, padding="same", kernel_initializer=Dirac())(x))
    np.testing.assert_allclose(narrow, x[..., :2], rtol=1e-6)


def test_groups_are_those_of_torch():
    # torch.nn.init.dirac_(torch.empty(6, 2, 3), groups=2), by its documentation: in each group of 3 outputs the first
    # min(3, 2) have their own input at the middle tap.
    expected = np.zeros((6, 2, 3))
    for output, channel in ((0, 0), (1, 1), (3, 0), (4, 1)):
        expected[output, channel, 1] = 1
    np.testing.assert_array_equal(draw(Dirac(2), (3, 2, 6)), expected.transpose(2, 1, 0))


# -- ICNR


def depth_to_space(x, scale, order):
    """By its definition: output pixel (i, j) of each input pixel takes channels of its own."""
    batch, height, width, depth = x.shape
    channels = depth // (scale * scale)
    y = np.zeros((batch, height * scale, width * scale, channels))
    for i in range(scale):
        for j in range(scale):
            pixel = i * scale + j
            first = order == "depth_to_space"
            own = slice(pixel * channels, (pixel + 1) * channels) if first else slice(pixel, None, scale * scale)
            y[:, i::scale, j::scale] = x[..., own]
    return y


@pytest.mark.parametrize("order", ["depth_to_space", "pixel_shuffle"])
@pytest.mark.parametrize("scale", [2, 3])
def test_it_starts_as_nearest_neighbour_upsampling(order, scale):
    x = RNG.normal(size=(2, 5, 4, 3)).astype("float32")
    inner = keras.initializers.GlorotNormal(seed=7)
    icnr = ICNR(scale, inner, order)
    layer = keras.layers.Conv2D(5 * scale**2, 3, padding="same", kernel_initializer=icnr)
    plain = keras.layers.Conv2D(5, 3, padding="same", kernel_initializer=inner)
    nearest = numpy(plain(x)).repeat(scale, axis=1).repeat(scale, axis=2)
    np.testing.assert_allclose(depth_to_space(numpy(layer(x)), scale, order), nearest, rtol=1e-5, atol=1e-6)


@pytest.mark.tensorflow
def test_it_fits_tensorflows_depth_to_space():
    import tensorflow as tf

    x = RNG.normal(size=(1, 4, 4, 3)).astype("float32")
    y = tf.nn.depth_to_space(keras.layers.Conv2D(8, 3, padding="same", kernel_initializer=ICNR(2, seed=1))(x), 2)
    np.testing.assert_array_equal(y[:, ::2, ::2], y[:, 1::2, 1::2])


def test_one_and_three_axes_and_a_scale_for_each():
    assert len(np.unique(draw(ICNR(3, seed=1), (2, 1, 6)))) == 4
    assert len(np.unique(draw(ICNR(2, seed=1), (1, 1, 1, 1, 16)))) == 2
    assert len(np.unique(draw(ICNR([2, 3], seed=1), (1, 1, 1, 12)))) == 2


def test_the_default_is_he_normal_of_the_kernel_that_is_drawn():
    # 9 * 64 inputs: stddev sqrt(2 / 576); 18,432 draws, standard error 0.52%, five of them.
    values = draw(ICNR(2, seed=1), (3, 3, 64, 128))
    assert np.std(values) == pytest.approx(np.sqrt(2 / 576), rel=0.026)


# -- ZerO


def test_zero_by_the_papers_algorithm():
    scipy = pytest.importorskip("scipy.linalg")
    for inputs, outputs in [(4, 4), (7, 3), (3, 7), (5, 8), (1, 2), (6, 33)]:
        if outputs <= inputs:
            expected = np.eye(outputs, inputs)
        else:
            power = int(np.ceil(np.log2(outputs)))
            hadamard = scipy.hadamard(2**power) / 2 ** (power / 2)
            expected = np.eye(outputs, 2**power) @ hadamard @ np.eye(2**power, inputs)
        np.testing.assert_allclose(draw(ZerO(), (inputs, outputs)), expected.T, rtol=1e-6)
        kernel = draw(ZerO(2.0), (3, 5, inputs, outputs))
        np.testing.assert_allclose(kernel[1, 2], 2 * expected.T, rtol=1e-6)
        kernel[1, 2] = 0
        assert not kernel.any()


def test_zero_keeps_rank_and_norms():
    x = RNG.normal(size=(20, 8)).astype("float32")
    same = keras.layers.Dense(8, kernel_initializer=ZerO())(x)
    np.testing.assert_array_equal(numpy(same), x)
    wide = numpy(keras.layers.Dense(32, kernel_initializer=ZerO())(x))
    np.testing.assert_allclose(np.linalg.norm(wide, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    assert np.abs(wide).min(axis=0).max() > 0  # every unit has something of the inputs
    assert np.linalg.matrix_rank(draw(ZerO(), (8, 30))) == 8
    assert np.linalg.matrix_rank(draw(ZerO(), (30, 8))) == 8


# -- Sparse


@pytest.mark.parametrize(
    ("sparsity", "shape", "zeros"),
    [
        (0.85, (100, 30), 85),
        (0.1, (30, 7), 3),
        (0.5, (5, 6), 3),
        (0.0, (9, 4), 0),
        (0.999, (10, 4), 10),
        (0.7, (3, 3, 4, 8), 26),
        (1 - 15 / 784, (784, 5), 769),
    ],
)
def test_every_unit_has_exactly_so_many_zeros(sparsity, shape, zeros):
    values = draw(Sparse(sparsity, seed=3), shape).reshape(-1, shape[-1])
    assert np.sum(values == 0, axis=0).tolist() == [zeros] * shape[-1]


def test_what_is_left_is_normal_and_anywhere():
    values = draw(Sparse(0.75, stddev=0.3, seed=1), (400, 200))
    left = values[values != 0]
    # 20,000 values: standard errors 0.0021 of the mean and 0.0015 of the deviation; five of each.
    assert abs(left.mean()) < 0.0106 and left.std() == pytest.approx(0.3, abs=0.0075)
    # A normal distribution has a kurtosis of 3 with standard error sqrt(24 / n); what is kept must not depend on size.
    assert np.mean((left / left.std()) ** 4) == pytest.approx(3, abs=5 * np.sqrt(24 / len(left)))
    # Each input is left with probability 1/4 in each of 200 units.
    shares = np.mean(values != 0, axis=1)
    assert np.abs(shares - 0.25).max() < 5.5 * np.sqrt(0.25 * 0.75 / 200)
