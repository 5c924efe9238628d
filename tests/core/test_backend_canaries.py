"""Each private name of Keras and TensorFlow that core/backend.py needs: the test that fails names the one that went."""

import inspect
import types

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


def test_the_rate_is_replaced_and_put_back():
    optimizer, _ = built()
    variable = backend.rate_object(optimizer)
    backend.replace_schedule(optimizer, keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9))
    assert float(ops.convert_to_numpy(optimizer.learning_rate)) == 0.5
    backend.replace_schedule(optimizer, variable)
    assert backend.rate_object(optimizer) is variable is backend.learning_rate_variable(optimizer)


@pytest.mark.tensorflow
def test_the_seeds_of_operations_come_back():
    import tensorflow as tf

    tf.random.set_seed(3)
    tf.random.uniform([2])
    seeds = backend.operation_seeds()
    first = tf.random.uniform([2]).numpy()
    tf.random.set_seed(4)
    backend.set_operation_seeds(seeds)
    np.testing.assert_array_equal(tf.random.uniform([2]).numpy(), first)


def test_global_seeds_are_forgotten():
    assert backend.global_seeds(make=True) is backend.global_seeds()
    backend.forget_global_seeds()
    assert backend.global_seeds() is None


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


def test_who_divides_activity_penalties_by_the_batch():
    layer = keras.layers.ActivityRegularization(l1=1.0)
    layer(np.ones((2, 3), "float32"))
    assert float(sum(layer.losses)) == (3 if backend.divides_activity_penalties() else 6)


def test_a_layers_own_losses_are_those_that_its_calls_added():
    inner = keras.layers.ActivityRegularization(l1=1.0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_regularizer="l2"), inner])
    model(np.ones((1, 2), "float32"))
    assert backend.own_losses(inner) == model.losses[:1] and backend.own_losses(model) == []
    assert len(model.losses) == 2


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


def test_masks_hang_on_tensors():
    embedded = keras.layers.Embedding(3, 2, mask_zero=True)(ops.convert_to_tensor([[1, 0]]))
    assert ops.convert_to_numpy(backend.mask_of(embedded)).tolist() == [[True, False]]
    assert backend.mask_of(ops.zeros((1, 2))) is None


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


def test_a_metric_is_reset_and_carried_on_without_an_attribute():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    attributes, metric = set(vars(model)), keras.metrics.Mean(name="seen")
    backend.add_metric(model, metric)
    assert any(m is metric for m in model.metrics)
    assert all(any(v is w for w in model.metrics_variables) for v in metric.variables)
    assert set(vars(model)) == attributes
    metric.update_state(3.0)
    model.reset_metrics()
    assert float(metric.count) == 0
    backend.remove_metric(model, metric)
    assert all(m is not metric for m in model.metrics)


def test_models_say_whether_they_take_training():
    class Without(keras.Model):
        def call(self, inputs):
            return inputs

    assert not backend.takes_training(Without())
    assert backend.takes_training(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))


@pytest.mark.tensorflow
def test_dense_tensors_are_told_from_others():
    import tensorflow as tf

    assert backend.is_dense(tf.zeros([2]))
    assert not backend.is_dense(tf.sparse.from_dense([[1.0]]))
    assert not backend.is_dense(tf.ragged.constant([[1.0], []]))


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


@pytest.mark.tensorflow
def test_what_depends_on_a_tensor_is_seen_without_computing():
    import tensorflow as tf

    outer, one = tf.constant([1.0]), tf.constant([2.0])
    assert backend.depends(lambda a, b: {"sum": a + b + outer}, one, one)
    assert not backend.depends(lambda a, b: {"sum": b + outer}, one, one)
    assert not backend.depends(lambda a, b: ops.cast(a, "float32") if b is None else b, one, [one, one])


def test_a_tensor_can_be_given_a_mask():
    tensor, mask = ops.ones((2, 3)), ops.ones((2, 3), "bool")
    backend.set_mask(tensor, mask)
    found = []

    class Look(keras.layers.Layer):
        def call(self, inputs, mask=None):
            found.append(mask)
            return inputs

    Look()(tensor)
    assert found[0] is mask


