"""SOAP where the theory says what it must equal, and its arguments."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers
from keras_trainkit.core.linear_algebra import eigenbasis, outer_product, rotate
from keras_trainkit.testing import reference
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper
from keras_trainkit.transforms import ScaleBySoap

RNG = np.random.default_rng(13)
NEAR = max(EXACT, 1e-8)


def walk(*shapes, steps=14):
    return [RNG.normal(size=s) for s in shapes], [[RNG.normal(size=s) for s in shapes] for _ in range(steps)]


def assert_same(ours, theirs, tolerance=NEAR):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def adam(initial, gradients):
    optimizer = optimizers.Adam(0.05, beta_1=0.95, beta_2=0.95, epsilon=1e-8)
    return Stepper(optimizer, initial).run(gradients)


def test_without_bases_it_is_adam_from_the_second_gradient_on():
    initial, gradients = walk((4, 3), (3,), (2, 2, 2, 3))
    ours = Stepper(optimizers.SOAP(0.05, max_precond_dim=0), initial).run(gradients)
    assert_same(ours, adam(initial, gradients[1:]))


def test_diagonal_gradients_have_the_axes_for_eigenbasis_and_get_adam():
    initial = [RNG.normal(size=(4, 4))]
    sizes = np.array([4.0, 3.0, 2.0, 1.0])  # their order stays, so that the bases do
    gradients = [[np.diag(sizes * RNG.uniform(0.9, 1.1, 4))] for _ in range(12)]
    ours = Stepper(optimizers.SOAP(0.05, precondition_frequency=1), initial).run(gradients)
    assert_same(ours, adam(initial, gradients[1:]))


def test_the_update_turns_with_the_problem():
    initial, gradients = walk((5, 4))
    left, right = np.linalg.qr(RNG.normal(size=(5, 5)))[0], np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    plain = Stepper(optimizers.SOAP(0.05, precondition_frequency=3), initial).run(gradients)[0]
    turned_gradients = [[left @ g @ right for g in step] for step in gradients]
    turned = Stepper(optimizers.SOAP(0.05, precondition_frequency=3), [left @ initial[0] @ right]).run(turned_gradients)
    assert_same([left @ plain @ right], turned, max(1e-6, 100 * EXACT))
    assert np.abs(left @ adam(initial, gradients)[0] @ right - turned[0]).max() > 1e-3


def test_the_first_gradient_moves_nothing_even_when_it_comes_late():
    initial, gradients = walk((4, 3), (3, 2))
    optimizer = optimizers.SOAP(0.05)
    step = Stepper(optimizer, initial)
    step([gradients[0][0], np.zeros((3, 2))])
    assert_same(step.parameters(), initial, 1e-7)


@pytest.mark.parametrize(
    ("arguments", "twin"),
    [
        (
            {"shampoo_beta": 0.8, "normalize_grads": True, "correct_bias": False},
            {"shampoo_beta": 0.8, "normalize": True, "debias": False},
        ),
        ({"max_precond_dim": 4, "precondition_frequency": 2}, {"frequency": 2, "turns": [False, True]}),
        ({"merge_dims": True, "max_precond_dim": 4}, {"view": [4, 3]}),
    ],
)
def test_arguments_equal_the_twin(arguments, twin):
    # Joined to (4, 3): a null space of more than one dimension would leave the basis open.
    initial, gradients = walk((2, 2, 3) if "view" in twin else (5, 4), steps=24)
    keras.config.set_floatx(WIDEST)
    ours = Stepper(optimizers.SOAP(0.05, **arguments), initial).run(gradients)
    theirs = reference.Twin(lambda: reference.SOAP(**twin)).run(initial, gradients, 0.05)
    assert_same(ours, theirs)


def test_vectors_are_turned_on_demand():
    slots = ScaleBySoap(precondition_1d=True).slots(np.zeros(5))
    assert slots["basis_0"].shape == [5, 5]
    assert "basis_0" not in ScaleBySoap().slots(np.zeros(5))


def test_eigenbasis_is_one_and_is_sorted():
    x = RNG.normal(size=(6, 6))
    matrix = x @ x.T
    basis = ops.convert_to_numpy(eigenbasis(ops.convert_to_tensor(matrix, WIDEST)))
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=NEAR)
    values = np.diag(basis.T @ matrix @ basis)
    np.testing.assert_allclose(basis @ np.diag(values) @ basis.T, matrix, atol=100 * NEAR)
    assert (np.diff(values) < 0).all()


def test_eigenbasis_of_a_null_space_does_not_depend_on_rounding():
    x = RNG.normal(size=(7, 3))
    first = ops.convert_to_numpy(eigenbasis(ops.convert_to_tensor(x @ x.T, "float32")))
    noise = 1e-7 * RNG.normal(size=(7, 7))
    second = ops.convert_to_numpy(eigenbasis(ops.convert_to_tensor(x @ x.T + noise + noise.T, "float32")))
    np.testing.assert_allclose(np.abs(first.T @ second), np.eye(7), atol=1e-4)
    # The library's own function fails this, which is why ours exists.
    raw = [np.linalg.eigh((x @ x.T + scale * (noise + noise.T)).astype("float32"))[1] for scale in (0, 1)]
    assert np.abs(np.abs(raw[0].T @ raw[1]) - np.eye(7)).max() > 1e-2


def test_eigenbasis_of_zero_is_the_identity():
    basis = ops.convert_to_numpy(eigenbasis(ops.zeros((3, 3), "float32")))
    np.testing.assert_allclose(np.abs(basis), np.eye(3), atol=1e-6)


def test_rotations_go_there_and_back():
    x = RNG.normal(size=(3, 4, 2))
    matrices = [np.linalg.qr(RNG.normal(size=(n, n)))[0] for n in (3, 2)]
    given = [ops.convert_to_tensor(matrices[0], WIDEST), None, ops.convert_to_tensor(matrices[1], WIDEST)]
    turned = rotate(ops.convert_to_tensor(x, WIDEST), given)
    expected = np.einsum("iab,ij,bk->jak", x, *matrices)
    np.testing.assert_allclose(ops.convert_to_numpy(turned), expected, atol=NEAR)
    np.testing.assert_allclose(ops.convert_to_numpy(rotate(turned, given, transposed=True)), x, atol=NEAR)
    outer = ops.convert_to_numpy(outer_product(ops.convert_to_tensor(x, WIDEST), 1))
    np.testing.assert_allclose(outer, np.einsum("iaj,ibj->ab", x, x), atol=NEAR)
