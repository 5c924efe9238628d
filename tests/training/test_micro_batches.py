"""Batches in parts: the update of the whole batch, and steps that go on after the memory has run out."""

import multiprocessing
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import averaging, callbacks, core, optimizers, precision, training
from keras_trainkit.testing.contracts import assert_close

pytestmark = pytest.mark.tensorflow
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from limited_memory import LimitedMemory, checked, memory_for

RNG = np.random.default_rng(51)
X, Y = RNG.normal(size=(42, 5)).astype("float32"), RNG.normal(size=(42, 3)).astype("float32")
OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(0.05, global_clipnorm=0.3),
    "windows": lambda: optimizers.AdamW(0.05, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5),
    "scaled": lambda: precision.LossScaleOptimizer(optimizers.Adam(0.05, clipnorm=0.2)),
    "lazy": lambda: optimizers.LazyAdam(0.05),
}


class Penalty(keras.layers.Layer):
    """Adds to the loss itself, as a mean over the batch."""

    def call(self, inputs):
        """The identity."""
        self.add_loss(ops.mean(ops.square(inputs)))
        return inputs


def network(optimizer, stateful=False, **options):
    keras.utils.set_random_seed(3)
    between = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)] if stateful else []
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(6, activation="tanh", kernel_regularizer="l2"),
        *between,
        # The gradients of the last layer are there before memory runs out, those of the first are not.
        LimitedMemory(),
        keras.layers.Dense(3),
        Penalty(),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse", metrics=["mae"], **{"jit_compile": False, **options})
    return model


