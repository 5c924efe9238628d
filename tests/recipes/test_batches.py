"""Batches: of one size, every example in every pass, a new order each time, the same for one seed."""

import contextlib
import itertools

import keras
import numpy as np
import pytest

from keras_trainkit import data
from keras_trainkit.recipes import RecipeError, batches

pytestmark = pytest.mark.tensorflow


def stream(x, y, seed):
    """Batches as `recipes.run` makes them."""
    return data.Batches(x, y, batch_size=4, seed=seed, endless=True)


def order(seed, passes, examples=10):
    x, y = np.arange(examples, dtype="float32")[:, None], np.arange(examples, dtype="int32")
    taken = list(itertools.islice(stream(x, y, seed), examples * passes // 4))
    assert {images.shape for images, _ in taken} == {(4, 1)}
    for images, labels in taken:
        np.testing.assert_array_equal(images[:, 0], labels)
    return np.concatenate([labels for _, labels in taken]).reshape(passes, examples)


def test_every_pass_holds_every_example_in_a_new_order():
    passes = order(seed=1, passes=4)
    assert [sorted(one) for one in passes] == [list(range(10))] * 4
    assert len({tuple(one) for one in passes}) == 4


def make_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.3), "mse")
    return model


@pytest.mark.parametrize("replicas", [1, 2])
def test_fit_goes_on_where_the_last_epoch_ended(replicas, request):
    """13 examples in batches of 4, on any number of replicas: the steps of `fit` are those of the one long stream."""
    x = np.linspace(-1, 1, 13, dtype="float32")[:, None]
    y = np.sin(5 * x)
    taken = list(itertools.islice(stream(x, y, seed=5), 12))
    by_hand, restarted = make_model(), make_model()
    for batch in taken:
        by_hand.train_on_batch(*batch)
    for batch in taken[:3] * 4:
        restarted.train_on_batch(*batch)
    with request.getfixturevalue("two_replicas").scope() if replicas == 2 else contextlib.nullcontext():
        fitted = make_model()
    fitted.fit(stream(x, y, seed=5), epochs=4, steps_per_epoch=3, verbose=0, shuffle=False)
    for expected, wrong, found in zip(*(model.get_weights() for model in (by_hand, restarted, fitted)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert not np.allclose(found, wrong, rtol=1e-3)


def test_the_seed_decides_the_order():
    np.testing.assert_array_equal(order(1, 2), order(1, 2))
    assert (order(1, 2) != order(2, 2)).any()


@pytest.mark.parametrize(
    ("examples", "batch", "k", "steps"), [(100, 10, 1, 10), (109, 10, 1, 10), (100, 10, 3, 9), (30, 10, 3, 3)]
)
def test_steps_are_whole_batches_in_whole_updates(examples, batch, k, steps):
    assert batches.steps_per_epoch(examples, batch, k) == steps


def test_too_few_examples_for_one_update():
    with pytest.raises(RecipeError, match=r"takes 40 examples \(batch_size 10 x accumulation 4\).* has 39"):
        batches.steps_per_epoch(39, 10, 4)
