"""`data.Batches`: a seeded order that changes, a position, and batches that are right on any number of replicas."""

import contextlib
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import data
from keras_trainkit.core import backend
from keras_trainkit.data.feed import Share
from keras_trainkit.data.order import Cutting, Position, epoch_order

RNG = np.random.default_rng(41)


def numbers(count):
    return np.arange(count, dtype="float32")[:, None], np.arange(count, dtype="float32")


def linear(strategy=None, optimizer=None, normalize=None):
    """A model that is built and compiled; `normalize` is an argument for BatchNormalization."""
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        parts = [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")]
        if normalize is not None:
            parts.insert(1, keras.layers.BatchNormalization(**normalize))
        model = keras.Sequential(parts)
        model.compile((optimizer or (lambda: keras.optimizers.SGD(0.01)))(), "mse", jit_compile=False)
    return model


class Seen(keras.callbacks.Callback):
    """The positions after each step."""

    def __init__(self, batches):
        super().__init__()
        self.batches, self.states = batches, []

    def on_train_batch_end(self, batch, logs=None):
        self.states.append(self.batches.state())


def recorder():
    """A model whose weight tells the order of what it was trained on: w becomes 0.9 w + 0.1 mean(x)."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.1), lambda y, p: 0 * p, jit_compile=False)

    def call_loss(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        weight = model.trainable_variables[0]
        return ops.sum(0.5 * ops.square(weight - ops.mean(y)))

    model.compute_loss = call_loss
    return model


# ------------------------------------------------------------------------------------------------------------- order


@pytest.mark.shows(
    "data",
    "the order of `fit(x, y)` after `set_random_seed`",
    keras="the same in every epoch",
    kit="another in every epoch, a function of seed and epoch",
)
def test_keras_repeats_one_order_in_each_epoch_and_we_do_not():
    x, y = numbers(12)

    def orders(fit_arguments):
        taken = []

        class Spy(keras.layers.Layer):
            def call(self, inputs):
                if not isinstance(inputs, keras.KerasTensor) and hasattr(inputs, "numpy"):
                    taken.extend(inputs.numpy().ravel())
                return inputs

        model = keras.Sequential([keras.Input((1,)), Spy(), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        taken.clear()
        model.fit(**fit_arguments, epochs=3, verbose=0)
        return np.reshape(taken[-36:], (3, 12))

    if not backend.ON_TENSORFLOW:
        pytest.skip("Keras draws with NumPy there")
    keras.utils.set_random_seed(1)
    theirs = orders({"x": x, "y": y, "batch_size": 4})
    assert (theirs[0] == theirs[1]).all() and (theirs[1] == theirs[2]).all()
    ours = orders({"x": data.Batches(x, y, batch_size=4, seed=1)})
    assert [sorted(epoch) for epoch in ours] == [list(range(12))] * 3
    np.testing.assert_array_equal(ours, [epoch_order(12, 1, epoch) for epoch in range(3)])
    assert len({tuple(epoch) for epoch in ours}) == 3


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(50, 3, 7).tolist() == epoch_order(50, 3, 7).tolist()
    assert epoch_order(50, 3, 7).tolist() != epoch_order(50, 3, 8).tolist()
    assert epoch_order(50, 3, 7).tolist() != epoch_order(50, 4, 7).tolist()
    # Files of positions outlive versions of the kit: this order must stay.
    assert epoch_order(8, 1, 2).tolist() == [6, 0, 7, 5, 1, 4, 3, 2]


def test_iterating_and_fitting_see_the_same_batches():
    x, y = numbers(11)
    by_hand = recorder()
    batches = data.Batches(x, y, batch_size=4, seed=5)
    for _ in range(2):
        for batch in batches:
            by_hand.train_on_batch(*batch)
    fitted = recorder()
    fitted.fit(data.Batches(x, y, batch_size=4, seed=5), epochs=2, verbose=0)
    np.testing.assert_allclose(fitted.get_weights()[0], by_hand.get_weights()[0], rtol=1e-6)


@pytest.mark.parametrize("size", [4, data.RandomSize([2, 4]), data.GrowingSize([2, 4], [3])])
@pytest.mark.parametrize("endless", [False, True])
def test_each_pass_holds_every_example_once(size, endless):
    cutting = Cutting(11, data.Batches(np.zeros(11), batch_size=size).sizes, seed=2)
    if endless:
        stream = cutting.endless(Position())
        rows = np.concatenate([next(stream).rows for _ in range(5)])[:44]
    else:
        segments, position = [], Position()
        for _ in range(4):
            counts = cutting.counts(position)
            segments.append(cutting.segment(position, 1).rows[: counts.sum()])
            position = cutting.after(position, len(counts), False)
        rows = np.concatenate(segments)
    passes = rows.reshape(4, 11)
    np.testing.assert_array_equal(np.sort(passes, axis=1), [list(range(11))] * 4)
    assert len({tuple(one) for one in passes}) == 4


# ---------------------------------------------------------------------------------------------------------- position


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"batch_size": 4, "remainder": "drop"},
        {"batch_size": data.RandomSize([2, 3, 4])},
        {"batch_size": 4, "endless": True},
    ],
)
def test_a_restored_position_goes_on_in_the_middle_of_an_epoch(options):
    x, y = numbers(11)
    steps = {"steps_per_epoch": 3} if options.get("endless") else {}

    def fresh():
        return data.Batches(x, y, seed=6, **options)

    whole, cut = recorder(), recorder()
    batches = fresh()
    seen = Seen(batches)
    whole.fit(batches, epochs=3, verbose=0, callbacks=[seen], **steps)
    total = len(seen.states)

    class StopAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = one.state()["step"] == 4

    one = fresh()
    cut.fit(one, epochs=3, verbose=0, callbacks=[StopAt()], **steps)
    state = json.loads(json.dumps(one.state()))
    assert state == seen.states[3] and state["step"] == 4
    other = fresh()
    other.restore(state)
    while other.state()["step"] < total:
        cut.fit(other, epochs=1, verbose=0, **({"steps_per_epoch": 1} if steps else {}))
    assert other.state() == batches.state()
    np.testing.assert_allclose(cut.get_weights()[0], whole.get_weights()[0], rtol=1e-6)


def test_epochs_after_a_restored_one_are_whole():
    x, y = numbers(12)
    batches = data.Batches(x, y, batch_size=4)
    batches.restore({**batches.state(), "epoch": 0, "done": 8, "step": 2})
    seen = Seen(batches)
    recorder().fit(batches, epochs=3, verbose=0, callbacks=[seen])
    assert [(s["epoch"], s["done"]) for s in seen.states] == [(1, 0), (1, 4), (1, 8), (2, 0), (2, 4), (2, 8), (3, 0)]


def test_validation_and_prediction_do_not_move_the_position():
    x, y = numbers(12)
    batches = data.Batches(x, y, batch_size=4)
    model = linear()
    model.fit(batches, epochs=2, verbose=0, validation_data=batches)
    assert batches.state()["epoch"] == 2
    kept = data.Batches(x, batch_size=5, shuffle=False)
    np.testing.assert_allclose(model.predict(kept, verbose=0), model.predict(x, verbose=0), rtol=1e-6)
    model.evaluate(batches, verbose=0)
    assert batches.state()["epoch"] == 2


@pytest.mark.parametrize(("name", "value"), [("seed", 2), ("examples", 5), ("batch_size", 3), ("endless", True)])
def test_the_state_of_other_batches_is_refused(name, value):
    batches = data.Batches(*numbers(10), batch_size=4, seed=1)
    with pytest.raises(ValueError, match=f"`state` .* `{name}` is .*Received: {name}={value!r}"):
        batches.restore({**batches.state(), name: value})
    with pytest.raises(ValueError, match="lacks `epoch`"):
        batches.restore({})


# ------------------------------------------------------------------------------------------------------ other inputs


def test_structures_weights_and_shares():
    x = {"a": np.arange(6), "b": (np.arange(6) * 2, np.array(list("uvwxyz")))}
    y, weights = np.arange(6) * 3, np.arange(6) / 2
    whole = data.Batches(x, y, weights, batch_size=6, seed=9)
    [(found, targets, own)] = list(whole)
    np.testing.assert_array_equal(found["b"][0], 2 * found["a"])
    assert found["b"][1].tolist() == ["uvwxyz"[i] for i in found["a"]]
    np.testing.assert_array_equal(targets, 3 * found["a"])
    np.testing.assert_allclose(own, found["a"] / 2)
    shares = [next(iter(data.Batches(x, y, weights, batch_size=6, seed=9, shard=(i, 3)))) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate([share[1] for share in shares]), targets)


def test_user_weights_are_multiplied_with_those_of_copies():
    x, y = numbers(3)
    weights = np.array([1.0, 2.0, 4.0], "float32")
    share = data.Batches(x, y, weights, batch_size=4, shuffle=False, shard=(0, 2))
    other = data.Batches(x, y, weights, batch_size=4, shuffle=False, shard=(1, 2))
    [(first, _, a)], [(second, _, b)] = list(share), list(other)
    assert first.ravel().tolist() == [0, 1] and second.ravel().tolist() == [2, 0]
    np.testing.assert_allclose([*a, *b], [2 / 3, 8 / 3, 16 / 3, 2 / 3])  # each real row counts 4/3 in all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros(0)}, "at least one example"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, r"of one length. Received: x of \[3\], y of \[4\]"),
        ({"x": np.float32(3)}, "`x` must hold arrays"),
        ({"x": np.zeros(3), "batch_size": 0}, "`batch_size` must be an integer at least 1"),
        ({"x": np.zeros(3), "batch_size": 4, "remainder": "drop"}, "at most the number of examples, 3"),
        ({"x": np.zeros(3), "remainder": "keep"}, "`remainder` must be one of"),
        ({"x": np.zeros(3), "seed": -1}, "`seed` must be an integer at least 0"),
        ({"x": np.zeros(3), "shard": (2, 2)}, "`shard` must be an integer at least 0 and at most 1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.Batches(**arguments)


def test_steps_per_epoch_goes_with_endless_alone():
    x, y = numbers(8)
    with pytest.raises(ValueError, match="endless=True"):
        linear().fit(data.Batches(x, y), steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        linear().fit(data.Batches(x, y, endless=True), verbose=0)
    with pytest.raises(ValueError, match="`steps` must be given"):
        linear().evaluate(data.Batches(x, y, endless=True), verbose=0)


def test_random_sizes_are_traced_once_and_padded_to_a_size():
    x, y = numbers(30)
    batches = data.Batches(x, y, batch_size=data.RandomSize([4, 8]), seed=3)
    shapes = {len(batch[0]) for _ in range(5) for batch in batches}
    assert shapes == {4, 8}
    model = linear()
    model.fit(batches, epochs=4, verbose=0)
    if backend.ON_TENSORFLOW:
        traced = []
        step = model.train_step
        model.train_step = lambda batch: traced.append(1) or step(batch)
        model.make_train_function(force=True)
        model.fit(batches, epochs=4, verbose=0)
        assert len(traced) == 1


# ---------------------------------------------------------------------------------------------------------- replicas


@pytest.mark.tensorflow
def test_shares_of_workers_make_up_each_batch():
    x, y = numbers(22)
    batches = data.Batches(x, y, batch_size=8, seed=2)
    dealt = []
    for worker in range(2):
        pieces = list(batches._dataset_of_worker(worker, 2, 4).as_numpy_iterator())
        assert len(pieces) == 6  # three batches, two replicas
        dealt.append([np.concatenate([pieces[i][0], pieces[i + 1][0]]) for i in (0, 2, 4)])
    whole = [len(left) + len(right) for left, right in zip(*dealt, strict=True)]
    assert whole == [8, 8, 8]  # the last holds six rows, two of them twice
    rows = [np.concatenate(parts).ravel() for parts in zip(*dealt, strict=True)]
    np.testing.assert_array_equal(np.concatenate(rows)[:22], epoch_order(22, 2, 0))


@pytest.mark.shows(
    "data",
    "a last batch of 1, two replicas",
    keras="its gradient is halved",
    kit="the gradient of one device",
)
@pytest.mark.tensorflow
def test_a_last_batch_of_one_on_two_replicas(two_replicas):
    x, y = np.ones((9, 1), "float32"), np.zeros(9, "float32")

    def moved(strategy, arguments):
        model = linear(strategy, lambda: keras.optimizers.SGD(0.1))
        model.fit(**arguments, verbose=0)
        return model.get_weights()[0].item()

    theirs = {"x": x, "y": y, "batch_size": 4}
    alone = moved(None, theirs)
    assert abs(moved(two_replicas, theirs) - alone) > 0.01
    assert moved(two_replicas, {"x": data.Batches(x, y, batch_size=4)}) == pytest.approx(alone, abs=1e-6)


@pytest.mark.shows(
    "data",
    "a batch that two replicas do not divide",
    keras="an error, if it comes first",
    kit="filled up; an error that says so if it is `batch_size`",
)
@pytest.mark.tensorflow
def test_a_first_batch_that_replicas_do_not_divide(two_replicas):
    x, y = numbers(3)
    with pytest.raises(Exception, match=r"[Ss]hape|dimension|Incompatible"):
        linear(two_replicas).fit(x, y, batch_size=3, verbose=0)
    ours = linear(two_replicas)
    ours.fit(data.Batches(x, y, batch_size=4), verbose=0, epochs=2)
    alone = linear()
    alone.fit(data.Batches(x, y, batch_size=4), verbose=0, epochs=2)
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], atol=1e-6)
    with pytest.raises(ValueError, match="a multiple of the number of replicas, 2. Received: batch_size=3"):
        linear(two_replicas).fit(data.Batches(x, y, batch_size=3), verbose=0)


@pytest.mark.tensorflow
@pytest.mark.parametrize("size", [4, data.RandomSize([2, 4, 8])])
def test_two_replicas_equal_one_device(two_replicas, size):
    x = RNG.normal(size=(19, 1)).astype("float32")
    y = np.sin(3 * x[:, 0])
    found = []
    for strategy in (None, two_replicas):
        model = linear(strategy, lambda: keras.optimizers.SGD(0.1, momentum=0.9))
        model.fit(data.Batches(x, y, batch_size=size, seed=4), epochs=6, verbose=0)
        found.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(*found, atol=2e-6)


@pytest.mark.shows(
    "data",
    "text, two replicas",
    keras="an error",
    kit="trains, on the weights of one device",
)
@pytest.mark.tensorflow
def test_text_reaches_replicas(two_replicas):
    x = {"word": np.array(["a", "b", "c", "b", "a"]), "number": np.ones((5, 1), "float32")}
    y = np.arange(5, dtype="float32")

    def model(strategy):
        with strategy.scope() if strategy else contextlib.nullcontext():
            word, number = keras.Input((), dtype="string", name="word"), keras.Input((1,), name="number")
            coded = keras.layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="one_hot")(word)
            both = keras.layers.Concatenate()([coded, number])
            made = keras.Model({"word": word, "number": number}, keras.layers.Dense(1, kernel_initializer="ones")(both))
            made.compile(keras.optimizers.SGD(0.1), "mse")
        return made

    import tensorflow as tf

    with pytest.raises(Exception, match=r"string|AddN|Add"):
        model(two_replicas).fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(2), verbose=0)
    weights = []
    for strategy in (None, two_replicas):
        trained = model(strategy)
        trained.fit(data.Batches(x, y, batch_size=2), epochs=2, verbose=0)
        weights.append(trained.get_weights()[0])
    np.testing.assert_allclose(*weights, atol=1e-6)


# ------------------------------------------------------------------------------------------------ BatchNormalization


def statistics(strategy, batches, **arguments):
    model = linear(strategy, lambda: keras.optimizers.SGD(0.0), {"momentum": 0.0, **arguments})
    model.fit(batches, verbose=0, shuffle=False)
    layer = model.layers[0]
    return np.concatenate([ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance)])


@pytest.mark.shows(
    "data",
    "an empty replica with BatchNormalization",
    keras="weights that are not finite",
    kit="no replica is empty",
)
@pytest.mark.tensorflow
def test_an_empty_replica_and_batch_normalization(two_replicas):
    x, y = np.arange(5, dtype="float32")[:, None], np.zeros(5, "float32")
    import tensorflow as tf

    theirs = linear(two_replicas, normalize={"synchronized": False})
    theirs.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0)
    assert not all(np.isfinite(w).all() for w in theirs.get_weights())
    ours = linear(two_replicas, normalize={"synchronized": False})
    ours.fit(data.Batches(x, y, batch_size=4, shuffle=False), verbose=0)
    assert all(np.isfinite(w).all() for w in ours.get_weights())


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("rest", "exact"), [(1, True), (2, True), (3, True), (4, True), (5, False), (6, True), (7, False)]
)
def test_copies_and_the_statistics_of_batch_normalization(two_replicas, rest, exact):
    """After an epoch with momentum 0 the statistics are those of the last batch."""
    x, y = RNG.normal(size=(8 + rest, 1)).astype("float32"), np.zeros(8 + rest, "float32")
    batches = data.Batches(x, y, batch_size=8, shuffle=False)
    tail = x[8:]
    right = np.array([tail.mean(), tail.var()])
    np.testing.assert_allclose(statistics(None, batches), right, atol=1e-5)
    found = statistics(two_replicas, data.Batches(x, y, batch_size=8, shuffle=False), synchronized=True)
    if exact:
        np.testing.assert_allclose(found, right, atol=1e-5)
    else:
        again = np.append(tail, tail[0])  # one row counts twice
        np.testing.assert_allclose(found, [again.mean(), again.var()], atol=1e-5)
        assert np.abs(found - right).max() > 1e-3


def test_pieces_of_a_share():
    assert [Share(2, 2, 4).bounds(8, piece) for piece in range(2)] == [slice(4, 6), slice(6, 8)]


@pytest.mark.skipif(backend.ON_TENSORFLOW, reason="keras.distribution is for JAX")
def test_data_parallel_on_jax_equals_one_device():
    x = RNG.normal(size=(19, 1)).astype("float32")
    y = np.sin(3 * x[:, 0])

    def trained():
        model = linear(None, lambda: keras.optimizers.SGD(0.1))
        model.fit(data.Batches(x, y, batch_size=8, seed=4), epochs=3, verbose=0)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    alone = trained()
    devices = keras.distribution.list_devices()
    assert len(devices) == 2
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    try:
        np.testing.assert_allclose(trained(), alone, atol=2e-6)
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.parametrize("streams", [False, True])
def test_lists_of_arrays_for_a_model_of_several_inputs_and_outputs(streams):
    ends = []
    x, y = numbers(12)
    for kind in (list, tuple):
        inputs = [keras.Input((1,)), keras.Input((1,))]
        layers = [keras.layers.Dense(1, kernel_initializer="ones") for _ in inputs]
        model = keras.Model(inputs, [layer(one) for layer, one in zip(layers, inputs, strict=True)])
        model.compile(keras.optimizers.SGD(1e-3), ["mse", "mae"])
        given, targets = kind([x, 2 * x]), kind([3 * y, -y])
        if streams:
            rows = [tuple(kind(one[i : i + 4] for one in part) for part in (given, targets)) for i in (0, 4, 8)]
            batches = data.StreamBatches(lambda epoch, rows=rows: iter(rows))
        else:
            batches = data.Batches(given, targets, batch_size=4, seed=3)
        model.fit(batches, epochs=2, verbose=0)
        ends.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_array_equal(*ends)
    assert np.abs(ends[0] - [1, 0, 1, 0]).min() > 1e-3
