"""`LossScaleOptimizer`: a drop-in for Keras's, bounded, counted, saved, and the same on JAX."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision
from keras_trainkit.testing.contracts import assert_close, fit, small_model
from keras_trainkit.testing.problems import Stepper


def scaled(**options):
    return precision.LossScaleOptimizer(optimizers.SGD(0.5), **({"initial_scale": 8.0} | options))


def value(variable):
    return float(ops.convert_to_numpy(variable))


def test_gradients_are_unscaled():
    step = Stepper(scaled(), [np.array([1.0])], dtype="float32")
    step([np.array([8.0])])
    assert step.parameters()[0][0] == 0.5
    assert value(step.optimizer.scale_loss(ops.convert_to_tensor(2.0))) == 16.0


def test_scale_doubles_after_good_steps_and_halves_after_a_bad_one():
    step = Stepper(scaled(dynamic_growth_steps=2), [np.array([1.0])], dtype="float32")
    trail = []
    for gradient in [0.0, 0.0, 0.0, np.inf, 0.0, 0.0, np.nan, np.nan]:
        step([np.array([gradient])])
        trail.append(value(step.optimizer.dynamic_scale))
    assert trail == [8, 16, 16, 8, 8, 16, 8, 4]
    assert value(step.optimizer.skipped_steps) == 3
    assert value(step.optimizer.iterations) == 5
    assert step.parameters()[0][0] == 1.0


def test_scale_stays_between_its_bounds():
    low = Stepper(scaled(minimum_scale=2.0), [np.array([1.0])], dtype="float32")
    low.run([[np.array([np.inf])]] * 6)
    assert value(low.optimizer.dynamic_scale) == 2.0
    high = Stepper(scaled(maximum_scale=32.0, dynamic_growth_steps=1), [np.array([1.0])], dtype="float32")
    high.run([[np.array([0.0])]] * 6)
    assert value(high.optimizer.dynamic_scale) == 32.0


def test_configuration_survives():
    made = scaled(dynamic_growth_steps=7, minimum_scale=0.5, maximum_scale=64.0)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert type(again) is precision.LossScaleOptimizer
    assert again.get_config() == made.get_config()
    assert (again.initial_scale, again.minimum_scale, again.maximum_scale) == (8.0, 0.5, 64.0)
    assert again.dynamic_growth_steps == 7


@pytest.mark.parametrize("built", [True, False])
def test_scale_and_counters_are_saved(built):
    steps = Stepper(scaled(dynamic_growth_steps=5), [np.array([1.0])], dtype="float32")
    steps.run([[np.array([g])] for g in (np.inf, 0.0, 0.0, 0.0)])
    store, again = {}, scaled(dynamic_growth_steps=5)
    steps.optimizer.save_own_variables(store)
    if built:
        again.build(steps.variables)
        again.load_own_variables(store)
    else:
        again.load_own_variables(store)
        again.build(steps.variables)
    assert [value(v) for v in (again.dynamic_scale, again.step_counter, again.skipped_steps)] == [4.0, 3.0, 1.0]


def test_a_bad_micro_batch_is_left_out_of_the_window():
    inner = optimizers.SGD(1.0, gradient_accumulation_steps=2)
    step = Stepper(precision.LossScaleOptimizer(inner, initial_scale=1.0), [np.array([0.0])], dtype="float32")
    for gradient, expected in [(1.0, 0.0), (np.inf, 0.0), (3.0, -2.0), (5.0, -2.0)]:
        step([np.array([gradient])])
        assert step.parameters()[0][0] == expected


@pytest.mark.tensorflow
@pytest.mark.parametrize("bad", [0, 1])
def test_a_micro_batch_that_is_bad_on_one_replica_is_left_out_on_both(two_replicas, bad):
    import tensorflow as tf

    with two_replicas.scope():
        variable = keras.Variable(np.zeros(2, "float32"))
        inner = optimizers.SGD(1.0, gradient_accumulation_steps=2)
        optimizer = precision.LossScaleOptimizer(inner, initial_scale=4.0)
        optimizer.build([variable])

    @tf.function
    def step(good, poison):
        def on_replica():
            here = tf.distribute.get_replica_context().replica_id_in_sync_group == bad
            gradient = tf.stack([good, tf.where(here, poison, 1.0)]) * optimizer.dynamic_scale.value
            optimizer.apply([gradient], [variable])

        two_replicas.run(on_replica)

    for good, poison in [(1.0, 1.0), (100.0, np.inf), (100.0, np.nan), (3.0, 1.0)]:
        step(tf.constant(good), tf.constant(poison, "float32"))
    copies = [copy.numpy().tolist() for copy in two_replicas.experimental_local_results(variable.value)]
    assert copies == [[-4.0, -2.0]] * 2  # the means of the two good ones, summed over the replicas
    assert [value(v) for v in (optimizer.dynamic_scale, optimizer.skipped_steps, optimizer.iterations)] == [1, 2, 1]


def test_model_trains_in_float16_and_resumes_exactly(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")

    def make():
        return precision.LossScaleOptimizer(optimizers.Adam(0.01), initial_scale=2.0**15, dynamic_growth_steps=3)

    model = small_model(make())
    first = model.evaluate(np.zeros((4, 5), "float32"), np.ones((4, 3), "float32"), verbose=0)
    fit(model, epochs=3)
    assert model.optimizer.__class__ is precision.LossScaleOptimizer, "compile wrapped it a second time"
    assert np.isfinite(first) and all(np.isfinite(w).all() for w in model.get_weights())
    model.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    assert value(again.optimizer.dynamic_scale) == value(model.optimizer.dynamic_scale) != 2.0**15
    fit(model, epochs=2)
    fit(again, epochs=2)
    assert_close(again.get_weights(), model.get_weights(), 0.0)
    assert value(again.optimizer.skipped_steps) == value(model.optimizer.skipped_steps)


def test_reads_the_scale_of_keras_wrapper(tmp_path):
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=64.0, dynamic_growth_steps=5)
    old = small_model(theirs)
    fit(old, epochs=3)
    old.save_weights(tmp_path / "k.weights.h5")
    new = small_model(precision.LossScaleOptimizer(optimizers.SGD(0.01), initial_scale=64.0))
    new.optimizer.build(new.trainable_variables)
    new.load_weights(tmp_path / "k.weights.h5")
    assert value(new.optimizer.dynamic_scale) == value(theirs.dynamic_scale) == 256.0
    assert value(new.optimizer.step_counter) == value(theirs.step_counter)


def test_a_keras_optimizer_inside_is_taken_through_wrap():
    optimizer = precision.LossScaleOptimizer(keras.optimizers.Nadam(0.01, clipnorm=1.0))
    assert isinstance(optimizer.inner_optimizer, optimizers.Wrapped)
    assert optimizer.inner_optimizer.clipnorm == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_scale": 0.5}, "`initial_scale` must be a number at least 1.0"),
        ({"initial_scale": 2.0**30}, "`initial_scale`"),
        ({"minimum_scale": 0}, "`minimum_scale` must be a number above 0"),
        ({"maximum_scale": 0.5}, "`maximum_scale` must be a number at least 1.0"),
        ({"dynamic_growth_steps": 0}, "`dynamic_growth_steps` must be an integer at least 1"),
        ({"growth": 3}, "growth"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaled(**arguments)


@pytest.mark.tensorflow
def test_what_compile_adds_by_itself_lets_nothing_through_either(two_replicas):
    """`compile` puts Keras's wrapper around the optimizer under `mixed_float16`; the second replica overflows."""
    x, y = np.ones((16, 5), "float32"), np.zeros((16, 3), "float32")
    y[6:8] = 1e30  # in the second half of the second batch of 4

    def trained(module):
        with two_replicas.scope():
            model = small_model(module.Adam(0.01), dtype="mixed_float16")
            assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        return all(np.isfinite(w).all() for w in model.get_weights()), value(model.optimizer.iterations)

    keras.config.set_dtype_policy("mixed_float16")
    finite, updates = trained(keras.optimizers)
    assert not finite and updates >= 2
    assert trained(optimizers) == (True, 3)


