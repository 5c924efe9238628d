"""LazyAdam on sparse gradients: what is not touched rests, what is touched takes Adam's step."""

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers, precision, transforms
from keras_trainkit.testing.problems import Stepper

pytestmark = pytest.mark.tensorflow

TABLE = np.random.default_rng(0).normal(size=(9, 2))
TOUCHED = [[1, 4, 1], [4, 7], [1], [7, 7, 4]]


def sparse_steps():
    import tensorflow as tf

    rng = np.random.default_rng(1)
    return [
        [tf.IndexedSlices(tf.constant(rng.normal(size=(len(rows), 2))), tf.constant(rows), tf.constant([9, 2]))]
        for rows in TOUCHED
    ]


def lazy_twin(rate, decay=0.0):
    """Row by row, from the definition: the step counts all updates, the moments only those that touch the row."""
    table, mean, squares = TABLE.copy(), np.zeros((9, 2)), np.zeros((9, 2))
    for step, [slices] in enumerate(sparse_steps(), 1):
        gradient = np.zeros((9, 2))
        np.add.at(gradient, slices.indices.numpy(), slices.values.numpy())
        for row in set(slices.indices.numpy()):
            mean[row] = 0.9 * mean[row] + 0.1 * gradient[row]
            squares[row] = 0.999 * squares[row] + 0.001 * gradient[row] ** 2
            table[row] -= rate * decay * table[row]
            size = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            table[row] -= size * mean[row] / (np.sqrt(squares[row]) + 1e-7)
    return table


@pytest.mark.parametrize("decay", [None, 0.1])
def test_equals_the_rowwise_twin(decay):
    ours = Stepper(optimizers.LazyAdam(0.05, weight_decay=decay), [TABLE]).run(sparse_steps())[0]
    np.testing.assert_allclose(ours, lazy_twin(0.05, decay or 0.0), atol=1e-12)


def test_untouched_rows_rest_where_adam_moves_them():
    lazy = Stepper(optimizers.LazyAdam(0.05, weight_decay=0.1), [TABLE]).run(sparse_steps())[0]
    dense = Stepper(optimizers.Adam(0.05, weight_decay=0.1), [TABLE]).run(sparse_steps())[0]
    untouched = [0, 2, 3, 5, 6, 8]
    np.testing.assert_array_equal(lazy[untouched], TABLE[untouched])
    assert (dense[untouched] != TABLE[untouched]).all()
    # Row 1 rests in the last step, in which Adam still moves it by its momentum.
    assert np.abs(lazy[1] - dense[1]).max() > 1e-3


def test_the_average_goes_on_for_untouched_rows():
    stepper = Stepper(optimizers.LazyAdam(0.05, use_ema=True, ema_momentum=0.5), [TABLE])
    steps, trail = sparse_steps(), []
    for step in steps:
        stepper(step)
        trail.append(stepper.parameters()[0])
    average = trail[0]
    for table in trail[1:]:
        average = 0.5 * average + 0.5 * table
    stepper.optimizer.finalize_variable_values(stepper.variables)
    np.testing.assert_allclose(stepper.parameters()[0], average, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"before": [transforms.Centralize()]},
    ],
    ids=["accumulation", "overwrite", "whole-variable"],
)
def test_falls_back_to_the_dense_step(options):
    lazy = Stepper(optimizers.LazyAdam(0.05, **options), [TABLE]).run(sparse_steps())[0]
    dense = Stepper(optimizers.Adam(0.05, **options), [TABLE]).run(sparse_steps())[0]
    np.testing.assert_allclose(lazy, dense, atol=1e-12)


def test_lookahead_and_clipping_by_norm_work_by_rows():
    options = {"clipnorm": 0.1, "weight_decay": 0.1, "after": [transforms.Lookahead(2, 0.5)]}
    lazy = Stepper(optimizers.LazyAdam(0.05, **options), [TABLE]).run(sparse_steps())[0]
    np.testing.assert_array_equal(lazy[[0, 2, 3, 5, 6, 8]], TABLE[[0, 2, 3, 5, 6, 8]])
    assert (lazy[[1, 4, 7]] != TABLE[[1, 4, 7]]).all()


def embedding_model(optimizer):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(50, 3, name="table"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def test_replicas_agree_with_one_device(two_replicas):
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 20, size=(32, 2)), rng.normal(size=(32, 1))
    one = embedding_model(optimizers.LazyAdam(0.02, weight_decay=0.01, global_clipnorm=0.5))
    with two_replicas.scope():
        two = embedding_model(optimizers.LazyAdam(0.02, weight_decay=0.01, global_clipnorm=0.5))
    start = one.get_weights()
    two.set_weights(start)
    for model in (one, two):
        model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    moved = (one.get_weights()[0] != start[0]).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(x))


def test_loss_scaling_unscales_rows_and_skips_an_overflow():
    import tensorflow as tf

    plain, scaled = [keras.Variable(TABLE.astype("float32")) for _ in range(2)]
    alone = optimizers.LazyAdam(0.05)
    wrapper = precision.LossScaleOptimizer(optimizers.LazyAdam(0.05), initial_scale=8.0)
    alone.build([plain])
    wrapper.build([scaled])
    rows, values = tf.constant([3, 3, 5]), tf.constant([[1.0, 2.0], [0.5, -1.0], [3.0, 3.0]])
    shape = tf.constant([9, 2])
    alone.apply([tf.IndexedSlices(values, rows, shape)], [plain])
    wrapper.apply([tf.IndexedSlices(values * 8, rows, shape)], [scaled])
    np.testing.assert_allclose(scaled.numpy(), plain.numpy(), atol=1e-6)
    wrapper.apply([tf.IndexedSlices(values * np.inf, rows, shape)], [scaled])
    np.testing.assert_allclose(scaled.numpy(), plain.numpy(), atol=1e-6)
    assert int(wrapper.skipped_steps.numpy()) == 1
