"""Shampoo where the theory says what it must equal, its blocks, and its inverse roots."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers
from keras_trainkit.core.linear_algebra import inverse_root
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper
from keras_trainkit.transforms.shampoo import Blocks

RNG = np.random.default_rng(14)
NEAR = max(EXACT, 1e-7)
PAPER = {"beta_1": 0.0, "beta_2": 1.0, "grafting": "none", "start_preconditioning_step": 1, "precondition_frequency": 1}


def shampoo(rate=0.1, **arguments):
    keras.config.set_floatx(WIDEST)
    return optimizers.Shampoo(rate, **({"epsilon": 1e-14 if WIDEST == "float64" else 1e-6} | PAPER | arguments))


def orthogonal(size):
    return np.linalg.qr(RNG.normal(size=(size, size)))[0]


@pytest.mark.parametrize("power", [1, 2, 4, 3.5])
def test_inverse_roots(power):
    x = RNG.normal(size=(2, 5, 5))
    matrices = x @ x.transpose(0, 2, 1) + np.eye(5)
    roots = ops.convert_to_numpy(inverse_root(ops.convert_to_tensor(matrices, WIDEST), power, 1e-12))
    for root, matrix in zip(roots, matrices, strict=True):
        values, vectors = np.linalg.eigh(matrix)
        np.testing.assert_allclose(root, vectors @ np.diag(values ** (-1 / power)) @ vectors.T, rtol=0, atol=10 * NEAR)


@pytest.mark.parametrize("dtype", ["float32", WIDEST])
def test_inverse_roots_of_singular_matrices_are_finite_and_bounded(dtype):
    x = RNG.normal(size=(6, 2)) * 1e3
    for matrix in [x @ x.T, np.zeros((6, 6)), np.diag([1e-30] * 6), np.ones((6, 6)), np.diag([1e30, 1, 0, 0, 0, 0])]:
        root = ops.convert_to_numpy(inverse_root(ops.convert_to_tensor(matrix, dtype), 4, 1e-6))
        assert np.isfinite(root).all()
        top = np.linalg.eigvalsh(matrix)[-1]
        bound = (1e-6 * top) ** -0.25 if top > 0 else 1.0
        assert np.linalg.eigvalsh(root).max() <= bound * 1.001
    np.testing.assert_allclose(ops.convert_to_numpy(inverse_root(ops.zeros((3, 3), dtype), 2, 1e-6)), np.eye(3))


def test_the_first_step_is_the_orthogonal_factor():
    gradient = RNG.normal(size=(5, 3))
    moved = Stepper(shampoo(1.0, merge_dims=False), [np.zeros((5, 3))]).run([[gradient]])[0]
    u, _, v = np.linalg.svd(gradient, full_matrices=False)
    np.testing.assert_allclose(moved, -u @ v, rtol=0, atol=1e-3)


def test_on_vectors_it_is_full_matrix_adagrad():
    rng = np.random.default_rng(15)
    initial, gradients = np.zeros(4), [rng.normal(size=4) for _ in range(9)]
    ours = Stepper(shampoo(0.1), [initial]).run([[g] for g in gradients])[0]
    total, expected = np.zeros((4, 4)), initial
    for gradient in gradients:
        total = total + np.outer(gradient, gradient)
        values, vectors = np.linalg.eigh(total)
        safe = np.maximum(values, 1e-12 * values[-1])
        expected = expected - 0.1 * vectors @ np.diag(safe**-0.5) @ vectors.T @ gradient
    # The first sums are singular; in float32 the epsilon that stands for their zeros shows.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 if WIDEST == "float64" else 2e-4)


@pytest.mark.parametrize("grafting", ["none", "sgd"])
def test_the_step_turns_with_the_problem(grafting):
    initial, gradients = RNG.normal(size=(4, 4)), [RNG.normal(size=(4, 4)) for _ in range(6)]
    left, right = orthogonal(4), orthogonal(4)
    options = {"grafting": grafting, "merge_dims": False, "precondition_frequency": 2, "epsilon": 1e-6}
    plain = Stepper(shampoo(**options), [initial]).run([[g] for g in gradients])[0]
    turned = Stepper(shampoo(**options), [left @ initial @ right]).run([[left @ g @ right] for g in gradients])[0]
    np.testing.assert_allclose(turned, left @ plain @ right, rtol=0, atol=1000 * EXACT)


@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_a_graft_gives_the_length_and_shampoo_the_direction(grafting):
    initial, gradients = [np.zeros((4, 3))], [[RNG.normal(size=(4, 3))] for _ in range(4)]
    runs = {
        name: [np.zeros((4, 3)), *(Stepper(make(), initial).run(gradients[: k + 1])[0] for k in range(4))]
        for name, make in {
            "grafted": lambda: shampoo(grafting=grafting, beta_2=0.9, merge_dims=False),
            "bare": lambda: shampoo(beta_2=0.9, merge_dims=False),
            "graft": lambda: shampoo(grafting=grafting, start_preconditioning_step=99),
        }.items()
    }
    moves = {name: np.diff(np.stack(points), axis=0) for name, points in runs.items()}
    for grafted, bare, graft in zip(moves["grafted"], moves["bare"], moves["graft"], strict=True):
        np.testing.assert_allclose(np.linalg.norm(grafted), np.linalg.norm(graft), rtol=1e-5)
        np.testing.assert_allclose(grafted / np.linalg.norm(grafted), bare / np.linalg.norm(bare), atol=1e-4)


def test_grafting_onto_adam_starts_as_adam():
    initial, gradients = [RNG.normal(size=(4, 3))], [[RNG.normal(size=(4, 3))] for _ in range(5)]
    ours = Stepper(optimizers.Shampoo(0.05, precondition_frequency=6), initial).run(gradients)[0]
    adam = optimizers.Adam(0.05, epsilon=1e-8, epsilon_hat=False)
    np.testing.assert_allclose(ours, Stepper(adam, initial).run(gradients)[0], rtol=1e-6, atol=1e-7)


def test_blocks_are_variables_of_their_own():
    initial, gradients = RNG.normal(size=(4, 6)), [RNG.normal(size=(4, 6)) for _ in range(5)]
    options = {"merge_dims": False, "grafting": "sgd", "epsilon": 1e-6}
    whole = Stepper(shampoo(block_size=3, **options), [initial]).run([[g] for g in gradients])[0]

    def parts(x):
        return [x[i : i + 2, j : j + 3] for i in (0, 2) for j in (0, 3)]

    apart = Stepper(shampoo(**options), parts(initial)).run([parts(g) for g in gradients])
    for mine, theirs in zip(parts(whole), apart, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1000 * EXACT)


@pytest.mark.parametrize(("shape", "limit"), [([5], 2), ([4, 7], 3), ([3, 3, 5], 2), ([6], 9), ([1], 1)])
def test_blocks_there_and_back(shape, limit):
    blocks = Blocks(shape, limit)
    assert max(blocks.sizes) <= limit
    x = RNG.normal(size=shape)
    cut = blocks.cut(ops.convert_to_tensor(x, WIDEST))
    assert tuple(cut.shape) == (blocks.count, *blocks.sizes)
    np.testing.assert_allclose(ops.convert_to_numpy(blocks.join(cut, shape)), x, rtol=1e-6)


def test_a_bad_condition_does_not_slow_it_down():
    # 0.5 norm(A W B)^2 with conditions of 100 in both factors, turned, so that no diagonal scaling helps: gradient
    # descent hardly moves where the loss is flat, so the distance to the minimum tells them apart.
    ours, others = 0.0, np.zeros(3)
    for _ in range(4):
        left = orthogonal(5) @ np.diag(np.geomspace(0.1, 1, 5)) @ orthogonal(5)
        right = orthogonal(4) @ np.diag(np.geomspace(0.1, 1, 4)) @ orthogonal(4)
        start = RNG.normal(size=(5, 4))

        def distance_after(optimizer, steps=300, left=left, right=right, start=start):
            step = Stepper(optimizer, [start])
            for _ in range(steps):
                step([left.T @ (left @ step.parameters()[0] @ right) @ right.T])
            return np.linalg.norm(step.parameters()[0]) / np.linalg.norm(start)

        ours += distance_after(shampoo(0.5, merge_dims=False, epsilon=1e-6)) / 4
        others += np.array([distance_after(optimizers.SGD(rate)) for rate in (0.3, 1.0, 1.9)]) / 4
    assert ours < 0.5 * others.min(), (ours, others)


def test_roots_rest_between_refreshes():
    step = Stepper(optimizers.Shampoo(0.1, precondition_frequency=3), [RNG.normal(size=(3, 2))])
    root = next(v for v in step.optimizer.variables if "root_0" in v.path)
    seen = []
    for _ in range(7):
        step([RNG.normal(size=(3, 2))])
        seen.append(ops.convert_to_numpy(root))
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(seen)]
    assert changed == [False, True, False, False, True, False]
    assert not seen[0].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"beta_2": 1.1},
        {"epsilon": 0.0},
        {"block_size": 0},
        {"precondition_frequency": 0},
        {"start_preconditioning_step": 0},
        {"exponent_override": 0.0},
        {"grafting": "adams"},
        {"nesterov": True},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        optimizers.Shampoo(0.1, **arguments)
