"""Faults of plain Keras, each shown on plain Keras first, and the same case right with the kit.

When a new Keras mends one of them, the first half of its test fails: then the documentation must change, too.
"""

import contextlib
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision, training
from keras_trainkit.testing import reference
from keras_trainkit.testing.contracts import assert_close, fit, small_model

pytestmark = pytest.mark.tensorflow


def on_replicas(strategy, make, per_replica, steps=1, initial=(0.0, 0.0)):
    """Applies gradient `per_replica[i]` on replica i, as `fit` would, and returns the first copy of the variable."""
    import tensorflow as tf

    with strategy.scope():
        variable = keras.Variable(np.array(initial, "float32"))
        optimizer = make()
        optimizer.build([variable])
    table = tf.constant(np.array(per_replica, "float32"))

    @tf.function
    def step():
        def body():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([table[replica]], [variable])

        strategy.run(body)

    for _ in range(steps):
        step()
    copies = [v.numpy() for v in strategy.experimental_local_results(variable.value)]
    return copies, optimizer


@pytest.mark.shows(
    "several-devices",
    "`clipnorm`, `clipvalue`, `global_clipnorm` on two replicas",
    keras="clips before the sum: the norm reaches twice the bound, the direction is another",
    kit="clips the sum",
)
@pytest.mark.parametrize("option", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_clipping_comes_before_the_sum_over_replicas(two_replicas, option):
    def step(module, gradients):
        copies, _ = on_replicas(two_replicas, lambda: module.SGD(1.0, **{option: 1.0}), gradients)
        return -copies[0]

    alike, other = [[8.0, 0.0], [8.0, 0.0]], [[8.0, 0.1], [-7.8, 0.1]]
    assert np.linalg.norm(step(keras.optimizers, alike)) == pytest.approx(2, abs=1e-5)  # asked for 1
    np.testing.assert_allclose(step(optimizers, alike), [1, 0], atol=1e-6)
    theirs, sum_of_both = step(keras.optimizers, other), np.array([0.2, 0.2])  # of a norm below 1
    cosine = theirs @ sum_of_both / np.linalg.norm(theirs) / np.linalg.norm(sum_of_both)
    assert cosine < 0.8
    np.testing.assert_allclose(step(optimizers, other), sum_of_both, atol=1e-6)


@pytest.mark.shows(
    "several-devices",
    "accumulation in `fit` under MirroredStrategy",
    keras="stops with an error about `merge_call`",
    kit="as on one device",
)
def test_accumulation_cannot_run_under_a_strategy(two_replicas):
    with two_replicas.scope():
        theirs = small_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
        ours = small_model(optimizers.SGD(0.1, gradient_accumulation_steps=2))
    with pytest.raises(Exception, match="merge_call"):
        fit(theirs, epochs=1)
    alone = small_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    fit(alone, epochs=1)
    fit(ours, epochs=1)
    assert int(ops.convert_to_numpy(ours.optimizer.iterations)) == 2
    assert_close(ours.get_weights(), alone.get_weights(), 2e-6)


@pytest.mark.shows(
    "several-devices",
    "`ema_overwrite_frequency` under MirroredStrategy",
    keras="stops with the same error",
    kit="as on one device",
)
def test_average_overwrite_cannot_run_under_a_strategy(two_replicas):
    arguments = {"use_ema": True, "ema_overwrite_frequency": 2}
    with two_replicas.scope():
        theirs = small_model(keras.optimizers.SGD(0.1, **arguments))
        ours = small_model(optimizers.SGD(0.1, **arguments))
    with pytest.raises(Exception, match="merge_call"):
        fit(theirs, epochs=1)
    alone = small_model(optimizers.SGD(0.1, **arguments))
    fit(alone, epochs=1)
    fit(ours, epochs=1)
    assert_close(ours.get_weights(), alone.get_weights(), 2e-6)


@pytest.mark.shows(
    "several-devices",
    "an overflow on the second of two replicas",
    keras="is written into the weights of both, and the scale stays",
    kit="skips the step on both, and the scale is halved once",
)
def test_overflow_on_the_second_replica_reaches_the_weights(two_replicas):
    gradients = [[1.0, 1.0], [np.inf, 1.0]]
    theirs, scaled = on_replicas(
        two_replicas, lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), gradients
    )
    assert not np.isfinite(theirs[0]).all()
    assert float(scaled.dynamic_scale.numpy()) == 2.0**15
    for module in (optimizers, keras.optimizers):
        ours, scaled = on_replicas(two_replicas, lambda m=module: precision.LossScaleOptimizer(m.SGD(0.1)), gradients)
        assert (np.array(ours) == 0).all()
        assert float(scaled.dynamic_scale.numpy()) == 2.0**14


