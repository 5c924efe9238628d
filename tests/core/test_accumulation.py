"""Accumulation: what a window adds up, when replicas meet, how micro-batches weigh, and windows that change."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision
from keras_trainkit.callbacks import AccumulationSchedule, FlushAccumulation
from keras_trainkit.core import backend
from keras_trainkit.testing.contracts import assert_close, fit, small_model
from keras_trainkit.testing.problems import Stepper

RNG = np.random.default_rng(4)


def number(variable):
    return float(ops.convert_to_numpy(variable))


def test_samples_weigh_micro_batches():
    gradients, samples = [1.0, 4.0, -2.0, 8.0], [3.0, 1.0, 4.0, 2.0]
    step = Stepper(optimizers.SGD(1.0, gradient_accumulation_steps=4), [np.zeros(1)], dtype="float32")
    for gradient, count in zip(gradients, samples, strict=True):
        step.optimizer.apply([ops.full((1,), gradient)], step.variables, samples=count)
    assert step.parameters()[0][0] == pytest.approx(-np.average(gradients, weights=samples), abs=1e-6)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow has graphs that are not compiled")
@pytest.mark.parametrize("make", [optimizers.Adam, optimizers.SOAP, optimizers.Shampoo, optimizers.Kron])
def test_steps_that_are_not_compiled_do_the_same(make):
    """On JAX they decide what is conditional by themselves."""
    ends = []
    for compiled in (True, False):
        model = small_model(make(0.01, gradient_accumulation_steps=3, global_clipnorm=0.1))
        model.compile(model.optimizer, "mse", jit_compile=compiled)
        fit(model, epochs=4)
        ends.append(model.get_weights())
    assert_close(*ends, 5e-5)  # one step is 0.01 long


def test_a_window_may_grow_and_shrink_between_steps():
    step = Stepper(optimizers.SGD(1.0, gradient_accumulation_steps=3), [np.zeros(1)], dtype="float32")
    ends = []
    for count, gradient in enumerate(range(1, 13)):
        if count in (3, 5, 10):
            step.optimizer.gradient_accumulation_steps = {3: 1, 5: 4, 10: 2}[count]
        before = number(step.optimizer.iterations)
        step([np.array([float(gradient)])])
        if number(step.optimizer.iterations) > before:
            ends.append(gradient)
    # Windows 1..3, 4, 5, 6..9, then one that had begun when its length became 2: 10 and 11.
    assert ends == [3, 4, 5, 9, 11]
    assert step.parameters()[0][0] == pytest.approx(-(2 + 4 + 5 + 7.5 + 10.5))


def test_without_memory_for_sums_a_window_cannot_grow():
    optimizer = Stepper(optimizers.SGD(1.0), [np.zeros(1)]).optimizer
    optimizer.gradient_accumulation_steps = 1
    with pytest.raises(ValueError, match="at least 2 when the optimizer was built.*Received: .*=4"):
        optimizer.gradient_accumulation_steps = 4
    with pytest.raises(ValueError, match="must be an integer at least 1"):
        Stepper(
            optimizers.SGD(1.0, gradient_accumulation_steps=2), [np.zeros(1)]
        ).optimizer.gradient_accumulation_steps = 0


@pytest.mark.tensorflow  # on JAX Keras wants an optimizer to be built for exactly what trains
def test_what_is_frozen_between_fits_stays():
    """Momentum and decay would move it: the window must not take it for one of those that train."""
    optimizer = optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1, gradient_accumulation_steps=3)
    model = small_model(optimizer)
    fit(model, epochs=1)  # four batches: ends in the middle of a window
    hidden, head = model.layers
    hidden.trainable = False
    model.compile(optimizer, "mse", jit_compile=False)
    frozen, free = [[ops.convert_to_numpy(v) for v in layer.weights] for layer in (hidden, head)]
    fit(model, epochs=2)
    for before, after in zip(frozen, hidden.weights, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(after))
    assert np.abs(free[0] - ops.convert_to_numpy(head.weights[0])).max() > 1e-3


def test_variables_without_a_gradient_in_the_window_stay():
    first, second = keras.Variable(np.zeros(1, "float32")), keras.Variable(np.ones(1, "float32"))
    optimizer = optimizers.SGD(1.0, momentum=0.9, weight_decay=0.1, gradient_accumulation_steps=2)
    optimizer.build([first, second])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        for _ in range(3):
            optimizer.apply([ops.ones(1), None], [first, second])
        optimizer.flush()
    assert number(first[0]) < -1 and number(second[0]) == 1


def test_a_variable_that_had_one_gradient_in_the_window_moves():
    first, second = keras.Variable(np.zeros(1, "float32")), keras.Variable(np.zeros(1, "float32"))
    optimizer = optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.build([first, second])
    optimizer.apply([ops.ones(1), ops.ones(1)], [first, second])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([ops.ones(1), None], [first, second])
    assert (number(first[0]), number(second[0])) == (-1.0, -0.5)


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [False, True])
def test_a_schedule_of_window_lengths_needs_no_second_trace(scaled):
    traces = []

    class Counting(optimizers.SGD):
        def apply_reduced(self, *arguments):
            traces.append(1)
            super().apply_reduced(*arguments)

    inner = Counting(0.1, gradient_accumulation_steps=2)
    model = small_model(precision.LossScaleOptimizer(inner, initial_scale=1.0) if scaled else inner)
    updates = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: updates.append(number(inner.iterations)))
    # 64 samples in batches of 8.
    model.fit(RNG.normal(size=(64, 5)), RNG.normal(size=(64, 3)), batch_size=8, epochs=4, verbose=0,
              callbacks=[AccumulationSchedule({1: 1, 2: 3}), FlushAccumulation(), look])  # fmt: skip
    assert np.diff([0, *updates]).tolist() == [4, 8, 3, 3]
    assert inner.gradient_accumulation_steps == 3
    if keras.backend.backend() == "tensorflow":  # without XLA, JAX does not trace at all
        assert len(traces) <= 2  # the step's, and one more where Keras builds the model by tracing


def test_schedule_of_lengths_survives_json_and_checks_its_arguments():
    schedule = AccumulationSchedule({5: 4, 0: 2})
    assert AccumulationSchedule(**{"steps": {"0": 2, "5": 4}}).get_config() == schedule.get_config()
    assert list(schedule.steps) == [0, 5]
    with pytest.raises(ValueError, match="an epoch.* must be an integer at least 0"):
        AccumulationSchedule({-1: 2})
    with pytest.raises(ValueError, match=r"steps\[3\]` must be an integer at least 1. Received: .*=0"):
        AccumulationSchedule({3: 0})
    with pytest.raises(ValueError, match="made with `gradient_accumulation_steps` of 2 or more"):
        small_model(optimizers.SGD(0.1)).fit(
            np.zeros((4, 5)), np.zeros((4, 3)), verbose=0, callbacks=[AccumulationSchedule({0: 2})]
        )
    with pytest.raises(TypeError, match="needs an optimizer of keras_trainkit"):
        small_model("sgd").fit(np.zeros((4, 5)), np.zeros((4, 3)), verbose=0, callbacks=[AccumulationSchedule({0: 2})])


@pytest.mark.tensorflow
def test_replicas_meet_once_in_a_window(two_replicas, monkeypatch):
    """Elements that are reduced over the replicas, by step: gradients at the window's end alone."""
    elements = []
    reduce_all = backend.all_reduce_sum

    def counting(tensors):
        elements.append(sum(int(np.prod(t.shape)) for t in tensors))
        return reduce_all(tensors)

    monkeypatch.setattr(backend, "all_reduce_sum", counting)
    variables_of = 5 * 8 + 8 + 8 * 3 + 3
    with two_replicas.scope():
        model = small_model(precision.LossScaleOptimizer(optimizers.SGD(0.1, gradient_accumulation_steps=3)))
    model.compile(model.optimizer, "mse", run_eagerly=True)
    by_step = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            by_step.append(sorted(elements))
            elements.clear()

    model.fit(RNG.normal(size=(48, 5)), RNG.normal(size=(48, 3)), batch_size=8, verbose=0, callbacks=[Look()])
    flags = [1, 1]  # whether the gradients are finite, from each of the two
    end = [variables_of + 1] * 2  # and the window's weight
    assert by_step == [flags, flags, flags + end] * 2


