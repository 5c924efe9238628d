"""ProximalAdagrad's zeros and ConditionalGradient's ball."""

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers
from keras_trainkit.testing.problems import WIDEST, Stepper

RNG = np.random.default_rng(12)


def lasso(x, y, steps, **arguments):
    step = Stepper(optimizers.ProximalAdagrad(1.0, **arguments), [np.zeros(x.shape[1])])
    for _ in range(steps):
        w = step.parameters()[0]
        step([x.T @ (x @ w - y)])
    return step.parameters()[0]


def test_solves_an_orthogonal_elastic_net():
    target = np.array([3.0, -2.0, 0.4, -0.3, 0.0, 1.0])
    x = np.linalg.qr(RNG.normal(size=(8, 6)))[0]
    w = lasso(x, x @ target, 400, l1_regularization_strength=0.5, l2_regularization_strength=0.25)
    solution = np.sign(target) * np.maximum(np.abs(target) - 0.5, 0) / 1.25
    np.testing.assert_allclose(w, solution, atol=1e-5)
    assert (w == 0.0).tolist() == [False, False, True, True, True, False]


def test_solves_a_lasso_to_its_optimality_conditions():
    x = RNG.normal(size=(30, 8))
    y = x @ np.array([2.0, 0, 0, -1.5, 0, 0, 0.5, 0]) + 0.1 * RNG.normal(size=30)
    strength = 8.0
    w = lasso(x, y, 1500, l1_regularization_strength=strength)
    slope = x.T @ (y - x @ w)
    assert 2 <= (w == 0.0).sum() <= 6
    np.testing.assert_allclose(slope[w != 0], strength * np.sign(w[w != 0]), atol=1e-2)
    assert (np.abs(slope[w == 0]) < strength).all()


def test_weights_are_exactly_zero_after_fit():
    keras.utils.set_random_seed(1)
    x = RNG.normal(size=(128, 10)).astype("float32")
    y = (3 * x[:, :1] - 2 * x[:, 1:2]).astype("float32")
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)])
    model.compile(optimizers.ProximalAdagrad(0.5, l1_regularization_strength=0.3, global_clipnorm=10.0), "mse")
    assert (model.layers[0].kernel.numpy() != 0).all()
    model.fit(x, y, batch_size=32, epochs=40, verbose=0)
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).ravel()
    assert (kernel[2:] == 0.0).all()
    assert kernel[0] > 2
    assert kernel[1] < -1


def test_no_accumulator_and_no_gradient_is_no_step():
    arguments = {"initial_accumulator_value": 0.0, "l1_regularization_strength": 1.0}
    step = Stepper(optimizers.ProximalAdagrad(0.1, **arguments), [np.array([1.0, 2.0])])
    np.testing.assert_allclose(step.run([[np.array([0.0, 1.0])]])[0], [1.0, 1.8], rtol=1e-6)


def norms(values, ord):
    flat = [v.reshape(-1, v.shape[-1]) if v.ndim > 1 else v.reshape(1, -1) for v in values]
    return [np.linalg.norm(v, "nuc") if ord == "nuclear" else np.linalg.norm(v) for v in flat]


@pytest.mark.parametrize("ord", ["fro", "nuclear"])
@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_stays_in_the_ball(ord, rate):
    shapes = [(4, 3), (2, 2, 3), (5,), ()]
    initial = [np.zeros(shape) for shape in shapes]
    step = Stepper(optimizers.ConditionalGradient(rate, lambda_=2.0, ord=ord), initial)
    for _ in range(30):
        step([RNG.normal(size=shape) * 10.0 ** RNG.uniform(-6, 6) for shape in shapes])
        assert max(norms(step.parameters(), ord)) <= 2.0 * (1 + 1e-6)
    if rate == 1.0:  # then every step ends on the edge
        np.testing.assert_allclose(norms(step.parameters(), ord), 2.0, rtol=1e-2)


def test_comes_nearer_from_outside():
    step = Stepper(optimizers.ConditionalGradient(0.1), [np.full(4, 10.0)])
    last = 20.0
    for _ in range(40):
        norm = np.linalg.norm(step.run([[RNG.normal(size=4)]])[0])
        assert norm <= 0.9 * last + 0.1 + 1e-5
        last = norm
    assert last < 1.3


@pytest.mark.parametrize("ord", ["fro", "nuclear"])
def test_gap_falls_as_the_theory_says(ord):
    # f = norm(w - b)^2 / 2, b outside of the ball: after k steps f - f* <= 2 L D^2 / (k + 2) (Jaggi, 2013).
    radius, b = 1.0, np.diag([3.0, 2.5]) if ord == "nuclear" else np.array([[3.0, 0.0], [0.0, 4.0]])
    best = np.diag([0.75, 0.25]) if ord == "nuclear" else b / 5
    rate = keras.optimizers.schedules.InverseTimeDecay(1.0, 1, 0.5)
    step = Stepper(optimizers.ConditionalGradient(rate, lambda_=radius, ord=ord), [np.zeros((2, 2))])
    for k in range(1, 60):
        w = step.run([[step.parameters()[0] - b]])[0]
        gap = ((w - b) ** 2).sum() / 2 - ((best - b) ** 2).sum() / 2
        assert -1e-5 <= gap <= 2 * (2 * radius) ** 2 / (k + 2)
    np.testing.assert_allclose(w, best, atol=0.05)


def test_nuclear_steps_add_one_rank_each():
    step = Stepper(optimizers.ConditionalGradient(0.2, ord="nuclear"), [np.zeros((6, 5))])
    for k in range(1, 4):
        w = step.run([[RNG.normal(size=(6, 5))]])[0]
        assert np.linalg.matrix_rank(w, tol=1e-5) == k


@pytest.mark.parametrize("ord", ["fro", "nuclear"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_gradient_of_zero_aims_at_the_centre(ord, jit_compile):
    start = RNG.normal(size=(3, 2))
    step = Stepper(optimizers.ConditionalGradient(0.25, ord=ord), [start], jit_compile=jit_compile)
    np.testing.assert_allclose(step.run([[np.zeros((3, 2))]])[0], 0.75 * start.astype(WIDEST), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_very_small_and_large_gradients_have_a_direction(size):
    direction = RNG.normal(size=(3, 2))
    arguments = {"lambda_": 1.0, "epsilon": 0.0}
    step = Stepper(optimizers.ConditionalGradient(1.0, **arguments), [np.ones((3, 2))], dtype="float32")
    after = step.run([[(direction * size).astype("float32")]])[0]
    np.testing.assert_allclose(after, -direction / np.linalg.norm(direction), rtol=1e-5)


def test_names_a_wrong_norm():
    with pytest.raises(ValueError, match=r"`ord` must be one of 'fro', 'nuclear'. Received: ord='nuclaer'"):
        optimizers.ConditionalGradient(ord="nuclaer")
    with pytest.raises(ValueError, match=r"`lambda_` must be a number above 0"):
        optimizers.ConditionalGradient(lambda_=0.0)
