"""Each private name of Keras and TensorFlow that core/backend.py needs: the test that fails names the one that went."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.core import backend


def built():
    variable = keras.Variable(np.ones(3, "float32"), name="v")
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build([variable])
    return optimizer, variable


@pytest.mark.parametrize(
    "name",
    [
        "_iterations",
        "_learning_rate",
        "_trainable_variables",
        "_get_variable_index",
        "_check_variables_are_known",
        "_track_variable",
        "_backend_update_step",
        "_var_key",
    ],
)
def test_optimizer_still_has(name):
    assert hasattr(built()[0], name)


def test_apply_of_the_base_class_is_what_fit_calls():
    source = inspect.getsource(keras.optimizers.Optimizer.apply_gradients)
    assert "self.apply(" in source


def test_iterations_and_rate_are_the_saved_variables():
    optimizer, _ = built()
    assert backend.iterations_variable(optimizer) is optimizer.variables[0]
    assert backend.learning_rate_variable(optimizer) is optimizer.variables[1]
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    assert backend.learning_rate_variable(keras.optimizers.Adam(schedule)) is None
    assert backend.learning_rate_argument(keras.optimizers.Adam(schedule)) is schedule


def test_variable_index_and_known():
    optimizer, variable = built()
    assert backend.built_variables(optimizer)[0] is variable
    assert backend.variable_index(optimizer, variable) == 0
    with pytest.raises(ValueError, match="Unknown variable"):
        backend.check_known(optimizer, [keras.Variable(np.ones(2))])


def test_swap_callback_reads_the_averages_where_we_publish_them():
    assert "_model_variables_moving_average" in inspect.getsource(keras.callbacks.SwapEMAWeights)


def test_stateless_scope_is_seen():
    assert not backend._records_writes()
    variable = keras.Variable(1.0)
    with keras.StatelessScope(state_mapping=[(variable, ops.convert_to_tensor(2.0))]):
        assert backend._records_writes()
        assert float(backend.get_stateless_scope().state_mapping[id(variable)]) == 2.0


def test_stateless_apply_of_the_base_class():
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    assert callable(BaseOptimizer.stateless_apply)


def test_fit_ends_with_finalize_variable_values():
    assert "finalize_variable_values" in inspect.getsource(inspect.unwrap(keras.Model.fit))


@pytest.mark.tensorflow
def test_distribution_strategy_and_native_value(two_replicas):
    optimizer, variable = built()
    assert optimizer._distribution_strategy is not None
    assert variable._value is not None
    with two_replicas.scope():
        mirrored = keras.Variable(np.ones(3, "float32"))
    assert hasattr(mirrored._value, "_get_on_device_or_primary")


def test_flat_layers_go_down():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="deep")])
    model = keras.Sequential([keras.Input((2,)), inner])
    assert "deep" in [layer.name for layer in backend.flat_layers(model)]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX shards variables by a layout")
def test_layout_attribute():
    # A slot is sharded like its variable by this attribute.
    assert hasattr(built()[1], "_layout")


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX shards variables by a layout")
def test_layouts_name_their_axes():
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), keras.distribution.list_devices()[:2])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["v"] = ("model", None)
    assert backend.axes_of(keras.Variable(np.ones((4, 3)), name="v")) is None
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts))
    try:
        variable = keras.Variable(np.ones((4, 3)), name="v")
        slot = keras.Variable(np.ones((3, 4)), name="s", layout=backend.layout_like(variable, (3, 4)))
        assert backend.axes_of(variable) == ("model", None)
        assert backend.axes_of(slot) == (None, "model")
        assert slot.value.addressable_shards[0].data.shape == (3, 2)
        with backend.laid_out([(variable, None)]):
            assert backend.axes_of(variable) is None
        assert backend.axes_of(variable) == ("model", None)
    finally:
        keras.distribution.set_distribution(None)


def test_what_is_made_on_paper_has_no_value_and_leaves_no_name():
    from keras.src.backend.common import global_state

    with backend.on_paper():
        dense = keras.layers.Dense(2)
        dense.build((None, 3))
        assert dense.kernel.path == "dense/kernel" and dense.kernel.shape == (3, 2)
    assert dense.kernel._value is None
    assert not global_state.get_global_attribute("uninitialized_variables")
    assert keras.layers.Dense(2).name == "dense"


def test_sublayers_stand_in_the_order_of_the_computation():
    parts = [keras.layers.Dense(2, name=name) for name in "ba"]
    model = keras.Sequential([keras.Input((2,)), *parts])
    assert [layer.name for layer in backend.sublayers(model) if layer in parts] == ["b", "a"]


@pytest.mark.parametrize("kind", ["Adam", "Nadam", "Lamb", "Muon", "Adafactor", "Ftrl", "Adamax"])
def test_pure_copy_sits_between_optimizer_and_backend(kind):
    if not hasattr(keras.optimizers, kind):
        pytest.skip(f"this Keras has no {kind}")
    copy = backend.pure_copy(getattr(keras.optimizers, kind)(0.01, clipnorm=1.0), {"clipnorm": None})
    names = [c.__name__ for c in type(copy).__mro__]
    base = next(c.__name__ for c in keras.optimizers.Optimizer.__mro__ if c.__module__.startswith("keras.src.backend"))
    assert names.index("Optimizer") < names.index("PureUpdate") < names.index(base)
    assert copy.clipnorm is None
    assert backend.serialize_pure_copy(copy)["class_name"] == kind


class Asked(backend.Adapter):
    """One batch of two examples, and who asked for it."""

    num_batches, batch_size, has_partial_batch, partial_batch_size = 1, 2, False, None

    def __init__(self):
        self.asked = []
        self.iterators = []

    def on_epoch_begin(self):
        iterator, purpose = backend.asking()
        self.asked.append(purpose)
        self.iterators.append(iterator)

    def get_jax_iterator(self):
        return iter([(np.ones((2, 1), "float32"), np.ones((2, 1), "float32"))] * 3)

    def get_tf_dataset(self):
        import tensorflow as tf

        self.strategy = backend.asking_strategy()
        return tf.data.Dataset.from_generator(
            self.get_jax_iterator, output_signature=(tf.TensorSpec([2, 1]), tf.TensorSpec([2, 1]))
        )


def test_trainers_take_an_adapter_and_are_found_by_it():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    adapter = Asked()

    class LongerNow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.steps = []

        def on_train_batch_begin(self, batch, logs=None):
            iterator = adapter.iterators[-1]
            self.steps.append(backend.steps_taken(iterator))
            assert not backend.goes_on(iterator)  # it would if `steps_per_epoch` were given
            backend.set_steps(iterator, 3)

    counted = LongerNow()
    model.fit(adapter, epochs=2, verbose=0, callbacks=[counted])
    model.evaluate(adapter, verbose=0)
    model.predict(adapter, verbose=0)
    assert [purpose for purpose in adapter.asked if purpose != "build"] == ["fit", "fit", "evaluate", "predict"]
    assert counted.steps == [1, 2, 3]
    assert backend.asking() == (None, "")


@pytest.mark.tensorflow
def test_under_a_strategy_trainers_look_at_a_batch_first(two_replicas):
    with two_replicas.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    adapter = Asked()
    model.fit(adapter, verbose=0)
    assert adapter.asked == ["build", "fit"]
    assert adapter.strategy is two_replicas


@pytest.mark.tensorflow
def test_the_trainer_builds_models_by_the_method_that_workers_replace():
    assert list(inspect.signature(keras.Model._maybe_symbolic_build).parameters) == ["self", "iterator", "data_batch"]
    for name in ("fit", "evaluate", "train_on_batch"):
        assert "self._maybe_symbolic_build(" in inspect.getsource(inspect.unwrap(getattr(keras.Model, name)))


@pytest.mark.tensorflow
def test_a_restoring_callback_sets_the_first_epoch_where_we_read_it():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    assert backend.first_epoch(model) == 0
    model._initial_epoch = 3
    assert backend.first_epoch(model) == 3
    assert "self.model._initial_epoch = " in inspect.getsource(keras.callbacks.BackupAndRestore)


@pytest.mark.tensorflow
def test_tensorflow_takes_the_patience_with_workers_before_it_starts():
    from tensorflow.python.eager import context

    arguments = inspect.signature(context.Context.configure_coordination_service).parameters
    assert {
        "service_type", "service_leader", "cluster_register_timeout_in_ms", "heartbeat_timeout_in_ms",
        "coordinated_jobs",
    } <= set(arguments)  # fmt: skip


@pytest.mark.tensorflow
def test_what_a_step_writes_can_wait():
    trained, other = keras.Variable(1.0, name="trained"), keras.Variable(2.0, trainable=False, name="other")
    with backend.DeferredWrites() as writes:
        other.assign(other + 1)
        other.assign_add(1)
        assert float(other.value) == 4.0
        with pytest.raises(ValueError, match="writes the trainable variable 'trained'"):
            trained.assign(5.0)
    assert float(other.value) == 2.0
    ((variable, value),) = writes.values.values()
    assert variable is other
    assert float(value) == 4.0


@pytest.mark.tensorflow
def test_regularizers_find_variables_whose_writes_wait():
    layer = keras.layers.Dense(2, kernel_regularizer="l2")
    layer.build((None, 3))
    with backend.DeferredWrites():
        losses = layer.losses
    assert float(losses[0]) == pytest.approx(float(layer.losses[0]))


@pytest.mark.tensorflow
def test_a_trainer_runs_any_step_on_a_batch():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    backend.build_from(model, (np.ones((2, 3), "float32"), np.ones((2, 1), "float32")))
    assert model.metrics_variables  # what a batch makes is there
    run = backend.step_runner(model, lambda data: {"sum": ops.sum(data[0])})
    assert float(run((np.ones((2, 3), "float32"),))["sum"]) == 6.0


@pytest.mark.tensorflow
def test_errors_of_memory_are_known():
    import tensorflow as tf

    assert backend.out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    assert backend.out_of_memory(MemoryError())
    assert backend.out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))
    assert not backend.out_of_memory(ValueError("out of memory"))
    assert not backend.out_of_memory(RuntimeError("another"))


def test_a_schedule_can_be_replaced_without_being_asked():
    def unready(step):
        raise ValueError("not yet")

    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    optimizer = keras.optimizers.SGD(unready)
    backend.replace_schedule(optimizer, schedule)
    assert backend.learning_rate_argument(optimizer) is schedule
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