@pytest.mark.shows(
    "several-devices",
    "the same with Keras's `LossScaleOptimizer` around the optimizer",
    keras="is written into the weights",
    kit="no weight changes, and no update counts; the scale is Keras's affair",
)
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_keras_wrapper_around_our_optimizer_lets_no_overflow_through(two_replicas, options, poison):
    gradients = [[1.0, 1.0], [poison, 1.0]]
    wrapper = keras.optimizers.LossScaleOptimizer
    theirs, _ = on_replicas(two_replicas, lambda: wrapper(keras.optimizers.Adam(0.1)), gradients)
    assert not np.isfinite(theirs[0]).all()
    ours, scaled = on_replicas(two_replicas, lambda: wrapper(optimizers.Adam(0.1, **options)), gradients, steps=3)
    assert (np.array(ours) == 0).all()
    assert int(scaled.iterations.numpy()) == 0
    again = keras.optimizers.deserialize(keras.optimizers.serialize(scaled))
    ours, _ = on_replicas(two_replicas, lambda: type(again).from_config(again.get_config()), gradients)
    assert (np.array(ours) == 0).all()


def test_keras_wrapper_around_our_optimizer_has_nothing_to_divide_by():
    def after_a_bad_stretch(module):
        variable = keras.Variable(np.zeros(1, "float32"))
        optimizer = keras.optimizers.LossScaleOptimizer(module.SGD(0.1))
        optimizer.build([variable])
        for _ in range(170):
            optimizer.apply([ops.full((1,), np.inf)], [variable])
        optimizer.apply([ops.zeros(1)], [variable])
        return float(ops.convert_to_numpy(variable)[0])

    assert np.isnan(after_a_bad_stretch(keras.optimizers))
    assert after_a_bad_stretch(optimizers) == 0


@pytest.mark.slow
def test_fast_growth_finishes_on_two_replicas_for_all_of_twenty_seeds(two_replicas):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 5)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(5, 3))).astype("float32")

    def finite(make, seeds):
        with two_replicas.scope():
            model = small_model(make(), dtype="mixed_float16")
            model.optimizer.build(model.trainable_variables)
        start = model.get_weights(), [v.numpy() for v in model.optimizer.variables]
        finished = 0
        for seed in range(seeds):
            order = np.tile(np.random.default_rng(seed).permutation(len(x)), 2)
            model.set_weights(start[0])
            for variable, value in zip(model.optimizer.variables, start[1], strict=True):
                variable.assign(value)
            model.fit(x[order], y[order], batch_size=16, shuffle=False, verbose=0)
            finished += all(np.isfinite(w).all() for w in model.get_weights())
        return finished

    options = {"initial_scale": 2.0**15, "dynamic_growth_steps": 2}
    theirs = finite(lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), **options), 3)
    assert theirs < 3
    assert finite(lambda: precision.LossScaleOptimizer(optimizers.Adam(0.01), **options), 20) == 20
    assert finite(lambda: keras.optimizers.LossScaleOptimizer(optimizers.Adam(0.01), **options), 3) == 3


