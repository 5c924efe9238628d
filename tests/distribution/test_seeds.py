"""`separate_seeds`: replicas draw different masks, the first one those that it drew before."""

import keras
import numpy as np
import pytest

from keras_trainkit import distribution, layers

pytestmark = pytest.mark.tensorflow


def draws(model, strategy, steps=2):
    """What each replica's random layers made of ones, step by step."""
    import tensorflow as tf

    @tf.function
    def step():
        return strategy.run(lambda: model(tf.ones((8, 16)), training=True))

    return [[v.numpy() for v in strategy.experimental_local_results(step())] for _ in range(steps)]


def make(kind):
    keras.utils.set_random_seed(5)
    inner = {
        "dropout": lambda: keras.layers.Dropout(0.5, seed=1),
        "noise": lambda: keras.layers.GaussianNoise(1.0, seed=2),
        "depth": lambda: layers.StochasticDepth(0.5, seed=3),
    }[kind]()
    # One more model around it: random layers are found at any depth.
    return keras.Sequential([keras.Input((16,)), keras.Sequential([keras.Input((16,)), inner])])


@pytest.mark.shows(
    "several-devices",
    "dropout on two replicas",
    keras="the same masks on both",
    kit="masks of their own with `distribution.separate_seeds`",
)
@pytest.mark.parametrize("kind", ["dropout", "noise", "depth"])
def test_plain_replicas_draw_alike_and_separated_ones_do_not(two_replicas, kind):
    with two_replicas.scope():
        plain, separate = make(kind), distribution.separate_seeds(make(kind))
    alike, different = draws(plain, two_replicas), draws(separate, two_replicas)
    for (first, second), (ours, other) in zip(alike, different, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(ours, first)
        assert (other != ours).any()
    assert (different[0][1] != different[1][1]).any(), "the second replica draws the same at each step"


def test_one_device_draws_what_it_drew_and_files_are_clean(tmp_path):
    model = distribution.separate_seeds(make("dropout"))
    np.testing.assert_array_equal(
        model(np.ones((8, 16)), training=True), make("dropout")(np.ones((8, 16)), training=True)
    )
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.layers[0].layers[0].seed_generator) is keras.random.SeedGenerator