def train(model, batch_size=16, epochs=2, **options):
    """Weights and history, and whether Keras warned of the memory."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        history = model.fit(X, Y, batch_size, epochs=epochs, shuffle=False, verbose=0, **options).history
    return model.get_weights(), history, ["Out of memory" in str(w.message) for w in seen].count(True)


def assert_same_history(one, other, tolerance):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=tolerance)


@pytest.mark.shows(
    "memory",
    "memory that runs out in the middle of a step",
    keras="`fit` stops, and statistics of BatchNormalization have moved",
)
def test_keras_alone_stops_and_leaves_a_step_half_done():
    model = network(keras.optimizers.Adam(0.05), stateful=True)
    statistics = model.layers[1].get_weights()
    with memory_for(8), pytest.raises(tf.errors.ResourceExhaustedError):
        train(model)
    assert any((a != b).any() for a, b in zip(statistics, model.layers[1].get_weights(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parts_make_the_update_of_the_whole_batch(name):
    weights, history, _ = train(network(OPTIMIZERS[name]()))
    unsplit, same_history, _ = train(training.micro_batches(network(OPTIMIZERS[name]())))
    assert_close(unsplit, weights, 0.0)
    assert_same_history(same_history, history, 1e-6)
    parts, parts_history, warned = train(training.micro_batches(network(OPTIMIZERS[name]()), 5))
    assert_close(parts, weights, 2e-6)
    assert_same_history(parts_history, history, 1e-5)
    assert not warned


@pytest.mark.shows(
    "memory",
    "memory that runs out in the middle of a step",
    kit="with `micro_batches` the part is halved, and the step goes on: weights and metrics of the whole batch",
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_from_the_step_that_ran_out_of_memory(name):
    weights, history, _ = train(network(OPTIMIZERS[name]()))
    model = training.micro_batches(network(OPTIMIZERS[name]()))
    with memory_for(4):
        found, found_history, warned = train(model)
    assert_close(found, weights, 2e-6)
    assert_same_history(found_history, history, 1e-5)
    assert training.micro_batch_size(model) == 4
    assert warned == 2  # of 16 samples, of 8


def test_the_failed_attempt_leaves_no_trace():
    """Statistics, masks and metrics are bit for bit those of a run that knew the size from the beginning."""
    known, known_history, _ = train(training.micro_batches(network(OPTIMIZERS["adam"](), stateful=True), 4))
    model = training.micro_batches(network(OPTIMIZERS["adam"](), stateful=True))
    with memory_for(4):
        found, found_history, warned = train(model)
    assert warned == 2
    assert_close(found, known, 0.0)
    assert_same_history(found_history, known_history, 0.0)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_parts_that_are_done_are_not_done_again(where):
    """The second part of a batch finds no memory; the first is in the sums already."""
    weights, history, _ = train(network(OPTIMIZERS["adam"]()))
    model = training.micro_batches(network(OPTIMIZERS["adam"]()), 8)
    with memory_for(0, calls={3}, backward=where == "backward"):
        found, found_history, warned = train(model)
    assert warned == 1
    assert training.micro_batch_size(model) == 4
    assert_close(found, weights, 2e-6)
    assert_same_history(found_history, history, 1e-5)


@pytest.mark.parametrize(("name", "replica"), [("adam", 0), ("adam", 1), ("windows", 1), ("scaled", 0), ("lazy", None)])
def test_memory_may_run_out_on_one_replica_alone(name, replica, two_replicas):
    weights, history, _ = train(network(OPTIMIZERS[name]()))
    with two_replicas.scope():
        model = training.micro_batches(network(OPTIMIZERS[name]()))
    with memory_for(3, replica=replica):
        found, found_history, warned = train(model)
    assert warned == 2  # of 8 samples on each, of 4
    assert training.micro_batch_size(model) == 2
    assert_close(found, weights, 5e-6)
    assert_same_history(found_history, history, 1e-5)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_every_way_to_run_steps(options):
    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
    weights, history, _ = train(network(OPTIMIZERS["adam"](), **options), callbacks=[count])
    expected, steps[:] = list(steps), []
    model = training.micro_batches(network(OPTIMIZERS["adam"](), **options))
    with memory_for(4):
        found, found_history, warned = train(model, callbacks=[count])
    assert warned == 2
    assert steps == expected
    assert_close(found, weights, 2e-6)
    assert_same_history(found_history, history, 1e-5)


def test_a_whole_step_compiled_by_xla():
    def small():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
        model.compile(optimizers.Adam(0.05), "mse", jit_compile=True)
        return model

    assert_close(train(training.micro_batches(small(), 6))[0], train(small())[0], 2e-6)


def test_generators_and_single_batches():
    def batches():
        for start in range(0, 42, 14):
            yield X[start : start + 14], Y[start : start + 14]

    results = []
    for wrap in (lambda model: model, lambda model: training.micro_batches(model, 4)):
        model = wrap(network(OPTIMIZERS["adam"]()))
        model.fit(batches(), epochs=1, verbose=0)
        model.train_on_batch(X[:9], Y[:9])
        assert int(model.optimizer.iterations) == 4
        results.append(model.get_weights())
    assert_close(results[1], results[0], 2e-6)


def test_structures_ragged_and_sparse_inputs_are_cut():
    class Mixed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            """A sum over the ragged values, and the sparse rows."""
            ragged = tf.reduce_sum(inputs["ragged"], axis=1, keepdims=True)
            return self.dense(tf.concat([ragged, tf.sparse.to_dense(inputs["sparse"])], axis=1))

    ragged = tf.ragged.constant([[1.0] * (1 + i % 3) for i in range(12)])
    sparse = tf.sparse.from_dense(np.arange(24.0, dtype="float32").reshape(12, 2) / 24)
    target = np.linspace(0, 1, 12, dtype="float32")[:, None]
    dataset = tf.data.Dataset.from_tensor_slices(({"ragged": ragged, "sparse": sparse}, target)).batch(12)
    results = []
    for size in (None, 5):
        keras.utils.set_random_seed(0)
        model = Mixed()
        model.compile(optimizers.SGD(0.1), "mse", jit_compile=False)
        model.dense.build((None, 3))
        training.micro_batches(model, size).fit(dataset, epochs=3, verbose=0)
        results.append(model.get_weights())
    assert_close(results[1], results[0], 1e-6)


def test_an_overflow_in_a_part_leaves_that_part_out():
    x = np.ones((4, 1), "float32")
    y = np.array([[1.0], [2.0], [np.inf], [4.0]], "float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    optimizer = precision.LossScaleOptimizer(optimizers.SGD(0.5), initial_scale=8.0)
    model.compile(optimizer, "mse", jit_compile=False)
    training.micro_batches(model, 1).fit(x, y, batch_size=4, shuffle=False, verbose=0)
    # The gradient of (w - y)^2 at 0 is -2 y, its mean over the three that are finite -14/3.
    np.testing.assert_allclose(model.get_weights()[0], [[0.5 * 14 / 3]], rtol=1e-6)
    assert int(optimizer.iterations) == 1
    assert int(optimizer.skipped_steps) == 1
    y[:] = np.inf
    model.fit(x, y, batch_size=4, verbose=0)
    assert int(optimizer.iterations) == 1
    np.testing.assert_allclose(model.get_weights()[0], [[0.5 * 14 / 3]], rtol=1e-6)


def test_an_overflow_in_the_last_part_does_not_keep_the_window_open():
    x, y = np.ones((2, 1), "float32"), np.array([[1.0], [np.inf]], "float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(precision.LossScaleOptimizer(optimizers.SGD(0.5), initial_scale=8.0), "mse", jit_compile=False)
    training.micro_batches(model, 1).fit(x, y, batch_size=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], [[1.0]], rtol=1e-6)


def test_windows_weighed_by_samples():
    def accumulating():
        return optimizers.Adam(0.05, gradient_accumulation_steps=3)

    weights, _, _ = train(training.weigh_samples(network(accumulating())))
    for around in (
        lambda m: training.micro_batches(training.weigh_samples(m), 3),
        lambda m: training.weigh_samples(training.micro_batches(m, 3)),
    ):
        assert_close(train(around(network(accumulating())))[0], weights, 2e-6)


def test_the_size_that_was_found_is_kept_until_it_is_taken_off():
    model = training.micro_batches(network(OPTIMIZERS["adam"]()))
    assert training.micro_batch_size(model) is None
    with memory_for(4):
        train(model, epochs=1)
        assert train(model, epochs=1)[2] == 0
    model.compile(optimizers.Adam(0.05), "mse", jit_compile=False)
    with memory_for(4):
        assert train(model, epochs=1)[2] == 0
    assert training.plain(model) is model
    with memory_for(4), pytest.raises(tf.errors.ResourceExhaustedError):
        train(model)
    with pytest.raises(ValueError, match="no `micro_batches`"):
        training.micro_batch_size(model)


def test_schedules_and_averages_count_updates(tmp_path):
    model = training.micro_batches(network(OPTIMIZERS["windows"]()), 2)
    train(model, epochs=2)
    assert int(model.optimizer.iterations) == 3  # 3 batches an epoch, windows of 2
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Penalty": Penalty})
    assert_close(loaded.get_weights(), model.get_weights(), 0.0)


def test_evaluation_weights_work_around_it():
    results = []
    for size in (None, 4):
        model = training.micro_batches(network(optimizers.ScheduleFreeAdamW(0.05)), size)
        _, history, _ = train(model, validation_data=(X, Y), callbacks=[callbacks.EvaluationWeights()])
        results.append([*model.get_weights(), *history["val_loss"]])
    assert_close(results[1], results[0], 2e-6)


# -------------------------------------------------------------------------------------------------------- refusals


def test_one_sample_that_does_not_fit_is_an_error():
    with (
        memory_for(0),
        pytest.warns(UserWarning, match="Out of memory"),
        pytest.raises(tf.errors.ResourceExhaustedError) as caught,
    ):
        network_in_parts = training.micro_batches(network(OPTIMIZERS["adam"]()))
        network_in_parts.fit(X, Y, batch_size=16, verbose=0)
    assert any("cannot be smaller than 1" in note for note in caught.value.__notes__)


def test_memory_that_runs_out_in_the_update_is_an_error():
    @keras.saving.register_keras_serializable("tests")
    class Hungry(core.Transform):
        def leaf(self, update, parameter, state, context):
            """Needs memory, too."""
            return checked(update, backward=False), state

    model = training.micro_batches(network(optimizers.SGD(0.1, after=[Hungry()])))
    # Batches are 4 samples, the first layer's bias has 6 elements.
    with memory_for(5, backward=False), pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        model.fit(X[:4], Y[:4], batch_size=4, verbose=0)
    assert any("half written" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_other_optimizers_are_refused(wrap):
    model = training.micro_batches(network(wrap(keras.optimizers.Adam())))
    with pytest.raises(TypeError, match=r"`micro_batches` needs an optimizer of keras_trainkit.*Received: keras"):
        train(model)


def test_train_steps_that_cannot_wait_are_refused():
    with pytest.raises(ValueError, match=r"writes the trainable variable .*kernel"):
        train(training.micro_batches(training.sam(network(OPTIMIZERS["adam"]())), 4))

    class Twice(keras.Sequential):
        def train_step(self, data):
            """Two updates from one gradient."""
            gradients = [ops.ones_like(v) for v in self.trainable_variables]
            self.optimizer.apply(gradients, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {}

    model = Twice([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(optimizers.SGD(0.1), "mse")
    with pytest.raises(ValueError, match="calls its optimizer once. Received: 2 calls"):
        train(training.micro_batches(model))


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match=rf"`size` must be an integer at least 1. Received: size={size}"):
        training.micro_batches(network(OPTIMIZERS["adam"]()), size)
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        training.micro_batches("model")


def test_other_backends_and_several_workers_are_refused(monkeypatch):
    model = network(OPTIMIZERS["adam"]())
    workers = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    monkeypatch.setattr(type(model), "distribute_strategy", workers)
    with pytest.raises(ValueError, match="devices of one machine.*Received: model.distribute_strategy="):
        training.micro_batches(model).make_train_function()
    monkeypatch.setattr(core.backend, "ON_TENSORFLOW", False)
    with pytest.raises(ValueError, match="`micro_batches` needs Keras on TensorFlow"):
        training.micro_batches(model)


# ------------------------------------------------------------------------------------ callbacks that look at weights


@pytest.mark.parametrize("name", ["adam", "scaled"])
@pytest.mark.parametrize("average", [averaging.EMA(0.8), averaging.EMA(half_life=40), averaging.LAWA(2, every=2)])
def test_averages_take_in_the_weights_of_whole_batches(name, average):
    """After each update once, with the samples of its batch: the parts are not seen."""
    found, trained = [], []
    for size in (None, 5):
        model = network(OPTIMIZERS[name]())
        model = model if size is None else training.micro_batches(model, size)
        found.append(train(model, callbacks=[callbacks.WeightAveraging(average)])[0])
        memory = core.evaluation.source(getattr(model.optimizer, "inner_optimizer", model.optimizer))
        # 16, 16 and 10 samples, twice.
        counts = {key: int(value) for key, value in memory.state().items() if np.ndim(value) == 0}
        assert counts["count"] == (3 if average.number == 3 else 6) and counts["seen"] == 6
        assert counts["samples"] + counts["total"] == (84 if average.counts_samples else 0)
        core.evaluation.put_back(memory._optimizer())
        trained.append(model.get_weights())
    assert_close(found[1], found[0], 2e-6)
    assert_close(trained[1], trained[0], 2e-6)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(found[0], trained[0], strict=True))


def test_pruning_follows_the_updates_of_whole_batches():
    found = []
    for size in (None, 5):
        model = network(OPTIMIZERS["adam"]())
        model = model if size is None else training.micro_batches(model, size)
        prune = callbacks.MagnitudePruning(0.5, begin_step=2, end_step=4, frequency=1)
        found.append(train(model, callbacks=[prune])[0])
    assert_close(found[1], found[0], 2e-6)
    assert (found[1][0] == 0).mean() == pytest.approx(0.5, abs=0.02)


# ----------------------------------------------------------------------------------------------------- real memory


def _train_with_little_memory(pipe):
    """In a process whose TensorFlow has little memory; it is the allocator that GPUs have."""
    width, rows = 1024, 16384
    x = np.random.default_rng(0).normal(size=(rows, width)).astype("float32")
    y = x[:, :1]
    scale = keras.layers.EinsumDense("ab,b->ab", output_shape=width)
    inner = [keras.layers.Activation("tanh") for _ in range(12)]
    model = keras.Sequential([keras.Input((width,)), scale, *inner, keras.layers.Dense(1)])
    model.compile(optimizers.Adam(1e-2), "mse", jit_compile=False)
    weights = model.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training.micro_batches(model).fit(x, y, batch_size=rows, epochs=3, shuffle=False, verbose=0)
    found = model.get_weights()
    size = training.micro_batch_size(model)
    model.set_weights(weights)
    model.compile(optimizers.Adam(1e-2), "mse", jit_compile=False)
    training.micro_batches(model, 512).fit(x, y, batch_size=rows, epochs=3, shuffle=False, verbose=0)
    pipe.send((size, found, model.get_weights()))


@pytest.mark.slow
def test_real_memory_that_runs_out(monkeypatch):
    """A batch of 16384 samples needs 12 tensors of 64 MiB and more; there is room for some of them."""
    monkeypatch.setenv("TF_CPU_ALLOCATOR_USE_BFC", "true")
    monkeypatch.setenv("TF_CPU_BFC_MEM_LIMIT_IN_MB", "640")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_train_with_little_memory, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(180), "no answer within 3 minutes"
        size, found, weights = ours.recv()
    finally:
        process.kill()
        process.join()
    assert size in (1024, 2048, 4096, 8192)
    assert_close(found, weights, 1e-4)  # a hundredth of one of the three steps