@pytest.mark.shows(
    "several-devices",
    "a last batch of 3 or of 1 on two replicas",
    keras="the replica with 1 sample counts as much as that with 2; that with none halves the gradient",
    kit="every sample counts the same with `training.weigh_samples`",
)
@pytest.mark.parametrize("last", [[6.0, 0.0, 0.0], [3.0]])
def test_uneven_replicas_count_the_same(two_replicas, last):
    y = np.array([0.0] * 4 + last, "float32")

    def moved(module, helper=lambda model: model):
        layers = [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
        model = keras.Sequential(layers)
        model.compile(module.SGD(1.0), lambda y, p: -y * p, jit_compile=False)  # a step is the mean of y
        helper(model).fit(np.ones((len(y), 1)), y, batch_size=4, shuffle=False, verbose=0)
        return model.get_weights()[0].item()

    alone = moved(keras.optimizers)
    assert alone == pytest.approx(np.mean(last))
    with two_replicas.scope():
        theirs, ours = moved(keras.optimizers), moved(optimizers, training.weigh_samples)
    assert theirs == pytest.approx(1.5)  # (6/2 + 0) / 2, and (3 + 0) / 2
    assert ours == pytest.approx(alone)


@pytest.mark.shows(
    "several-devices",
    "a long stretch of overflows",
    keras="the scale reaches 0, and the next good step divides by it",
    kit="the scale stops at `minimum_scale`",
)
def test_loss_scale_has_no_floor():
    def after_a_bad_stretch(wrapper, module):
        variable = keras.Variable(np.zeros(1, "float32"))
        optimizer = wrapper(module.SGD(0.1))
        optimizer.build([variable])
        for _ in range(170):
            optimizer.apply([ops.full((1,), np.inf)], [variable])
        scale = float(ops.convert_to_numpy(optimizer.dynamic_scale))
        optimizer.apply([ops.zeros(1) * scale], [variable])
        return scale, float(ops.convert_to_numpy(variable)[0])

    scale, weight = after_a_bad_stretch(keras.optimizers.LossScaleOptimizer, keras.optimizers)
    assert scale == 0 and not np.isfinite(weight)
    scale, weight = after_a_bad_stretch(precision.LossScaleOptimizer, optimizers)
    assert scale == 1 and weight == 0


@pytest.mark.shows(
    "several-devices",
    "a long stretch of small gradients",
    keras="the scale grows to infinity and stays there: no step is taken any more",
    kit="the scale stops at `maximum_scale`",
)
def test_loss_scale_has_no_ceiling():
    def after_a_still_stretch(wrapper, module):
        variable = keras.Variable(np.zeros(1, "float32"))
        optimizer = wrapper(module.SGD(0.1), dynamic_growth_steps=1)
        optimizer.build([variable])
        for _ in range(120):
            optimizer.apply([ops.zeros(1)], [variable])
        for _ in range(5):
            optimizer.apply([ops.ones(1) * optimizer.dynamic_scale], [variable])
        return float(ops.convert_to_numpy(optimizer.dynamic_scale)), float(ops.convert_to_numpy(variable)[0])

    assert after_a_still_stretch(keras.optimizers.LossScaleOptimizer, keras.optimizers) == (np.inf, 0.0)
    scale, weight = after_a_still_stretch(precision.LossScaleOptimizer, optimizers)
    assert scale == 2.0**24 and weight == pytest.approx(-0.5)


@pytest.mark.shows(
    "several-devices",
    "embeddings whose rows repeat in a batch",
    keras="adaptive optimizers square the parts before they are summed: another step than the dense gradient's",
    kit="summed first: the dense gradient's step",
)
@pytest.mark.parametrize("kind", ["Adagrad", "Adam", "RMSprop"])
def test_repeated_rows_are_squared_before_they_are_summed(kind):
    import tensorflow as tf

    def step(module, gradient):
        variable = keras.Variable(np.zeros((4, 1), "float32"))
        optimizer = getattr(module, kind)(1.0)
        optimizer.build([variable])
        optimizer.apply([gradient], [variable])
        return variable.numpy()

    rows = tf.IndexedSlices(tf.constant([[1.0], [1.0], [1.0]]), tf.constant([2, 2, 0]), tf.constant([4, 1]))
    full = tf.convert_to_tensor(rows)
    assert np.abs(step(keras.optimizers, rows) - step(keras.optimizers, full)).max() > 0.05
    np.testing.assert_allclose(step(optimizers, rows), step(optimizers, full), atol=1e-7)
    np.testing.assert_allclose(step(optimizers, rows), step(keras.optimizers, full), atol=1e-5)


def test_decay_exclusions_are_lost_on_load(tmp_path):
    def decayed_bias(module):
        model = small_model(module.SGD(0.0, weight_decay=0.5))
        model.optimizer.exclude_from_weight_decay(var_names=["bias"])
        model.optimizer.build(model.trainable_variables)
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        again.optimizer.learning_rate = 0.1
        bias = again.layers[-1].bias
        bias.assign(np.ones(3))
        again.optimizer.apply([ops.zeros(v.shape) for v in again.trainable_variables], again.trainable_variables)
        return float(ops.convert_to_numpy(bias)[0])

    assert decayed_bias(keras.optimizers) == pytest.approx(0.95)
    assert decayed_bias(optimizers) == 1.0


def test_state_that_does_not_fit_is_dropped_with_a_warning(tmp_path):
    for module in (keras.optimizers, optimizers):
        model = small_model(module.Adam(0.01))
        fit(model, epochs=1)
        model.save_weights(tmp_path / "m.weights.h5")
        other = small_model(module.Adam(0.01, amsgrad=True))
        fit(other, epochs=1)
        if module is keras.optimizers:
            with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
                other.load_weights(tmp_path / "m.weights.h5")
        else:
            with pytest.raises(ValueError, match="the file lacks slot `velocity_hat` of variable 0"):
                other.load_weights(tmp_path / "m.weights.h5")


@pytest.mark.parametrize(
    "theirs, ours, twin",
    [
        (
            lambda: keras.optimizers.Lamb(0.01, weight_decay=0.1, epsilon=1e-6),
            lambda: optimizers.LAMB(0.01, weight_decay=0.1),
            lambda: reference.LAMB(weight_decay=0.1),
        ),
        (lambda: keras.optimizers.Nadam(0.01, epsilon=1e-8), lambda: optimizers.NAdam(0.01), reference.NAdam),
    ],
    ids=["lamb", "nadam"],
)
def test_lamb_and_nadam_are_not_the_papers(theirs, ours, twin):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(4, 3))]
    gradients = [[rng.normal(size=(4, 3))] for _ in range(20)]
    right = reference.Twin(twin).run(start, gradients, 0.01)[0]

    def end(optimizer):
        variable = keras.Variable(start[0].astype("float32"))
        optimizer.build([variable])
        for step in gradients:
            optimizer.apply([ops.convert_to_tensor(step[0], "float32")], [variable])
        return ops.convert_to_numpy(variable)

    assert np.abs(end(theirs()) - right).max() > 1e-3
    np.testing.assert_allclose(end(ours()), right, atol=1e-5)


