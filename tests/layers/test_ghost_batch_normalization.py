"""GhostBatchNormalization beside its twin, beside Keras's BatchNormalization, and on replicas."""

import keras
import normalization_twins as twins
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import GhostBatchNormalization, refresh_batch_statistics

RNG = np.random.default_rng(12)


def run(layer, x, **keywords):
    return ops.convert_to_numpy(ops.cast(layer(x, **keywords), "float32"))


def normal(*shape):
    return RNG.normal(1.0, 2.0, size=shape).astype("float32")


def moving(layer):
    return [ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance)]


@pytest.mark.parametrize(("batch", "size"), [(12, 4), (13, 4), (15, 4), (3, 4), (1, 1), (9, 1)])
def test_equals_its_twin(batch, size):
    x = normal(batch, 2, 3, 4)
    layer = GhostBatchNormalization(size, momentum=0.9, epsilon=1e-3)
    out, mean, variance = twins.ghost_batch(x.reshape(batch, 6, 4), size, 1e-3)
    np.testing.assert_allclose(run(layer, x, training=True).reshape(batch, 6, 4), out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moving(layer)[0], 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moving(layer)[1], 0.9 + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 4, 7, 32])
def test_no_ghost_batch_is_smaller_than_its_size(size):
    """But where the whole batch is."""
    for batch in range(1, 100):
        sizes = [len(ghost) for ghost in twins.ghost_batches(batch, size)]
        found, count = GhostBatchNormalization(size)._ghosts(batch)
        assert np.bincount(ops.convert_to_numpy(found)).tolist() == sizes and len(sizes) == count
        assert sum(sizes) == batch and max(sizes) - min(sizes) <= 1 and min(sizes) >= min(size, batch)