POLICIES = ["mixed_float16", "mixed_bfloat16", "bfloat16", "float32"]


def layers_of_all_policies(optimizer):
    keras.utils.set_random_seed(5)
    hidden = [keras.layers.Dense(8, "tanh", dtype=policy, name=policy) for policy in POLICIES]
    model = keras.Sequential([keras.Input((5,)), *hidden, keras.layers.Dense(3, dtype="float32")])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


@pytest.mark.tensorflow
def test_layers_of_several_policies_train_together(two_replicas):
    """Each keeps its dtypes, no update is lost in 16 bits, and two replicas equal one device."""

    def make():
        inner = optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5, gradient_accumulation_steps=2)
        return precision.LossScaleOptimizer(inner, initial_scale=2.0**12)

    alone = layers_of_all_policies(make())
    with two_replicas.scope():
        together = layers_of_all_policies(make())
    start = alone.get_weights()
    for model in (alone, together):
        fit(model, epochs=5)
        assert value(model.optimizer.iterations) == 10 and value(model.optimizer.skipped_steps) == 0
    kinds = {v.path.split("/")[-2]: keras.backend.standardize_dtype(v.dtype) for v in alone.trainable_variables}
    assert [kinds[policy] for policy in POLICIES] == ["float32", "float32", "bfloat16", "float32"]
    slots = [v for v in alone.optimizer.inner_optimizer.variables if len(v.shape)]
    assert {keras.backend.standardize_dtype(v.dtype) for v in slots} == {"float32"}
    ends, others = ([w.astype("float32") for w in model.get_weights()] for model in (alone, together))
    assert min(np.abs(a - b.astype("float32")).max() for a, b in zip(ends, start, strict=True)) > 0.01
    assert_close(others, ends, 0.004)  # weights in bfloat16 have 8 bits


@pytest.mark.tensorflow
def test_a_strategy_must_hold_both_optimizers(two_replicas):
    with two_replicas.scope():
        variable = keras.Variable(np.zeros(1, "float32"))
        inner = optimizers.SGD(0.1)
    outside = precision.LossScaleOptimizer(inner)
    with two_replicas.scope(), pytest.raises(ValueError, match="must be made under the same strategy"):
        outside.build([variable])
