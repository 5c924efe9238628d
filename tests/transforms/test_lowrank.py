"""The gradient scaled by a low-rank image of it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import core, optimizers, transforms
from keras_trainkit.testing.problems import Stepper


def _moves(gradients, **arguments):
    stepper = Stepper(optimizers.APOLLO(1.0, head=None, **arguments), [np.zeros(gradients[0].shape)], dtype="float32")
    places = [np.zeros(gradients[0].shape), *(stepper.run([[g]])[0] for g in gradients)]
    return np.diff(np.stack(places), axis=0)


def test_each_step_keeps_the_direction_of_every_channel():
    """The larger side's channels, whichever axis it is, are multiplied by one negative number each."""
    rng = np.random.default_rng(0)
    for shape, axis in [((4, 9), 0), ((9, 4), 1)]:
        gradients = rng.normal(size=(6, *shape))
        for gradient, move in zip(gradients, _moves(gradients, rank=2), strict=True):
            factors = move / gradient
            assert (factors < 0).all()
            assert np.ptp(factors, axis=axis).max() < 1e-4
            assert np.ptp(factors) > 1e-2
    whole = _moves(gradients, rank=2, scaling="tensor")
    assert all(np.ptp(move / gradient) < 1e-4 for gradient, move in zip(gradients, whole, strict=True))


def test_factors_come_near_to_those_of_adam():
    """With a steady gradient Adam moves each element by the rate; so does the norm of each channel, nearly."""
    gradient = np.random.default_rng(1).normal(size=(64, 100))
    move = _moves([gradient] * 3, rank=48, scale=64 / 48, epsilon=0.0, growth_limit=None)[-1]
    seen = np.linalg.norm(move, axis=0) / np.sqrt(64)
    assert abs(seen.mean() - 1) < 0.05
    assert seen.std() < 0.2


def test_growth_is_limited_also_after_a_step_without_gradient():
    steady = np.random.default_rng(2).normal(size=(3, 5))
    gradients = [np.zeros((3, 5)), steady, steady, steady]
    first, second, third, _ = np.linalg.norm(_moves(gradients, rank=1), axis=(1, 2))
    free = np.linalg.norm(_moves(gradients, rank=1, growth_limit=None), axis=(1, 2))
    assert first == 0
    np.testing.assert_allclose(second, free[1], rtol=1e-5)

    def debiasing(step):
        return np.sqrt(1 - 0.999**step) / (1 - 0.9**step)

    np.testing.assert_allclose(third / second, 1.01 * debiasing(3) / debiasing(2), rtol=1e-4)
    assert free[2] > 1.2 * third


def test_projection_holds_for_an_interval():
    gradients = [np.random.default_rng(3).normal(size=(4, 6))] * 8
    every = {k: _moves(gradients, rank=2, growth_limit=None, update_interval=k) for k in (4, 5, 100)}
    np.testing.assert_array_equal(every[4][:4], every[100][:4])
    np.testing.assert_array_equal(every[5][:5], every[100][:5])
    assert np.abs(every[4][4] - every[100][4]).max() > 1e-3
    assert np.abs(every[5][5] - every[100][5]).max() > 1e-3


def test_routes_and_state():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(60, 32, name="tokens_embedding")(inputs)
    x = keras.layers.Dense(48, name="wide")(x)
    x = keras.layers.Dense(8, name="narrow")(x)
    model = keras.Model(inputs, keras.layers.Dense(60, name="head")(x))
    optimizer = optimizers.APOLLO(1e-3, rank=8)
    optimizer.build(model.trainable_variables)
    assert {path.split("/")[0] + path[-1]: route for path, route in optimizer.routes.items()} == {
        "tokens_embeddings": "adamw: an embedding",
        "widel": "apollo",
        "wides": "adamw: a vector",
        "narrowl": "adamw: no larger than the rank",
        "narrows": "adamw: a vector",
        "headl": "adamw: a head",
        "heads": "adamw: a vector",
    }
    slots = sum(int(np.prod(v.shape)) for v in optimizer.variables) - 2  # the counter and the rate
    assert slots == 2 * 8 * 48 + 1 + 2 * (model.count_params() - 32 * 48)


def test_all_adamw_where_nothing_gains():
    stepper = Stepper(optimizers.APOLLO(0.1), [np.ones((4, 3))], names=["kernel"])
    plain = Stepper(optimizers.Adam(0.1, epsilon=1e-6), [np.ones((4, 3))])
    gradients = [[np.random.default_rng(4).normal(size=(4, 3))]] * 3
    np.testing.assert_array_equal(stepper.run(gradients)[0], plain.run(gradients)[0])
    assert stepper.optimizer.routes == {"kernel": "adamw: no larger than the rank"}


def test_vectors_are_refused():
    lowrank = core.TransformOptimizer(0.1, transforms.ScaleByLowRankAdam(rank=1))
    with pytest.raises(ValueError, match="takes matrices"):
        lowrank.build([keras.Variable(ops.ones(3))])


@pytest.mark.parametrize(
    "arguments", [{"rank": 0}, {"scale": 0}, {"scaling": "row"}, {"update_interval": 0}, {"growth_limit": 0}]
)
def test_wrong_arguments(arguments):
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        optimizers.APOLLO(1e-3, **arguments)
