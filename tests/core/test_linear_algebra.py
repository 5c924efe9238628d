"""Linear algebra against NumPy, and against what the theory promises."""

import numpy as np
import pytest
from keras import ops

from keras_trainkit.core import linear_algebra
from keras_trainkit.testing.problems import EXACT, WIDEST
from keras_trainkit.transforms.orthogonal import QUINTIC

RNG = np.random.default_rng(11)


def tensor(x):
    return ops.convert_to_tensor(x, WIDEST)


def orthogonal(size, columns=None):
    return np.linalg.qr(RNG.normal(size=(size, size)))[0][:, :columns]


def with_singular_values(rows, columns, values):
    return orthogonal(rows, len(values)) @ np.diag(values) @ orthogonal(columns, len(values)).T


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (3, 7, 4)])
def test_newton_schulz_brings_singular_values_into_its_band(shape):
    x = RNG.normal(size=shape)
    result = ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(x), QUINTIC, 5))
    before = np.linalg.svd(x, compute_uv=False)
    assert (before / np.linalg.norm(x, axis=(-2, -1))[..., None]).min() > 0.005  # where the band is promised
    values = np.linalg.svd(result, compute_uv=False)
    assert values.min() > 0.68 and values.max() < 1.16


def test_newton_schulz_band_holds_for_every_singular_value_from_a_two_hundredth_on():
    # A diagonal matrix of all these values at once is a bundle of scalar iterations.
    start = np.geomspace(0.005, 1.0, 2001)
    value = start
    for _ in range(5):
        value = QUINTIC[0] * value + QUINTIC[1] * value**3 + QUINTIC[2] * value**5
    assert value.min() > 0.68 and value.max() < 1.16
    wide = with_singular_values(8, 8, [1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.006])
    values = np.linalg.svd(ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(wide), QUINTIC, 5)))[1]
    assert values.min() > 0.68 and values.max() < 1.16


def test_newton_schulz_keeps_the_singular_vectors_and_any_rotation():
    x, left, right = RNG.normal(size=(6, 4)), orthogonal(6), orthogonal(4)
    plain = ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(x), QUINTIC, 5))
    turned = ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(left @ x @ right), QUINTIC, 5))
    np.testing.assert_allclose(turned, left @ plain @ right, rtol=0, atol=100 * EXACT)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    inner = u.T @ plain @ v.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), rtol=0, atol=100 * EXACT)
    scaled = ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(1e-3 * x), QUINTIC, 5))
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=100 * EXACT)


def test_newton_schulz_converges_to_the_polar_factor_with_the_classic_coefficients():
    x = with_singular_values(5, 4, [1.0, 0.8, 0.5, 0.3])
    result = ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(x), [15 / 8, -10 / 8, 3 / 8], 20))
    u, _, v = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(result, u @ v, rtol=0, atol=max(EXACT, 1e-9))


def plain_newton_schulz(x, steps):
    x = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
    for _ in range(steps):
        gram = x @ np.swapaxes(x, -1, -2)
        x = QUINTIC[0] * x + (QUINTIC[1] * gram + QUINTIC[2] * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(4, 5), (4, 7), (9, 2), (3, 5, 16)])
@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_newton_schulz_of_long_matrices_takes_the_same_steps(shape, steps):
    x = RNG.normal(size=shape)
    result = ops.convert_to_numpy(linear_algebra.newton_schulz(tensor(x), QUINTIC, steps))
    np.testing.assert_allclose(result, plain_newton_schulz(x, steps), rtol=0, atol=100 * EXACT)


@pytest.mark.parametrize("least", [1.0, 1e-2, 1e-4, 1e-8, 0.0])
def test_newton_schulz_of_long_matrices_in_float32_loses_nothing_to_small_singular_values(least):
    values = np.geomspace(1.0, least, 64) if least else np.where(np.arange(64) < 8, 1.0, 0.0)
    x = with_singular_values(64, 256, values)
    result = ops.convert_to_numpy(linear_algebra.newton_schulz(ops.convert_to_tensor(x, "float32"), QUINTIC, 5))
    np.testing.assert_allclose(result, plain_newton_schulz(x, 5), rtol=0, atol=1e-5)


def test_newton_schulz_of_zero_is_zero():
    zero = linear_algebra.newton_schulz(tensor(np.zeros((3, 2))), QUINTIC, 5)
    np.testing.assert_array_equal(ops.convert_to_numpy(zero), np.zeros((3, 2)))


@pytest.mark.parametrize("dtype", ["float32", WIDEST])
def test_rounding_is_that_of_bfloat16(dtype):
    x = ops.convert_to_tensor(RNG.normal(size=1000) * 10.0 ** RNG.uniform(-6, 6, 1000), "float32")
    there_and_back = ops.convert_to_numpy(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    rounded = linear_algebra.round_significand(ops.cast(x, dtype), 8)
    np.testing.assert_array_equal(ops.convert_to_numpy(rounded), there_and_back)