def test_an_integer_learning_rate_is_refused():
    with pytest.raises(ValueError, match="should be float"):
        keras.optimizers.SGD(1)
    assert float(ops.convert_to_numpy(optimizers.SGD(1).learning_rate)) == 1.0


@pytest.mark.shows(
    "several-devices",
    "clean data, two replicas, and a scale that grows every 2 steps",
    keras="ends with weights that are not finite, and a scale below 1",
    kit="skips what overflows, and ends with weights that are finite",
)
def test_clean_data_with_fast_growth_ends_on_two_replicas(two_replicas):
    # The larger targets go to the second replica, so a scale that grows too far overflows there first: Keras asks
    # the first replica only, applies the infinite gradients, and lowers the scale for good once all is NaN.
    keras.config.set_dtype_policy("mixed_float16")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 16, 5)).astype("float32")
    y = rng.normal(size=(4, 16, 3)).astype("float32")
    y[:, 8:] *= 8

    def train(make, scope):
        with scope:
            model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
            model.compile(make(), "mse", jit_compile=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twelve = [np.tile(part.reshape(64, -1), (12, 1)) for part in (x, y)]
            model.fit(*twelve, batch_size=16, shuffle=False, verbose=0)
        return model, all(np.isfinite(w).all() for w in model.get_weights())

    def theirs():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), dynamic_growth_steps=2)

    def ours():
        return precision.LossScaleOptimizer(optimizers.SGD(0.01), dynamic_growth_steps=2)

    _, finite = train(theirs, contextlib.nullcontext())
    assert finite
    model, finite = train(theirs, two_replicas.scope())
    assert not finite and float(model.optimizer.dynamic_scale.numpy()) < 1
    model, finite = train(ours, two_replicas.scope())
    assert finite and float(model.optimizer.dynamic_scale.numpy()) >= 2.0**10
    skipped = int(model.optimizer.skipped_steps.numpy())
    assert skipped > 0
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) + skipped == 48


@pytest.mark.shows(
    "several-devices",
    "an epoch whose length is not known beforehand, as of a generator",
    keras="counts an update too many at its end",
    kit="counts the updates done, and the micro-batches of a window",
)
def test_the_end_of_a_generator_is_no_step():
    def batches():
        for _ in range(3):
            yield np.ones((4, 5), "float32"), np.ones((4, 3), "float32")

    def updates(optimizer):
        small_model(optimizer).fit(batches(), epochs=1, verbose=0)
        return int(optimizer.iterations.numpy())

    assert updates(keras.optimizers.Adam(0.1)) == 4
    assert updates(optimizers.Adam(0.1)) == 3
    assert updates(precision.LossScaleOptimizer(optimizers.NAdam(0.1))) == 3
    window = optimizers.Adam(0.1, gradient_accumulation_steps=4, last_window="carry")
    assert updates(window) == 0  # the end would be the fourth
    unlike = optimizers.SGD(0.1, gradient_accumulation_steps=4, last_window="apply")
    plain = optimizers.SGD(0.1, gradient_accumulation_steps=3)
    models = [small_model(unlike), small_model(plain)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.fit(batches(), epochs=1, verbose=0)
    assert_close(models[0].get_weights(), models[1].get_weights(), 1e-6)
