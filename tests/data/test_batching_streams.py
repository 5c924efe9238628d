"""`data.StreamBatches`: generators and `tf.data` of which no batch is lost, and none comes twice."""

import contextlib
import json

import keras
import numpy as np
import pytest

from keras_trainkit import data
from keras_trainkit.core import backend

RNG = np.random.default_rng(43)


def adder(strategy=None):
    """A model whose weight is the sum of minus the targets' means: which batches were trained on can be read off."""
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
        model.compile(keras.optimizers.SGD(1.0), lambda y, p: -y * p, jit_compile=False)
    return model


def powers(count=10, rows=4):
    """Batches of which each is another bit of the sum."""
    for number in range(count):
        yield np.ones((rows, 1), "float32"), np.full((rows, 1), 2.0**number, "float32")


def trained(model):
    return model.get_weights()[0].item()


@pytest.mark.shows(
    "data",
    "a generator of 10 batches, two replicas",
    keras="batches read ahead are lost",
    kit="`StreamBatches` trains on all 10, each once",
)
@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_generator_loses_batches_under_a_strategy_and_here_none(two_replicas):
    theirs = adder(two_replicas)
    theirs.fit(powers(), epochs=1, verbose=0)
    assert trained(theirs) < 1023
    for source in (powers(), lambda epoch: powers()):
        ours = adder(two_replicas)
        ours.fit(data.StreamBatches(source), verbose=0)
        assert trained(ours) == 1023


@pytest.mark.filterwarnings("error:Your input ran out of data")
def test_each_epoch_calls_the_function_and_ends_with_it():
    called = []

    def read(epoch):
        called.append(epoch)
        return powers(3 + epoch)

    model, batches = adder(), data.StreamBatches(read)
    steps = []
    model.fit(
        batches,
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))],
    )
    assert trained(model) == 7 + 15 + 31
    assert sorted(set(called)) == [0, 1, 2] and len(steps) == 3 + 4 + 5
    assert batches.state()["epoch"] == 3 and batches.state()["step"] == 12


def test_steps_per_epoch_cuts_a_generator_without_a_loss():
    model, batches = adder(), data.StreamBatches(powers())
    model.fit(batches, epochs=2, steps_per_epoch=3, verbose=0)
    assert trained(model) == 2**6 - 1
    model.fit(batches, epochs=1, steps_per_epoch=4, verbose=0)
    assert trained(model) == 2**10 - 1
    with pytest.raises(ValueError, match="at its end"):
        for _ in range(2):
            model.fit(batches, verbose=0)


@pytest.mark.filterwarnings("error:Your input ran out of data")
def test_validation_on_a_stream_takes_all_of_it_each_time():
    model, seen = adder(), data.StreamBatches(lambda epoch: powers(), batch_size=5)
    history = model.fit(data.StreamBatches(lambda epoch: powers()), epochs=2, verbose=0, validation_data=seen).history
    weight = trained(model)
    assert weight == 2 * 1023
    assert history["val_loss"][-1] == pytest.approx(-weight * 1023 / 10)
    assert seen.state()["step"] == 0


def test_a_stream_is_gone_on_with_from_a_saved_position():
    batches = data.StreamBatches(lambda epoch: powers(), batch_size=5)
    taken = iter(batches)
    sums = [next(taken)[1].sum() for _ in range(3)]
    other = data.StreamBatches(lambda epoch: powers(), batch_size=5)
    other.restore(batches.state())
    sums += [y.sum() for _, y in other]
    assert len(sums) == 8 and sum(sums) == 4 * 1023


@pytest.mark.tensorflow
def test_a_shuffled_dataset_is_gone_on_with_in_the_middle_of_an_epoch(two_replicas):
    """What `fit` was stopped in goes on on two replicas: each example of each epoch is trained on once."""
    import tensorflow as tf

    def shuffled():
        examples = tf.data.Dataset.from_tensor_slices((np.ones((16, 1), "float32"), 2.0 ** np.arange(16)[:, None]))
        return data.StreamBatches(examples, batch_size=2, window=16, seed=1)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = first.state()["step"] == 11  # the third batch of the second epoch

    model, first = adder(), shuffled()
    model.fit(first, epochs=3, verbose=0, callbacks=[Stop()])
    state = json.loads(json.dumps(first.state()))
    assert (state["epoch"], state["step"]) == (1, 11)
    again, second = adder(two_replicas), shuffled()
    second.restore(state)
    again.fit(second, verbose=0)
    assert trained(model) + trained(again) == 2 * (2**16 - 1) / 2  # each batch adds the mean of two
    assert second.state()["epoch"] == 2 and second.state()["step"] == 16


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_batches_are_cut_anew(remainder):
    sizes = data.RandomSize([2, 3])
    found = [len(x) for x, _ in data.StreamBatches(powers(5, 5), batch_size=3, remainder=remainder)]
    assert found == [3] * 8 + ([1] if remainder == "pad" else [])
    parts = list(data.StreamBatches(lambda epoch: powers(5, 5), batch_size=sizes, remainder=remainder, seed=1))
    drawn = sizes.at(np.arange(len(parts)), 1)
    assert [len(part[0]) for part in parts[:-1]] == drawn[:-1].tolist()


@pytest.mark.tensorflow
def test_examples_of_tf_data_are_shuffled_by_seed_and_epoch(two_replicas):
    import tensorflow as tf

    examples = tf.data.Dataset.from_tensor_slices({"a": np.arange(20), "text": [str(i) for i in range(20)]})
    passes = []
    batches = data.StreamBatches(examples, batch_size=6, window=10, seed=1)
    for _ in range(2):
        passes.append(np.concatenate([batch["a"] for batch in batches]).tolist())
    again = data.StreamBatches(examples, batch_size=6, window=10, seed=1)
    assert [np.concatenate([batch["a"] for batch in again]).tolist() for _ in range(2)] == passes
    assert passes[0] != passes[1]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert sorted(passes[0][:10]) == list(range(10))
    pairs = tf.data.Dataset.from_tensor_slices((np.ones((9, 1), "float32"), 2.0 ** np.arange(9)[:, None]))
    for strategy in (None, two_replicas):
        model = adder(strategy)
        model.fit(data.StreamBatches(pairs, batch_size=2), verbose=0)
        assert trained(model) == (2**8 - 1) / 2 + 2**8  # means of pairs, and the one that is left


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="`source` must be a function"):
        data.StreamBatches(3)
    with pytest.raises(ValueError, match="`window` can shuffle"):
        data.StreamBatches(powers(), window=5)
    if backend.ON_TENSORFLOW:
        import tensorflow as tf

        with pytest.raises(ValueError, match="`batch_size` must be given"):
            data.StreamBatches(tf.data.Dataset.range(3))