@pytest.mark.tensorflow
@pytest.mark.parametrize("steps", [3, 8])
def test_micro_batches_on_two_replicas_equal_the_big_batch_on_one_device(two_replicas, steps):
    """With clipping, a schedule and an average: 12 updates of 48 samples, cut into `steps` and halved."""
    x, y = RNG.normal(size=(144, 5)), RNG.normal(size=(144, 3))

    def trained(k):
        schedule = keras.optimizers.schedules.PolynomialDecay(0.05, 12, 0.01)
        # A bound on the norm that is always reached would hide a factor.
        options = {"clipvalue": 0.15, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.8}
        model = small_model(optimizers.SGD(schedule, momentum=0.9, gradient_accumulation_steps=k, **options))
        model.fit(x, y, batch_size=48 // k, epochs=4, shuffle=False, verbose=0)
        assert number(model.optimizer.iterations) == 12
        return model.get_weights()

    alone, start = trained(1), small_model("sgd").get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(alone, start, strict=True)) > 0.01
    with two_replicas.scope():
        together = trained(steps)
    assert_close(together, alone, 1e-6)


@pytest.mark.tensorflow
def test_a_window_saved_on_two_replicas_goes_on_on_one(two_replicas, tmp_path):
    """A window that is part full means the same on any number of replicas, in shares and in samples."""

    def make():
        return small_model(optimizers.SGD(0.5, momentum=0.9, gradient_accumulation_steps=5, last_window="carry"))

    with two_replicas.scope():
        spread = make()
    alone = make()
    spread.set_weights(alone.get_weights())
    fit(alone, epochs=2)
    fit(spread, epochs=2)
    for model, name in ((alone, "alone"), (spread, "spread")):
        model.save(tmp_path / f"{name}.keras")
    with two_replicas.scope():
        back = keras.models.load_model(tmp_path / "alone.keras")
    forth = keras.models.load_model(tmp_path / "spread.keras")
    for model in (alone, back, forth):
        assert number(model.optimizer._window.weight) == pytest.approx(3)
        fit(model, epochs=3)
    assert_close(back.get_weights(), alone.get_weights(), 2e-6)
    assert_close(forth.get_weights(), alone.get_weights(), 2e-6)