def test_substituted_values_are_read_and_all_else_goes_its_way():
    first, second = keras.Variable(np.ones(2, "float32")), keras.Variable(np.zeros(2, "float32"))
    layer = keras.layers.ActivityRegularization(l2=1.0)

    def inside():
        with backend.Substituted([(first, np.full(2, 5.0, "float32"))]) as scope:
            layer(ops.ones((1, 2)))
            second.assign(first + 1.0)
            read = [ops.convert_to_numpy(v).tolist() for v in (first, second)]
        return read, [float(loss) for loss in scope.losses]

    assert inside() == ([[5.0, 5.0], [6.0, 6.0]], [2.0])
    assert [ops.convert_to_numpy(v).tolist() for v in (first, second)] == [[1.0, 1.0], [6.0, 6.0]]
    with keras.StatelessScope([(second, np.full(2, 3.0, "float32"))], collect_losses=True) as outer:
        with backend.Substituted([(first, np.zeros(2, "float32"))]):
            assert ops.convert_to_numpy(second).tolist() == [3.0, 3.0]
        assert inside() == ([[5.0, 5.0], [6.0, 6.0]], [])
    assert ops.convert_to_numpy(outer.get_current_value(second)).tolist() == [6.0, 6.0]
    assert [float(loss) for loss in outer.losses] == [2.0]
    second.assign(np.zeros(2))
    assert ops.convert_to_numpy(second).tolist() == [0.0, 0.0]


def test_slots_of_one_variable_are_found_in_any_optimizer():
    variables = [keras.Variable(np.full((2, 3), float(i), "float32"), name=f"v{i}") for i in range(5)]
    for optimizer, expected in (
        (keras.optimizers.SGD(0.1), 0),
        (keras.optimizers.SGD(0.1, momentum=0.9), 1),
        (keras.optimizers.Adam(0.1, amsgrad=True), 3),
        (keras.optimizers.Adam(0.1, use_ema=True, gradient_accumulation_steps=2), 4),
        (keras.optimizers.Ftrl(0.1), 2),
    ):
        optimizer.build(variables)
        found = backend.slots_like(optimizer, variables[2])
        assert len(found) == expected
        others = {id(slot) for v in variables if v is not variables[2] for slot in backend.slots_like(optimizer, v)}
        assert not any(id(slot) in others for slot in found)
        if optimizer.use_ema:
            assert any(slot is backend.average_of(optimizer, variables[2]) for slot in found)


def test_fit_keeps_its_epoch_iterator_and_its_callbacks_under_these_names():
    source = inspect.getsource(inspect.unwrap(keras.Model.fit))
    for words in ("epoch_iterator = ", "callbacks = callbacks_module.CallbackList(", "callbacks.on_train_batch_begin("):
        assert words in source
    # What a callback says in `on_train_begin` about the first epoch is read after it, and never reset.
    begin = source.index("callbacks.on_train_begin()")
    assert begin < source.index("initial_epoch = self._initial_epoch or initial_epoch")
    adapter = backend.ArrayDataAdapter(np.ones((4, 2)), np.zeros(4))
    x, y, weights = backend.arrays_of(types.SimpleNamespace(data_adapter=adapter))
    assert (x.shape, y.shape, weights) == ((4, 2), (4,), None)


def test_fit_goes_through_its_batches_inside_of_a_method_of_its_iterator():
    assert "with epoch_iterator.catch_stop_iteration():" in inspect.getsource(inspect.unwrap(keras.Model.fit))

    class Failing(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            backend.when_fit_fails(lambda: told.append("first"))
            backend.when_fit_fails(lambda: told.append("taken back"))()
            backend.when_fit_fails(lambda: told.append("last"))

        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    told = []
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0, callbacks=[Failing()])
    assert told == ["last", "first"]


def test_callbacks_can_tell_fit_from_evaluate_and_predict():
    class Told(keras.callbacks.Callback):
        def set_params(self, params):
            super().set_params(params)
            told.append(backend.called_by_fit())

    told = []
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((4, 3))
    model.fit(x, x[:, :1], verbose=0, callbacks=[Told()])
    model.evaluate(x, x[:, :1], verbose=0, callbacks=[Told()])
    model.predict(x, verbose=0, callbacks=[Told()])
    assert told == [True, False, False] and not backend.called_by_fit()


