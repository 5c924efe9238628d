"""Batch sizes that are drawn or grow, and learning rates that follow them."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import data, optimizers, schedules

RNG = np.random.default_rng(47)


def test_draws_are_a_function_of_seed_and_step():
    sizes = data.RandomSize([8, 16, 32], probabilities=[1, 1, 2])
    all_steps = sizes.at(np.arange(5000), seed=3)
    np.testing.assert_array_equal(sizes.at(np.arange(2000, 2010), seed=3), all_steps[2000:2010])
    assert (sizes.at(np.arange(100), seed=4) != all_steps[:100]).any()
    shares = [np.mean(all_steps == size) for size in (8, 16, 32)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.03)


def test_draws_last_as_long_as_a_window():
    drawn = data.RandomSize([8, 16, 32], every=4).at(np.arange(400), seed=3).reshape(100, 4)
    assert (drawn == drawn[:, :1]).all() and len(np.unique(drawn[:, 0])) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.RandomSize([]), "`sizes` must hold"),
        (lambda: data.RandomSize([4, 4]), "none twice"),
        (lambda: data.RandomSize([0]), "`sizes` must be an integer at least 1"),
        (lambda: data.RandomSize([4, 8], [1]), "`probabilities` must hold one number"),
        (lambda: data.RandomSize([4], every=0), "`every` must be"),
        (lambda: data.GrowingSize([4, 8], []), "`steps` must grow"),
        (lambda: data.GrowingSize([4, 8, 16], [5, 5]), "`steps` must grow"),
        (lambda: data.RateByBatch(0.1, 0), "`batch_size` must be"),
        (lambda: data.RateByBatch(0.1, 4, "cubic"), "`rule` must be one of"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def adder(rate, strategy=None, accumulation=None, kit=True):
    """A model whose weight is the sum of the rates of its updates."""
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
        kind = optimizers.SGD if kit else keras.optimizers.SGD
        model.compile(kind(rate, gradient_accumulation_steps=accumulation), lambda y, p: -y * p, jit_compile=False)
    return data.follow_batch_size(model)


def total(model):
    return float(ops.convert_to_numpy(model.trainable_variables[0])[0, 0])


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none"])
@pytest.mark.parametrize("kit", [True, False])
def test_the_rate_follows_each_batch(rule, kit):
    check_rates(rule, kit, None, 1)


@pytest.mark.parametrize("every", [1, 2])
def test_the_rate_follows_with_accumulation(every):
    check_rates("linear", True, None, every)


@pytest.mark.tensorflow
@pytest.mark.parametrize(("kit", "accumulation"), [(True, 1), (False, 1), (True, 2)])
def test_the_rate_follows_on_two_replicas(two_replicas, kit, accumulation):
    check_rates("sqrt", kit, two_replicas, accumulation)


def check_rates(rule, kit, strategy, accumulation):
    x = np.ones((48, 1), "float32")
    schedule = schedules.Warmup(schedules.Cosine(0.5, 40), 5, initial=0.1)
    size = data.RandomSize([2, 4, 8], every=accumulation)
    batches = data.Batches(x, x, batch_size=size, seed=5)
    rate = data.RateByBatch(schedule, 4, rule)
    model = adder(rate, strategy, accumulation if accumulation > 1 else None, kit)
    by_hand = data.Batches(x, x, batch_size=size, seed=5)
    taken = [len(batch[0]) for _ in range(2) for batch in by_hand]
    model.fit(batches, epochs=2, verbose=0)
    assert batches.state()["step"] == len(taken) > 10
    ends = taken[accumulation - 1 :: accumulation]
    if len(taken) % accumulation:
        ends.append(taken[-1])  # the last window, which is not full
    right = sum(float(schedule(step)) * rate.factor(size) for step, size in enumerate(ends))
    assert total(model) == pytest.approx(right, rel=1e-5)


def test_the_rate_follows_a_growing_batch():
    x = np.ones((64, 1), "float32")
    model = adder(data.RateByBatch(0.5, 8, "linear"))
    model.fit(data.Batches(x, x, batch_size=data.GrowingSize([8, 16], [4])), verbose=0)
    assert total(model) == pytest.approx(0.5 * (4 + 2 * 2))


def test_a_rate_by_batch_is_saved_and_shows_the_last_rate():
    x = np.ones((4, 1), "float32")
    model = adder(data.RateByBatch(schedules.Constant(0.5), 8, "sqrt"))
    model.fit(x, x, batch_size=2, verbose=0)
    if keras.backend.backend() == "tensorflow":
        assert float(model.optimizer.learning_rate) == pytest.approx(0.25)
    config = keras.optimizers.schedules.serialize(data.RateByBatch(schedules.Constant(0.5), 8, "sqrt"))
    again = keras.optimizers.schedules.deserialize(config)
    assert again == data.RateByBatch(schedules.Constant(0.5), 8, "sqrt")


def test_following_needs_such_a_rate():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="whose learning rate is a RateByBatch. Received: 0.0"):
        data.follow_batch_size(model)