@pytest.mark.parametrize("shape", [(8, 4), (8, 5, 4), (8, 3, 2, 4), (8, 2, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_one_ghost_batch_is_keras_batch_normalization(shape, first):
    axis = 1 if first else -1
    ours, theirs = GhostBatchNormalization(8, axis=axis), keras.layers.BatchNormalization(axis)
    for _ in range(3):
        x = np.moveaxis(normal(*shape), -1, axis)
        np.testing.assert_allclose(run(ours, x, training=True), run(theirs, x, training=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moving(ours), moving(theirs), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(run(ours, x), run(theirs, x), rtol=1e-5, atol=1e-6)
    theirs.set_weights(ours.get_weights())


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("keywords", [{}, {"training": None}, {"training": False}, {"training": True}], ids=str)
def test_training_and_trainable_mean_what_they_do_in_keras(trainable, keywords):
    ours, theirs = GhostBatchNormalization(8), keras.layers.BatchNormalization()
    x = normal(8, 4)
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
        layer.trainable = trainable
    np.testing.assert_allclose(run(ours, x, **keywords), run(theirs, x, **keywords), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moving(ours), moving(theirs), rtol=1e-6)


def test_inside_a_compiled_step_the_batch_may_be_of_any_size():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, GhostBatchNormalization(4, momentum=0.0)(inputs))
    model.compile("sgd", "mse")
    x = normal(13, 4)
    model.fit(x, x, batch_size=9, shuffle=False, verbose=0)  # 9, then 4
    np.testing.assert_allclose(moving(model.layers[-1])[0], x[9:].mean(0), rtol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1])
def test_padding_does_not_count(axis):
    x = normal(7, 5, 4)
    valid = np.arange(5) < RNG.integers(1, 6, size=(7, 1))
    out, mean, variance = twins.ghost_batch(x, 3, 1e-3, valid)
    layer = GhostBatchNormalization(3, axis=axis, momentum=0.0)
    worse = np.where(valid[..., None], x, np.float32(np.nan))
    found = run(layer, np.moveaxis(worse, -1, axis), training=True, mask=ops.convert_to_tensor(valid))
    np.testing.assert_allclose(np.moveaxis(found, axis, -1)[valid], out[valid], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moving(layer), [mean, variance], rtol=1e-5)


def test_a_batch_of_which_nothing_counts_changes_nothing():
    layer = GhostBatchNormalization(2, momentum=0.0)
    out = run(layer, normal(4, 3, 2), training=True, mask=ops.zeros((4, 3), "bool"))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(moving(layer), [[0, 0], [1, 1]])


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_float16_does_not_overflow(policy):
    x = (1000 * RNG.normal(size=(8, 1024, 2))).astype("float16")
    assert np.isinf(np.square(x)).any()
    layer, full = GhostBatchNormalization(4, momentum=0.0, dtype=policy), GhostBatchNormalization(4, momentum=0.0)
    np.testing.assert_allclose(
        run(layer, x, training=True), run(full, x.astype("float32"), training=True), rtol=2e-3, atol=2e-3
    )
    if policy == "mixed_float16":
        np.testing.assert_allclose(moving(layer), moving(full), rtol=1e-4, atol=0.1)


def test_a_ghost_batch_knows_nothing_of_the_others():
    x, other = normal(8, 3), normal(8, 3)
    other[:4] = x[:4]
    other[5] = np.inf
    layer = GhostBatchNormalization(4)
    np.testing.assert_array_equal(run(layer, x, training=True)[:4], run(layer, other, training=True)[:4])


def test_refreshed_statistics_are_those_of_the_population():
    model = keras.Sequential([keras.Input((5, 3)), GhostBatchNormalization(4), keras.layers.Dense(2)])
    x = normal(60, 5, 3)
    assert refresh_batch_statistics(model, x, batch_size=16) == 4
    rows = x.reshape(-1, 3).astype("float64")
    np.testing.assert_allclose(moving(model.layers[0]), [rows.mean(0), rows.var(0)], rtol=1e-5)


def test_refreshed_statistics_behind_one_see_ghost_batches():
    model = keras.Sequential(
        [keras.Input((3,)), GhostBatchNormalization(4, epsilon=1e-6), keras.layers.BatchNormalization()]
    )
    x = normal(16, 3) + 10 * np.repeat(np.arange(4), 4)[:, None].astype("float32")
    refresh_batch_statistics(model, x, batch_size=16)
    out, _, _ = twins.ghost_batch(x[:, None], 4, 1e-6)
    np.testing.assert_allclose(moving(model.layers[1]), [out.mean((0, 1)), out.var((0, 1))], rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
def test_replicas_share_the_moving_statistics(two_replicas):
    """Keras's BatchNormalization keeps those of each replica's share, and saves the first one's."""
    x = normal(16, 3)
    x[8:] += 50.0
    with two_replicas.scope():
        inputs = keras.Input((3,))
        ours, theirs = GhostBatchNormalization(4, momentum=0.5), keras.layers.BatchNormalization(momentum=0.5)
        model = keras.Model(inputs, [ours(inputs), theirs(inputs)])
        model.compile(keras.optimizers.SGD(0.0), ["mse", "mse"])
    model.fit(x, [x, x], batch_size=16, shuffle=False, verbose=0)
    _, mean, variance = twins.ghost_batch(x[:, None], 4, 1e-3)
    for variable, expected in ((ours.moving_mean, 0.5 * mean), (ours.moving_variance, 0.5 + 0.5 * variance)):
        for copy in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_allclose(copy.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(moving(theirs)[0], 0.5 * x[:8].mean(0), rtol=1e-4)


@pytest.mark.tensorflow
def test_a_replica_without_data_does_not_count(two_replicas):
    import tensorflow as tf

    x = normal(5, 3)
    with two_replicas.scope():
        layer = GhostBatchNormalization(2, momentum=0.0)
        layer.build((None, 3))
    shares = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(x if context.replica_id_in_sync_group == 0 else x[:0])
    )
    step = tf.function(lambda share: layer(share, training=True), reduce_retracing=True)
    two_replicas.run(step, (shares,))
    _, mean, variance = twins.ghost_batch(x[:, None], 2, 1e-3)
    for variable, expected in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        for copy in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_allclose(copy.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: GhostBatchNormalization(0), ValueError, "Received: ghost_batch_size=0"),
        (lambda: GhostBatchNormalization(4, momentum=1.5), ValueError, "Received: momentum=1.5"),
        (lambda: GhostBatchNormalization(4, epsilon=0), ValueError, "Received: epsilon=0"),
        (lambda: GhostBatchNormalization(4, synchronized=True), ValueError, "`synchronized` must be False"),
        (lambda: GhostBatchNormalization(4, renorm=True), ValueError, "`renorm` must be False"),
        (lambda: GhostBatchNormalization(4, axis=0)(normal(2, 3)), ValueError, "Received: axis=0"),
        (
            lambda: GhostBatchNormalization(4)(normal(2, 3, 4), training=True, mask=np.ones((2, 3, 4), bool)),
            ValueError,
            "a mask must have the axes of batch and positions",
        ),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
