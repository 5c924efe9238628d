"""`weigh_samples`: windows and replicas of uneven batches equal the one big batch."""

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers, precision, training
from keras_trainkit.testing.contracts import assert_close, small_model

RNG = np.random.default_rng(8)
X, Y = RNG.normal(size=(19, 5)).astype("float32"), RNG.normal(size=(19, 3)).astype("float32")


def windows_of(model, batch_size, epochs=3):
    model.fit(X, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model.get_weights()


def accumulating(steps, **options):
    return optimizers.Adam(0.05, global_clipnorm=0.3, gradient_accumulation_steps=steps, **options)


@pytest.mark.parametrize("batch_size", [4, 6, 18])
def test_uneven_micro_batches_equal_the_big_batch(batch_size):
    steps = -(-19 // batch_size)
    whole = windows_of(small_model(optimizers.Adam(0.05, global_clipnorm=0.3)), 19)
    plain = windows_of(small_model(accumulating(steps)), batch_size)
    ours = windows_of(training.weigh_samples(small_model(accumulating(steps))), batch_size)
    assert max(np.abs(a - b).max() for a, b in zip(plain, whole, strict=True)) > 1e-4
    assert_close(ours, whole, 1e-6)


def test_rows_of_weight_zero_count_as_in_a_big_batch():
    weights = (np.arange(19) % 3 > 0).astype("float32")

    def train(model, batch_size):
        model.fit(X, Y, batch_size, epochs=2, sample_weight=weights, shuffle=False, verbose=0)
        return model.get_weights()

    whole = train(small_model(optimizers.Adam(0.05, global_clipnorm=0.3)), 19)
    assert_close(train(training.weigh_samples(small_model(accumulating(3))), 7), whole, 1e-6)


@pytest.mark.parametrize("wrapper", [precision.LossScaleOptimizer, keras.optimizers.LossScaleOptimizer])
def test_it_works_under_loss_scaling(wrapper):
    whole = windows_of(small_model(optimizers.Adam(0.05, global_clipnorm=0.3)), 19)
    ours = windows_of(training.weigh_samples(small_model(wrapper(accumulating(4)))), 6)
    assert_close(ours, whole, 1e-5)


def test_it_works_around_and_inside_of_sam():
    for first, second in [(training.weigh_samples, training.sam), (training.sam, training.weigh_samples)]:
        whole = windows_of(training.sam(small_model(accumulating(1))), 19, epochs=1)
        ours = windows_of(second(first(small_model(accumulating(1)))), 19, epochs=1)
        assert_close(ours, whole, 0.0)
        uneven = windows_of(second(first(small_model(accumulating(3)))), 7, epochs=1)
        means = windows_of(training.sam(small_model(accumulating(3))), 7, epochs=1)
        assert max(np.abs(a - b).max() for a, b in zip(uneven, means, strict=True)) > 1e-4


def test_it_comes_off_again_and_goes_on_once():
    model = training.weigh_samples(small_model(accumulating(4)))
    with pytest.raises(ValueError, match="sample-weighing helper"):
        training.weigh_samples(model)
    training.sam(model)
    with pytest.raises(ValueError, match="sample-weighing helper"):
        training.weigh_samples(model)
    training.plain(model)
    assert_close(windows_of(model, 6), windows_of(small_model(accumulating(4)), 6), 0.0)


def test_a_foreign_optimizer_is_an_error():
    with pytest.raises(TypeError, match="needs an optimizer of keras_trainkit.*Received: SGD"):
        windows_of(training.weigh_samples(small_model(keras.optimizers.SGD(0.1))), 6)


@pytest.mark.tensorflow
def test_uneven_replicas_equal_one_device(two_replicas):
    # Batches of 6, 6, 6 and 1: of the last one the second replica gets nothing.
    whole = windows_of(small_model(optimizers.Adam(0.05, global_clipnorm=0.3)), 19)
    with two_replicas.scope():
        ours, means = training.weigh_samples(small_model(accumulating(4))), small_model(accumulating(4))
    assert_close(windows_of(ours, 6), whole, 2e-6)
    assert max(np.abs(a - b).max() for a, b in zip(windows_of(means, 6), whole, strict=True)) > 1e-4
