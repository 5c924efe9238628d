"""SoftOrthogonal, SRIP and SpectralNorm against the theory of singular values and of the power iteration."""

import keras
import numpy as np
import pytest
from keras import ops
from slopes import gradient, gradient_function

from keras_trainkit.regularizers import SRIP, SoftOrthogonal, SpectralNorm

RNG = np.random.default_rng(52)


def descend(regularizer, weights, rate, steps):
    """Gradient descent on the penalty alone."""
    weights, slope = weights.astype("float32"), gradient_function(regularizer)
    for _ in range(steps):
        weights = weights - np.float32(rate) * slope(weights)
    return weights


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_the_doubled_form_is_twice_the_other_and_a_constant(shape):
    weights = RNG.normal(size=shape).astype("float32")
    single, double = (float(SoftOrthogonal(1.0, double=d)(ops.convert_to_tensor(weights))) for d in (False, True))
    assert double == pytest.approx(2 * single + shape[0] - shape[1], rel=1e-5)
    slopes = [gradient(SoftOrthogonal(1.0, double=d), weights) for d in (False, True)]
    np.testing.assert_allclose(slopes[1], 2 * slopes[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (2, 2, 2, 4)])
def test_soft_orthogonality_ends_at_an_orthogonal_matrix(shape):
    weights = descend(SoftOrthogonal(0.5), 0.5 * RNG.normal(size=shape), 0.1, 150).reshape(-1, shape[-1])
    np.testing.assert_allclose(np.linalg.svd(weights, compute_uv=False), 1.0, atol=1e-3)
    rest = max(weights.shape[1] - weights.shape[0], 0)
    assert float(SoftOrthogonal(1.0)(ops.convert_to_tensor(weights))) == pytest.approx(rest, abs=1e-4)


def test_kerass_own_asks_nothing_of_the_lengths_and_takes_no_convolution():
    theirs = keras.regularizers.OrthogonalRegularizer(1.0, mode="columns")
    scaled = ops.convert_to_tensor(np.diag([5.0, 0.1]).astype("float32"))
    assert float(theirs(scaled)) == 0
    assert float(SoftOrthogonal(1.0)(scaled)) == pytest.approx(24**2 + 0.99**2, rel=1e-5)
    with pytest.raises(ValueError, match="rank 2"):
        theirs(ops.ones((3, 3, 2, 4)))


def test_srip_is_the_distance_of_the_singular_value_that_is_off_most():
    left, _ = np.linalg.qr(RNG.normal(size=(9, 4)))
    right, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    for values in ([1.0, 1.1, 0.9, 1.3], [0.2, 1.05, 1.0, 0.9], [1.0, 1.0, 1.0, 1.0]):
        weights = ((left * values) @ right).astype("float32")
        worst = max(abs(v**2 - 1) for v in values)
        assert float(SRIP(1.0, iterations=60)(ops.convert_to_tensor(weights))) == pytest.approx(worst, abs=2e-5)


def test_srip_sees_the_norm_where_eigenvalues_of_both_signs_tie():
    # sqrt(1.5)^2 - 1 = 1/2 and sqrt(0.5)^2 - 1 = -1/2: the quotient of Rayleigh would be anything between.
    weights = np.diag(np.sqrt([1.5, 0.5, 1.0])).astype("float32")
    for seed in range(5):
        assert float(SRIP(1.0, iterations=30, seed=seed)(ops.convert_to_tensor(weights))) == pytest.approx(
            0.5, rel=1e-4
        )


def test_srip_pulls_all_singular_values_to_one_in_time():
    weights = descend(SRIP(1.0, iterations=3), RNG.normal(size=(10, 4)) / 2, 0.02, 400)
    np.testing.assert_allclose(np.linalg.svd(weights, compute_uv=False), 1.0, atol=0.05)


@pytest.mark.parametrize("iterations", [2, 8])
@pytest.mark.parametrize("kind", [SRIP, SpectralNorm])
def test_the_error_of_the_power_iteration_is_within_the_theorem(kind, iterations):
    # Kuczynski and Wozniakowski, 1992: over random starts the mean relative error of the largest
    # eigenvalue of a nonnegative n x n matrix after k steps is at most 0.871 log(n) / (k - 1); and never negative.
    # Squared norms of the product with k - 1 iterations behind it are at least as good as the quotient of k steps.
    n, seeds = 40, 15
    weights = RNG.normal(size=(60, n)).astype("float32")
    if kind is SRIP:
        weights = weights + 3 * np.eye(60, n, dtype="float32")
    product = weights.T.astype("float64") @ weights - (np.eye(n) if kind is SRIP else 0)
    exact = np.abs(np.linalg.eigvalsh(product)).max() * (1 if kind is SRIP else 0.5)
    tensor = ops.convert_to_tensor(weights)
    found = [float(kind(1.0, iterations=iterations, seed=s)(tensor)) for s in range(seeds)]
    errors = 1 - np.array(found) / exact
    assert errors.min() > -1e-5
    assert errors.mean() <= min(0.871 * np.log(n) / iterations, 1)
    assert errors.max() > errors.min()  # another seed is another start


def test_more_iterations_see_more():
    weights = ops.convert_to_tensor(RNG.normal(size=(30, 30)).astype("float32"))
    found = [float(SpectralNorm(1.0, iterations=k)(weights)) for k in (1, 2, 4, 8, 16, 200)]
    assert (np.diff(found) > -1e-4).all()
    assert found[-1] == pytest.approx(np.linalg.norm(ops.convert_to_numpy(weights), 2) ** 2 / 2, rel=1e-3)


def test_the_spectral_norm_shrinks_and_the_other_singular_values_stay():
    left, _ = np.linalg.qr(RNG.normal(size=(8, 3)))
    right, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    weights = (left * [3.0, 1.0, 0.5]) @ right
    # The slope is factor times the singular value: each step takes off a tenth, until it meets the second.
    moved = descend(SpectralNorm(1.0, iterations=50), weights, 0.1, 5)
    found = np.linalg.svd(moved, compute_uv=False)
    np.testing.assert_allclose(found, [3 * 0.9**5, 1.0, 0.5], rtol=1e-3)


def test_the_same_weights_give_the_same_penalty_in_every_call():
    weights = ops.convert_to_tensor(RNG.normal(size=(20, 10)).astype("float32"))
    for regularizer in (SRIP(1.0, iterations=1), SpectralNorm(1.0, iterations=1)):
        assert float(regularizer(weights)) == float(type(regularizer).from_config(regularizer.get_config())(weights))
