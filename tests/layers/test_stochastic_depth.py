"""What is dropped and how often, dtypes, masks, saving, and training on either backend."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import StochasticDepth, depth_rates


def run(layer, x, **kwargs):
    return ops.convert_to_numpy(ops.cast(layer(x, **kwargs), "float32"))


# -- what is dropped


@pytest.mark.parametrize("shape", [(20_000,), (20_000, 3), (20_000, 2, 1, 2)])
def test_whole_samples_are_dropped_at_the_rate_and_the_rest_scaled(shape):
    out = run(StochasticDepth(0.3, seed=1), np.ones(shape, "float32"), training=True).reshape(shape[0], -1)
    np.testing.assert_array_equal(out, np.repeat(out[:, :1], out.shape[1], axis=1))
    kept = out[:, 0] > 0
    np.testing.assert_allclose(out[kept], 1 / 0.7, rtol=1e-6)
    # Standard error sqrt(0.3 * 0.7 / 20,000) = 0.0032; five of them: a right layer fails once in 1.7 million seeds.
    assert np.mean(kept) == pytest.approx(0.7, abs=0.0162)
    # Neighbours are independent: the correlation of 20,000 pairs has standard error 0.0071.
    assert abs(np.corrcoef(kept[1:], kept[:-1])[0, 1]) < 0.0355


def test_batch_mode_drops_all_samples_together():
    layer = StochasticDepth(0.4, mode="batch", seed=2)
    draws = np.array([run(layer, np.ones((5, 3), "float32"), training=True) for _ in range(400)])
    assert np.all(draws == draws[:, :1, :1])
    # Standard error sqrt(0.24 / 400) = 0.0245, five of them.
    assert np.mean(draws[:, 0, 0] > 0) == pytest.approx(0.6, abs=0.1225)
    np.testing.assert_allclose(draws[draws > 0], 1 / 0.6, rtol=1e-6)


def test_batch_mode_takes_a_scalar():
    layer = StochasticDepth(0.5, mode="batch", seed=2)
    assert {float(layer(ops.convert_to_tensor(1.0), training=True)) for _ in range(20)} == {0.0, 2.0}


def test_the_expectation_is_the_input():
    x = np.random.default_rng(0).normal(size=(1, 8)).astype("float32")
    out = run(StochasticDepth(0.25, seed=3), np.repeat(x, 40_000, axis=0), training=True)
    # A sample's deviation is |x| sqrt(rate / keep) = 0.577 |x|; five standard errors.
    np.testing.assert_array_less(np.abs(out.mean(0) - x[0]), 5 * 0.5774 * np.abs(x[0]) / 200 + 1e-7)


def test_calls_draw_anew_and_seeds_repeat():
    x = np.ones((64, 1), "float32")
    layer = StochasticDepth(0.5, seed=5)
    first, second = run(layer, x, training=True), run(layer, x, training=True)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, run(StochasticDepth(0.5, seed=5), x, training=True))
    assert not np.array_equal(first, run(StochasticDepth(0.5, seed=6), x, training=True))


@pytest.mark.parametrize("training", [False, None, "absent"])
def test_nothing_is_dropped_outside_training(training):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    kwargs = {} if training == "absent" else {"training": training}
    np.testing.assert_array_equal(run(StochasticDepth(0.9, seed=1), x, **kwargs), x)
    dropout = keras.layers.Dropout(0.9, seed=1)
    np.testing.assert_array_equal(run(dropout, x, **kwargs), x)  # as Keras's own


@pytest.mark.parametrize("kwargs", [{}, {"training": None}, {"training": True}, {"training": False}], ids=str)
def test_inside_another_layer_training_is_decided_as_for_dropout(kwargs):
    class Outer(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x, training=False):
            return self.inner(x, **kwargs)

    x = np.ones((64, 1), "float32")
    drops = [0.0 in run(Outer(kind(0.5, seed=1)), x, training=True) for kind in (StochasticDepth, keras.layers.Dropout)]
    assert drops[0] == drops[1]
    assert drops[0] or kwargs not in ({}, {"training": True})


def test_rate_0_keeps_all_and_rate_1_drops_all():
    x = np.ones((9, 2), "float32")
    np.testing.assert_array_equal(run(StochasticDepth(0), x, training=True), x)
    np.testing.assert_array_equal(run(StochasticDepth(1), x, training=True), 0 * x)
    np.testing.assert_array_equal(run(StochasticDepth(1), [x, 5 * x], training=True), x)


def test_a_dropped_branch_may_have_overflowed():
    x = np.full((64, 2), np.inf, "float32")
    out = run(StochasticDepth(0.5, seed=1), x, training=True)
    assert set(out.ravel().tolist()) == {0.0, np.inf}


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_the_gradient_is_the_mask_over_the_survival_probability(rate):
    x = ops.ones((64, 2))
    expected = run(StochasticDepth(rate, seed=1), x, training=True)  # of ones: the mask over keep
    if keras.backend.backend() == "jax":
        import jax

        found = jax.grad(lambda v: ops.sum(StochasticDepth(rate, seed=1)(v, training=True)))(x)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            total = ops.sum(StochasticDepth(rate, seed=1)(x, training=True))
        found = tape.gradient(total, x)
        found = tf.zeros_like(x) if found is None else found
    np.testing.assert_array_equal(np.array(found), expected)


# -- a shortcut and a branch


def test_a_shortcut_is_added():
    shortcut = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    branch = np.random.default_rng(1).normal(size=(200, 3)).astype("float32")
    alone = run(StochasticDepth(0.5, seed=4), branch, training=True)
    together = run(StochasticDepth(0.5, seed=4), [shortcut, branch], training=True)
    np.testing.assert_allclose(together, shortcut + alone, rtol=1e-6)
    np.testing.assert_allclose(run(StochasticDepth(0.5), [shortcut, branch]), shortcut + branch, rtol=1e-6)


@pytest.mark.parametrize("shapes", [[(4, 3), (4, 2)], [(4, 3), (4, 3, 1)], [(4, 3)] * 3])
def test_inputs_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"takes a branch, or \[shortcut, branch\]"):
        StochasticDepth(0.5)([np.ones(shape, "float32") for shape in shapes])


def test_a_scalar_has_no_rows():
    with pytest.raises(ValueError, match="needs a batch axis"):
        StochasticDepth(0.5)(ops.convert_to_tensor(1.0))


# -- dtypes and masks


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")],
)
def test_the_output_has_the_compute_dtype(policy, dtype):
    layer = StochasticDepth(0.5, seed=1, dtype=policy)
    out = layer(np.ones((32, 2), "float32"), training=True)
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    assert set(ops.convert_to_numpy(ops.cast(out, "float32")).ravel().tolist()) == {0.0, 2.0}
    both = layer([np.ones((32, 2), "float32")] * 2, training=True)
    assert keras.backend.standardize_dtype(both.dtype) == dtype


def test_small_rates_are_exact_in_half_precision():
    # A uniform bfloat16 draw is 0 to 255/256: a rate of 0.001 would drop 0.4%. 40,000 draws: standard error 0.00016.
    out = run(StochasticDepth(0.001, seed=1, dtype="bfloat16"), np.ones((40_000, 1), "float32"), training=True)
    assert np.mean(out == 0) == pytest.approx(0.001, abs=0.0008)


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_a_mask_reaches_the_next_layer(with_shortcut):
    ids = keras.Input((4,), dtype="int32")
    branch = keras.layers.Embedding(5, 3, mask_zero=True)(ids)
    joined = StochasticDepth(0.5)([branch, branch] if with_shortcut else branch)
    model = keras.Model(ids, [branch, keras.layers.GlobalAveragePooling1D()(joined)])
    x = np.array([[1, 2, 0, 0], [3, 4, 1, 0]], "int32")
    vectors, pooled = (np.array(out) for out in model(x))
    expected = np.stack([vectors[0, :2].mean(0), vectors[1, :3].mean(0)]) * (2 if with_shortcut else 1)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_two_masks_join_as_in_add():
    first, second = ops.convert_to_tensor([True, True, False]), ops.convert_to_tensor([True, False, False])
    branches = [np.zeros((3, 1))] * 2
    layer, add = StochasticDepth(0.5), keras.layers.Add()
    for masks in ([first, second], [first, None], [None, None]):
        ours, theirs = layer.compute_mask(branches, masks), add.compute_mask(branches, masks)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(np.array(ours), np.array(theirs))


# -- in models


def small_model(rate=0.5, mode="row"):
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8)(inputs)
    x = StochasticDepth(rate, mode=mode, seed=11)([x, keras.layers.Dense(8, activation="relu")(x)])
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 6)).astype("float32")
    return x, x[:, :1]


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_learns_through_it(mode, compiled):
    x, y = data()
    model = small_model(0.2, mode)
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=compiled)
    history = model.fit(x, y, batch_size=16, epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_compiled_draws_differ_from_step_to_step():
    x = np.ones((64, 1), "float32")
    model = keras.Sequential([keras.Input((1,)), StochasticDepth(0.5, seed=1)])
    model.compile(loss=lambda y, prediction: prediction, optimizer="sgd", jit_compile=True)
    losses = [float(model.train_on_batch(x, x)) for _ in range(6)]
    assert len(set(losses)) > 2
    assert np.mean(losses) == pytest.approx(1, abs=5 / np.sqrt(6 * 64))


def test_any_batch_size_and_an_unknown_shape_work():
    model = keras.Sequential([keras.Input((None, None, 3)), StochasticDepth(0.5)])
    assert model.output_shape == (None, None, None, 3)
    for batch in (1, 7):
        assert model(np.ones((batch, 2, 2, 3), "float32"), training=True).shape == (batch, 2, 2, 3)


def test_the_generator_is_saved_where_keras_forgets_it(tmp_path):
    def after_reload(make, name):
        x = np.ones((256, 1), "float32")
        model = keras.Sequential([keras.Input((1,)), make()])
        model(x, training=True)
        model.save(tmp_path / name)
        loaded = keras.models.load_model(tmp_path / name)
        return np.array(model(x, training=True)), np.array(loaded(x, training=True))

    going_on, resumed = after_reload(lambda: keras.layers.Dropout(0.5, seed=3), "keras.keras")
    assert not np.array_equal(going_on, resumed)
    going_on, resumed = after_reload(lambda: StochasticDepth(0.5, seed=3), "kit.keras")
    np.testing.assert_array_equal(going_on, resumed)


def test_a_model_survives_saving_and_its_weights_alone(tmp_path):
    x, _ = data()
    model = small_model()
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = small_model()
    fresh.load_weights(tmp_path / "model.weights.h5")
    expected = np.array(model(x, training=True))
    for other in (keras.models.load_model(tmp_path / "model.keras"), fresh):
        np.testing.assert_allclose(np.array(other(x, training=True)), expected, rtol=1e-6)


def test_weights_of_another_layer_are_refused(tmp_path):
    keras.Sequential([keras.Input((1,)), keras.layers.Dropout(0.5)]).save_weights(tmp_path / "a.weights.h5")
    model = keras.Sequential([keras.Input((1,)), StochasticDepth(0.5)])
    with pytest.raises(Exception, match="holds no seed_generator_state"):
        model.load_weights(tmp_path / "a.weights.h5")


def test_configuration_survives_json():
    layer = StochasticDepth(0.3, mode="batch", seed=4, name="drop", dtype="mixed_bfloat16")
    config = json.loads(json.dumps(keras.layers.serialize(layer)))
    loaded = keras.layers.deserialize(config)
    assert loaded.get_config() == layer.get_config()
    assert (loaded.rate, loaded.mode, loaded.seed, loaded.compute_dtype) == (0.3, "batch", 4, "bfloat16")


@pytest.mark.tensorflow
def test_two_replicas_train(two_replicas):
    x, y = data()
    with two_replicas.scope():
        model = small_model()
        model.compile(keras.optimizers.SGD(0.05), "mse")
    history = model.fit(x, y, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


# -- the rule for the rates, and errors


def test_rates_rise_linearly_to_the_last():
    np.testing.assert_allclose(depth_rates(0.5, 5), [0.1, 0.2, 0.3, 0.4, 0.5])
    assert depth_rates(0.3, 1) == [0.3]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: StochasticDepth(1.1), ValueError, "Received: rate=1.1"),
        (lambda: StochasticDepth(-0.1), ValueError, "Received: rate=-0.1"),
        (lambda: StochasticDepth("half"), TypeError, "Received: rate='half'"),
        (lambda: StochasticDepth(0.1, mode="rows"), ValueError, "Did you mean 'row'?"),
        (lambda: StochasticDepth(0.1, seed="a"), ValueError, "seed"),
        (lambda: depth_rates(0.1, 0), ValueError, "Received: depth=0"),
        (lambda: depth_rates(2, 3), ValueError, "Received: rate=2"),
    ],
)
def test_bad_arguments_fail_at_construction(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
