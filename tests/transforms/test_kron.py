"""Kron: the preconditioner whitens, its factors keep their form, its randomness is a function of the step."""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers
from keras_trainkit.core.linear_algebra import spectral_norm_bound
from keras_trainkit.testing.problems import WIDEST, Stepper
from keras_trainkit.transforms import ScaleByKron
from keras_trainkit.transforms.kron import balanced, fitted, solved_along, update_probability

RNG = np.random.default_rng(15)


def tensor(x):
    return ops.convert_to_tensor(x, WIDEST)


def factors_of(step):
    return [ops.convert_to_numpy(v) for v in step.optimizer.variables if "factor_" in v.path]


def kron(**arguments):
    return optimizers.Kron(
        **({"learning_rate": 0.0, "beta_1": 0.0, "preconditioner_update_probability": 1.0} | arguments)
    )


def test_the_preconditioner_whitens_a_vector_with_full_factor():
    rng = np.random.default_rng(16)
    mix = np.array([[3.0, 0.0, 0.0], [2.0, 1.0, 0.0], [0.5, -0.3, 0.2]])
    step = Stepper(kron(min_ndim_triangular=1, precond_lr=0.02), [np.zeros(3)])
    products = []
    for number in range(2500):
        step([mix @ rng.normal(size=3)])
        if number > 1000 and number % 10 == 0:
            (factor,) = factors_of(step)
            products.append(factor.T @ factor)
    white = np.mean(products, axis=0) @ mix  # P mix of white noise has the covariance P (mix mix^T) P, which is to be 1
    np.testing.assert_allclose(white @ white.T, np.eye(3), atol=0.35)
    assert np.abs(mix @ mix.T - np.eye(3)).max() > 5


def test_a_diagonal_factor_finds_the_root_of_the_mean_square():
    rng = np.random.default_rng(16)
    scale = np.array([10.0, 1.0, 0.1])
    step = Stepper(kron(precond_lr=0.02), [np.zeros(3)])
    squares = []
    for number in range(2500):
        step([scale * rng.normal(size=3)])
        if number > 1000 and number % 10 == 0:
            squares.append(factors_of(step)[0] ** 2)
    np.testing.assert_allclose(np.mean(squares, axis=0) * scale, np.ones(3), atol=0.4)


def test_factors_stay_triangular_and_positive():
    step = Stepper(kron(beta_1=0.9), [np.zeros((4, 3))])
    for _ in range(60):
        step([RNG.normal(size=(4, 3))])
    for factor in factors_of(step):
        np.testing.assert_array_equal(factor, np.triu(factor))
        assert (np.diag(factor) > 0).all()


def test_a_fit_rests_where_the_gradient_is_white_already():
    # Q g and Q^(-T) v have one covariance when g = v and Q = 1: no step, whatever the rate.
    factors = [tensor(np.eye(4)), tensor(np.eye(3))]
    noise = tensor(RNG.normal(size=(4, 3)))
    for factor, size in zip(fitted(factors, noise, noise, 0.5), (4, 3), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(factor), np.eye(size), atol=1e-6)


def test_steps_are_cut_to_a_root_mean_square():
    moved = Stepper(kron(learning_rate=1.0, precond_init_scale=100.0), [np.zeros((4, 3))])
    first = moved.run([[RNG.normal(size=(4, 3))]])[0]
    np.testing.assert_allclose(np.sqrt(np.mean(first**2)), 1.1, rtol=1e-5)


def test_balancing_keeps_the_product():
    factors = [RNG.normal(size=(3, 3)), RNG.normal(size=4) * 100]
    even = [ops.convert_to_numpy(f) for f in balanced([tensor(f) for f in factors])]
    np.testing.assert_allclose(np.abs(even[0]).max(), np.abs(even[1]).max(), rtol=1e-5)
    np.testing.assert_allclose(np.multiply.outer(*even), np.multiply.outer(*factors), rtol=1e-5)


def test_solving_is_the_inverse_of_the_transpose():
    factor, x = np.triu(RNG.normal(size=(3, 3))) + 3 * np.eye(3), RNG.normal(size=(2, 3, 4))
    solved = ops.convert_to_numpy(solved_along(tensor(factor), tensor(x), 1))
    np.testing.assert_allclose(np.einsum("ji,ajb->aib", factor, solved), x, atol=1e-5)


def test_the_norm_bound_is_below_the_norm_and_near_it():
    for _ in range(20):
        x = RNG.normal(size=(6, 6))
        matrix = x @ x.T
        bound = float(ops.convert_to_numpy(spectral_norm_bound(tensor(matrix))))
        largest = np.linalg.eigvalsh(matrix)[-1]
        assert 0.7 * largest < bound < largest * 1.00001
    assert float(ops.convert_to_numpy(spectral_norm_bound(ops.zeros((3, 3))))) == 0.0


def test_the_probability_falls():
    steps = np.array([1.0, 500.0, 1500.0, 10000.0])
    ours = ops.convert_to_numpy(update_probability(ops.convert_to_tensor(steps, "float32")))
    np.testing.assert_allclose(ours, [1.0, 1.0, np.exp(-1.0), 0.03], rtol=1e-5)


def test_some_updates_fit_and_the_seed_says_which():
    def fits(seed):
        step = Stepper(kron(preconditioner_update_probability=0.5, seed=seed), [np.zeros((3, 2))])
        values = []
        for _ in range(20):
            step([np.ones((3, 2)) + np.eye(3, 2)])
            values.append(factors_of(step)[0])
        return [not np.array_equal(a, b) for a, b in itertools.pairwise(values)]

    first = fits(0)
    assert 4 < sum(first) < 16
    assert fits(0) == first
    assert fits(1) != first


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [True, True, False]),
        ({"max_size_triangular": 4}, [False, True, False]),
        ({"memory_save_mode": "one_diag"}, [False, True, False]),
        ({"memory_save_mode": "all_diag"}, [False, False, False]),
        ({"min_ndim_triangular": 4}, [False, False, False]),
    ],
)
def test_which_factors_are_triangular(arguments, expected):
    assert ScaleByKron(**arguments).triangular([5, 4, 1]) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"preconditioner_update_probability": 1.5},
        {"memory_save_mode": "all"},
        {"precond_lr": 0.0},
        {"precond_init_scale": 0.0},
        {"max_size_triangular": -1},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        optimizers.Kron(0.1, **arguments)
