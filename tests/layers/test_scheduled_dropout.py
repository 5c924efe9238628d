"""Rates that layers follow by themselves, or a callback has them follow."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import callbacks, layers, optimizers, schedules
from keras_trainkit.layers import CurriculumRate, ScheduledDropout

RNG = np.random.default_rng(24)
STEPS = schedules.Piecewise([2, 4], [0.6, 0.0, 0.25])


def shares(layer, calls, x=None):
    """The share of zeros in each of so many calls in training."""
    x = np.ones((100, 100), "float32") if x is None else x
    return [float(np.mean(np.array(layer(x, training=True)) == 0)) for _ in range(calls)]


def close(found, rates, draws=10_000):
    for share, rate in zip(found, rates, strict=True):
        assert share == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / draws) + 1e-9)


def test_the_rate_is_that_of_the_call():
    layer = ScheduledDropout(STEPS, seed=1)
    close(shares(layer, 6), [0.6, 0.6, 0.0, 0.0, 0.25, 0.25])
    assert int(layer.step) == 6
    layer(np.ones((2, 2)))
    assert int(layer.step) == 6  # inference does not count
    out = np.array(layer(np.ones((100, 100), "float32"), training=True))
    np.testing.assert_allclose(out[out > 0], 1 / 0.75, rtol=1e-6)


def test_with_a_number_it_is_dropout():
    x = RNG.normal(size=(1, 8)).astype("float32")
    layer = ScheduledDropout(0.25, seed=3)
    out = np.array(layer(np.repeat(x, 40_000, axis=0), training=True))
    # An element's deviation is |x| sqrt(rate / keep) = 0.577 |x|; five standard errors.
    np.testing.assert_array_less(np.abs(out.mean(0) - x[0]), 5 * 0.5774 * np.abs(x[0]) / 200 + 1e-7)
    assert layer.step is None and not layer.weights


def test_a_noise_shape_drops_together():
    out = np.array(ScheduledDropout(0.5, (None, 1, None), seed=1)(np.ones((50, 4, 30), "float32"), training=True))
    np.testing.assert_array_equal(out, np.repeat(out[:, :1], 4, axis=1))
    close([np.mean(out[:, 0] == 0)], [0.5], 1500)


@pytest.mark.parametrize("make", [
    lambda rate: layers.StochasticDepth(rate, seed=1),
    lambda rate: layers.DropBlock1D(rate, 1, seed=1),
    lambda rate: layers.DropConnect(keras.layers.EinsumDense("abc,cd->abc", (1, 100)), rate, seed=1),
], ids=["depth", "block", "connect"])  # fmt: skip
def test_other_layers_follow_schedules_too(make):
    layer = make(schedules.Piecewise([1, 2], [0.5, 1.0, 0.0]))
    x = np.ones((2000, 5, 1), "float32")
    if isinstance(layer, layers.DropConnect):
        layer = layers.DropConnect(keras.layers.Dense(5, kernel_initializer="ones", use_bias=False), layer.rate, seed=1)
        x = x[:, :1]
    first, second, third = shares(layer, 3, x)
    close([first], [0.5], 2000)
    assert (second, third) == (1.0, 0.0)


def test_what_a_schedule_says_is_cut_to_rates():
    layer = ScheduledDropout(schedules.Constant(3.0))
    assert shares(layer, 1) == [1.0]


def test_keras_s_schedules_serve():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.6, 0.25])
    layer = keras.layers.deserialize(keras.layers.serialize(ScheduledDropout(rate, seed=1)))
    close(shares(layer, 2), [0.6, 0.25])


# -- in models


def model_with(layer, optimizer="sgd", **options):
    model = keras.Sequential([keras.Input((100,)), layer, keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **options)
    return model


def fit(model, *more, epochs=2, x=None, **options):
    x = np.ones((24, 100), "float32")
    model.fit(x, x[:, :1], batch_size=8, epochs=epochs, verbose=0, callbacks=list(more), **options)


@pytest.mark.parametrize("compiled", [False, True])
def test_fit_counts_batches_and_a_file_goes_on_from_there(compiled, tmp_path):
    model = model_with(ScheduledDropout(schedules.Linear(0.9, 12, 0.0), seed=1), jit_compile=compiled)
    fit(model, validation_data=(np.ones((8, 100)), np.ones((8, 1))))
    layer = model.layers[0]
    assert int(layer.step) == 6
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[0]
    assert int(loaded.step) == 6
    close(shares(loaded, 1), [0.45])


@pytest.mark.tensorflow
def test_replicas_count_steps_not_replicas(two_replicas):
    with two_replicas.scope():
        model = model_with(ScheduledDropout(schedules.Linear(0.9, 12, 0.0), seed=1))
    fit(model)
    step = model.layers[0].step
    assert int(ops.convert_to_numpy(step)) == 6
    counts = two_replicas.experimental_local_results(two_replicas.run(lambda: step.value + 0))
    assert [int(count) for count in counts] == [6, 6]


def test_lengths_are_resolved_when_fit_starts():
    early = ScheduledDropout(schedules.Linear(0.5, "0.5run", 0.0))
    late = layers.StochasticDepth(schedules.Sequence([0.0, 0.1], ["1ep"]))
    with pytest.raises(ValueError, match=r"put `callbacks.ResolveSpans\(\)` into the callbacks of `fit`"):
        early(np.ones((2, 100)), training=True)
    model = keras.Sequential([keras.Input((100,)), early, late, keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.1, gradient_accumulation_steps=3), "mse")
    fit(model, callbacks.ResolveSpans(), epochs=4)
    # 3 batches in an epoch: the layers count batches, while the optimizer counts updates.
    assert early.rate.decay_steps == 6 and late.rate.lengths == [3]
    assert keras.layers.deserialize(keras.layers.serialize(early)).rate == early.rate


@pytest.mark.tensorflow
def test_a_callback_takes_precedence_and_names_layers():
    inputs = keras.Input((100,))
    x = ScheduledDropout(STEPS, name="own")(inputs)
    x = layers.StochasticDepth(0.0, name="branch_1")(x)
    x = layers.StochasticDepth(0.3, name="branch_2")(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(optimizers.SGD(0.0), "mse")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([float(model.get_layer(n).next_rate()) for n in ("own", "branch_1", "branch_2")])

    follow = callbacks.HyperparameterSchedule(dropout={"own": schedules.Linear(0.0, 10, 1.0), "_1": 0.5})
    fit(model, follow, Look(), epochs=1)
    np.testing.assert_allclose(seen, [[0.1, 0.5, 0.3], [0.2, 0.5, 0.3], [0.3, 0.5, 0.3]], rtol=1e-5)
    own, branch, _ = (model.get_layer(n) for n in ("own", "branch_1", "branch_2"))
    assert int(own.step) == 6  # also what the callback looked at
    assert branch.next_rate() == 0.0 and float(own.next_rate()) == 0.25
    with pytest.raises(ValueError, match="The model's dropout layers: none"):
        fit(model, callbacks.HyperparameterSchedule(dropout=0.5))  # Keras's layers alone, and there are none


# -- curriculum


def test_the_curriculum_is_the_papers():
    # theta(t) = (1 - p) exp(-gamma t) + p is the probability to keep, with gamma = 10 / T.
    schedule, steps = CurriculumRate(0.4, 500), np.arange(0, 900, 7)
    keep = 0.4 * np.exp(-10 / 500 * steps) + 0.6
    np.testing.assert_allclose(np.array(schedule(steps)), 1 - keep, rtol=1e-6, atol=1e-9)
    assert float(CurriculumRate(0.5, 10_000_000)(1)) == pytest.approx(0.5e-6, rel=1e-5)  # no difference of two ones
    assert CurriculumRate.from_config(schedule.get_config()) == schedule
    assert schedules.resolve(CurriculumRate(0.4, "0.5run"), 10, 6).steps == 30


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ScheduledDropout(1.5), ValueError, "Received: rate=1.5"),
        (lambda: ScheduledDropout(lambda step: 0.1), TypeError, "or a schedule of such numbers. Received: rate="),
        (lambda: ScheduledDropout(0.1, "ab"), TypeError, "Received: noise_shape='ab'"),
        (lambda: ScheduledDropout(0.1, (0, 1)), ValueError, "Received: noise_shape=0"),
        (lambda: ScheduledDropout(0.1, (1, 2))(np.ones(3)), ValueError, "an entry for each axis"),
        (lambda: CurriculumRate(2, 10), ValueError, "Received: rate=2"),
        (lambda: CurriculumRate(0.5, 0), ValueError, "Received: steps=0"),
        (lambda: CurriculumRate(0.5, 10, 0), ValueError, "Received: sharpness=0"),
    ],
)
def test_bad_arguments_fail(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_a_schedule_does_not_stop_the_gradient():
    from keras_trainkit.testing.layer_contracts import gradients

    (found,) = gradients(ScheduledDropout(schedules.Constant(0.5), seed=1), np.ones((4, 6), "float32"))
    expected = np.array(ScheduledDropout(0.5, seed=1)(np.ones((4, 6), "float32"), training=True))
    np.testing.assert_allclose(found, 2 * expected * expected / 24, rtol=1e-5)
    assert ops.any(expected == 0)