def test_an_epoch_can_be_entered_in_its_middle():
    class Seen(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.batches = []

        def on_train_begin(self, logs=None):
            lists = backend.list_of_callbacks()
            assert isinstance(lists, keras.callbacks.CallbackList) and backend.is_fitting(lists)
            self.iterator = backend.epoch_iterator_of_fit()
            assert backend.batches_at_once(self.iterator) == 1
            backend.build_metrics(self.model, self.iterator)
            assert len(self.model.metrics_variables) == 4
            backend.begin_with_epoch(self.model, 1)
            backend.enter_epoch(self.iterator, 2, knows_position=False, past=1)

        def on_train_batch_begin(self, batch, logs=None):
            self.batches.append(batch)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    seen = Seen()
    model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=2, epochs=3, verbose=0, callbacks=[seen])
    assert seen.batches == [2, 3, 0, 1, 2, 3]
    backend.begin_with_epoch(model, None)
    assert backend.first_epoch(model) == 0 and not backend.is_fitting(object())
    assert backend.list_of_callbacks() is None


def test_the_global_seeds_are_made_where_keras_looks_for_them():
    keras.utils.set_random_seed(1)
    keras.random.normal((2,))
    generator = backend.global_seeds()
    assert generator is backend.global_seeds(make=True)
    before = np.array(keras.ops.convert_to_numpy(generator.state))
    keras.random.normal((2,))
    assert not np.array_equal(before, keras.ops.convert_to_numpy(generator.state))
    backend.forget_global_seeds()
    assert backend.global_seeds() is None and backend.seed_is_set()


def test_a_held_value_stays_what_it_was():
    variable = keras.Variable(np.arange(3.0))
    model = keras.Sequential([keras.Input((1,))])
    (copy,) = backend.copies(variable, getattr(model, "distribute_strategy", None))
    held = backend.held(copy)
    variable.assign_add(np.ones(3))
    np.testing.assert_array_equal(np.asarray(held), np.arange(3.0))


def test_callbacks_of_keras_keep_what_they_have_seen_here():
    for callback, fields in [
        (keras.callbacks.EarlyStopping(), {"wait", "stopped_epoch", "best_weights", "best_epoch"}),
        (keras.callbacks.ReduceLROnPlateau(), {"best", "wait", "cooldown_counter"}),
        (keras.callbacks.ModelCheckpoint("a.keras"), {"best", "_batches_seen_since_last_saving", "_last_batch_seen"}),
        (keras.callbacks.TensorBoard(), {"_global_train_batch", "_global_test_batch"}),
        (keras.callbacks.SwapEMAWeights(), {"_ema_weights_in_model"}),
    ]:
        if isinstance(callback, keras.callbacks.EarlyStopping):
            callback.on_train_begin()
        assert fields <= set(backend.callback_fields(callback))


@pytest.mark.tensorflow
def test_the_trainer_has_a_place_to_time_batches_at():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    if not backend.times_batches(model):
        version = tuple(int(part) for part in keras.__version__.split(".")[:2])
        assert version < (3, 15), "`_autoconvert_optionals` has gone"
        return
    batches = []

    def around(step):
        return lambda data: batches.append(data) or step(data)

    backend.around_batches(model, around)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=4, verbose=0)
    backend.around_batches(model, None)
    assert batches and "_autoconvert_optionals" not in vars(model)
    (x, y) = batches[0]
    assert x.shape[1:] == (2,) and y.shape[1:] == (1,)


@pytest.mark.tensorflow
def test_an_optimizer_knows_the_strategy_it_was_made_under(two_replicas):
    import tensorflow as tf

    with two_replicas.scope():
        optimizer = keras.optimizers.SGD()
    with backend.scope_of(optimizer):
        assert tf.distribute.get_strategy() is two_replicas
    with backend.scope_of(built()[0]):
        assert tf.distribute.get_strategy().num_replicas_in_sync == 1


def test_a_layer_knows_what_is_its_own():
    inner, outer = keras.layers.Dense(1), keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((2,)), inner, outer])
    outer.trainable = False
    assert backend.variables_of_its_own(model) == []
    assert [v.name for v in backend.variables_of_its_own(inner)] == ["kernel", "bias"]
    assert [v.name for v in backend.variables_of_its_own(outer)] == ["gamma", "beta"]
