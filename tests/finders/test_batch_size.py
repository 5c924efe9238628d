"""The largest batch: against the limit that a layer sets, and against memory itself."""

import multiprocessing
import os
import time

import keras
import numpy as np
import pytest

from keras_trainkit import finders, optimizers, precision, training
from keras_trainkit.finders.batch_size_report import BatchSize, Trial, byte_count, divided, near

X, Y = np.ones((3, 4), "float32"), np.ones((3, 1), "float32")
tensorflow = pytest.mark.tensorflow


def plain_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizers.Adam(1e-2), "mse")
    return model


def limited_model(optimizer=None):
    from limited_memory import LimitedMemory

    layers = [keras.Input((4,)), keras.layers.Dense(2), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([*layers, LimitedMemory(), keras.layers.Dense(1)])
    model.compile(optimizer or optimizers.Adam(1e-2), "mse", metrics=["mae"], jit_compile=False)
    return model


# ------------------------------------------------------------------------------------------------- in this process


@tensorflow
@pytest.mark.parametrize("room", [1, 5, 8, 13, 100, 1000])
def test_it_finds_the_size_that_the_device_takes(room):
    from limited_memory import memory_for

    with memory_for(room):
        found = finders.batch_size(limited_model(), X, Y, memory="device", largest=200, precision=1e-9)
    assert found.largest == found.batch_size == min(room, 200)
    assert all(trial.fits == (trial.size <= room) for trial in found.trials)
    assert len(found.trials) <= 12


@tensorflow
@pytest.mark.parametrize("room", [37, 61, 120])
def test_the_answer_is_as_near_as_was_asked(room):
    from limited_memory import memory_for

    with memory_for(room):
        found = finders.batch_size(limited_model(), X, Y, memory="device", precision=0.25)
    failed = min(trial.size for trial in found.trials if not trial.fits)
    assert found.largest <= room < failed
    assert failed - found.largest <= 0.25 * failed


@tensorflow
@pytest.mark.parametrize(("room", "batch", "steps"), [(64, 48, 2), (24, 24, 4), (23, 16, 6), (7, 6, 16), (500, 96, 1)])
def test_the_effective_batch_stays(room, batch, steps):
    from limited_memory import memory_for

    with memory_for(room):
        found = finders.batch_size(limited_model(), X, Y, memory="device", effective=96, precision=1e-9)
    assert (found.batch_size, found.gradient_accumulation_steps) == (batch, steps)
    assert found.effective == 96
    assert str(found).splitlines()[-1].endswith("96 samples an update")


@tensorflow
@pytest.mark.parametrize("wrap", [lambda o: o, precision.LossScaleOptimizer])
def test_the_model_is_afterwards_what_it_was(wrap):
    from limited_memory import memory_for

    model = limited_model(wrap(optimizers.Adam(1e-2)))
    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=8, verbose=0)
    optimizer, metrics = model.optimizer, [m.name for m in model.metrics]
    before = [np.array(v) for v in [*model.variables, *optimizer.variables]]
    with memory_for(20):
        finders.batch_size(model, x, x[:, :1], memory="device", effective=40)
    assert model.optimizer is optimizer
    assert [m.name for m in model.metrics] == metrics
    metric_variables = {id(v) for v in model.metrics_variables}
    for value, variable in zip(before, [*model.variables, *optimizer.variables], strict=True):
        if id(variable) not in metric_variables:
            np.testing.assert_array_equal(np.array(variable), value)
    model.fit(x, x[:, :1], batch_size=8, verbose=0)
    assert int(optimizer.iterations) == 6


@tensorflow
def test_what_it_finds_trains():
    from limited_memory import memory_for

    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    with memory_for(13):
        found = finders.batch_size(limited_model(), x, x[:, :1], memory="device", effective=30)
        model = training.micro_batches(limited_model(), found.largest)
        model.fit(x, x[:, :1], batch_size=30, verbose=0)
        assert training.micro_batch_size(model) == found.largest
        steps = found.gradient_accumulation_steps
        model = limited_model(optimizers.Adam(1e-2, gradient_accumulation_steps=steps))
        model.fit(x, x[:, :1], batch_size=found.batch_size, verbose=0)
    assert int(model.optimizer.iterations) == 2


@tensorflow
def test_not_even_one_sample():
    from limited_memory import memory_for

    with memory_for(0), pytest.raises(ValueError, match="Not even one sample fits.*out of memory"):
        finders.batch_size(limited_model(), X, Y, memory="device")


def test_it_runs_on_every_backend():
    model = plain_model()
    weights = model.get_weights()
    found = finders.batch_size(model, X, Y, memory="device", effective=64, replicas=2, largest=100)
    assert (found.largest, found.batch_size, found.gradient_accumulation_steps) == (32, 64, 1)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@tensorflow
@pytest.mark.parametrize("room", [16, 1000])
def test_more_than_is_tried_at_once_is_summed(room):
    """The memory that the sums take counts, though the batch was never tried whole."""
    from limited_memory import memory_for

    model = limited_model()
    with memory_for(room):
        found = finders.batch_size(model, X, Y, memory="device", effective=96, largest=24, precision=1e-9)
    assert (found.batch_size, found.gradient_accumulation_steps) == ((16, 6) if room == 16 else (24, 4))
    assert max(trial.size for trial in found.trials) == 24


# ----------------------------------------------------------------------------------------------- by the noise scale


def constant_model():
    """One weight, at 0: the gradient of a sample is -2 y."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(optimizers.SGD(0.1), "mse")
    return model


@tensorflow
def test_the_noise_sets_the_batch_and_memory_its_parts():
    ones, y = np.ones((4000, 1), "float32"), np.random.default_rng(0).normal(1.0, 6.0, size=(4000, 1))
    model = constant_model()
    found = finders.batch_size(model, ones, y, memory="device", by="noise_scale", largest=16)
    assert abs(found.noise.noise_scale - y.var() / y.mean() ** 2) < 4 * found.noise.standard_error  # 36, about
    assert found.effective == near(found.noise.critical_batch_size, 1, 4000) > 16
    assert (found.largest, found.batch_size) == (16, 16)
    assert found.gradient_accumulation_steps == found.effective // 16
    assert "noise scale: " in str(found) and model.get_weights()[0] == 0
    two = finders.batch_size(model, ones, y, memory="device", by=found.noise, largest=4096, replicas=2)
    assert two.noise is found.noise and two.effective == near(found.noise.critical_batch_size, 2, 4000)
    assert (two.gradient_accumulation_steps, two.largest) == (1, two.effective // 2)


def measured(scale):
    return finders.NoiseScale(scale, 1.0, 1.0, scale, 4, 32, np.ones((3, 2)))


@pytest.mark.parametrize(
    ("scale", "samples", "batch"), [(3.1, 400, 4), (0.0, 400, 1), (90.0, 400, 64), (1e9, 400, 256)]
)
def test_the_nearest_power_of_two_of_at_most_all_samples(scale, samples, batch):
    found = finders.batch_size(
        plain_model(), np.ones((samples, 4)), np.ones((samples, 1)), memory="device", by=measured(scale)
    )
    assert found.effective == found.largest == batch


def test_noise_that_cannot_set_it():
    with pytest.raises(ValueError, match="too large to tell: give `by`.*of more measurements"):
        finders.batch_size(plain_model(), X, Y, memory="device", by=measured(np.inf))
    with pytest.raises(ValueError, match="`effective` must be None where the noise scale.*Received: effective=8"):
        finders.batch_size(plain_model(), X, Y, memory="device", by="noise_scale", effective=8)
    with pytest.raises(ValueError, match="`by` must be one of"):
        finders.batch_size(plain_model(), X, Y, memory="device", by="noise")


# ------------------------------------------------------------------------------------------- in a process of its own


def hungry_model():
    """Each sample needs 12 tensors of 4096 numbers: 192 KiB, and as much again for their gradients at most."""
    scale = keras.layers.EinsumDense("ab,b->ab", output_shape=4096)
    inner = [keras.layers.Activation("tanh") for _ in range(12)]
    model = keras.Sequential([keras.Input((4096,)), scale, *inner, keras.layers.Dense(1)])
    model.compile(optimizers.Adam(1e-2), "mse", jit_compile=False)
    return model


def broken_model():
    raise OSError("the disk with the weights is away")


def slow_model():
    time.sleep(60)


def crashing_model():
    os._exit(7)


@pytest.fixture
def no_children_left():
    yield
    assert not multiprocessing.active_children()


@tensorflow
@pytest.mark.slow
def test_a_limit_on_memory(no_children_left):
    x, y = np.ones((2, 4096), "float32"), np.ones((2, 1), "float32")
    limit = 900 * 2**20
    found = finders.batch_size(hungry_model(), x, y, memory=limit, precision=1 / 8)
    assert found.memory == limit
    fitting = [t for t in found.trials if t.fits]
    assert max(t.size for t in fitting) == found.largest
    assert all(found.idle < t.peak <= limit for t in fitting)
    failed = [t for t in found.trials if not t.fits]
    assert min(t.size for t in failed) > found.largest
    assert all(t.peak > limit for t in failed)
    # Between 192 and 400 KiB a sample, and what TensorFlow keeps for itself.
    assert (limit - found.idle) / (500 * 2**10) < found.largest < (limit - found.idle) / (190 * 2**10)
    assert "over the limit" in str(found)


@tensorflow
@pytest.mark.slow
def test_functions_that_make_the_model_and_an_effective_batch(no_children_left):
    x, y = np.ones((2, 4096), "float32"), np.ones((2, 1), "float32")
    found = finders.batch_size(hungry_model, x, y, memory="900MiB", effective=8192, precision=1 / 4)
    assert found.effective == 8192
    assert found.gradient_accumulation_steps > 1
    assert found.batch_size <= found.largest
    assert next(t.size for t in found.trials if not t.fits) == 8192


@pytest.mark.slow
def test_what_goes_wrong_in_the_process_is_told(no_children_left):
    with pytest.raises(RuntimeError, match="the disk with the weights is away"):
        finders.batch_size(broken_model, X, Y, memory="8GiB")
    with pytest.raises(ValueError, match=r"`memory` must be more than the model needs.*exit code 7"):
        finders.batch_size(crashing_model, X, Y, memory="8GiB")
    with pytest.raises(TimeoutError, match="longer than 1 s"):
        finders.batch_size(slow_model, X, Y, memory="8GiB", timeout=1)
    with pytest.raises(ValueError, match=r"`memory` must be more than the model needs.*over the limit"):
        finders.batch_size(plain_model, X, Y, memory="50MiB")


# ------------------------------------------------------------------------------------------------- words and numbers


def test_a_report_names_every_trial():
    found = BatchSize(
        48, 48, 2, 1, 2**30, 2**28, [Trial(96, False, 2**30 + 2**20, "over the limit"), Trial(48, True, 2**29)]
    )
    assert str(found).splitlines() == [
        "samples on a device  memory at most  fits",
        "48                   512 MiB         yes",
        "96                   1,025 MiB       no: over the limit",
        "limit: 1,024 MiB, 256 MiB before the first batch",
        "largest on one device: 48",
        "batch_size=48, gradient_accumulation_steps=2 on 1 replica: 96 samples an update",
    ]


@pytest.mark.parametrize(
    ("text", "count"), [("4GiB", 4 * 2**30), ("1.5 kB", 1500), ("7", 7), (7, 7), ("2TB", 2 * 10**12), ("64B", 64)]
)
def test_bytes(text, count):
    assert byte_count("memory", text) == count


@pytest.mark.parametrize(("memory", "error"), [("4 giraffes", ValueError), (0, ValueError), (None, TypeError)])
def test_what_are_no_bytes(memory, error):
    with pytest.raises(error, match=r"`memory` must be a number of bytes above 0, or a text .*Received: memory="):
        finders.batch_size(plain_model(), X, Y, memory=memory)


@pytest.mark.parametrize("effective", [1, 7, 96, 1021, 1024])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("largest", [1, 5, 64, 4096])
def test_division_is_even_and_fits(effective, replicas, largest):
    effective *= replicas
    size, steps = divided(effective, replicas, largest)
    assert size * steps == effective
    assert size % replicas == 0
    assert size // replicas <= largest
    fewer = [k for k in range(1, steps) if effective % (k * replicas) == 0 and effective // (k * replicas) <= largest]
    assert not fewer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effective": 0}, "`effective` must be an integer at least 1. Received: effective=0"),
        ({"effective": 9, "replicas": 2}, "`effective` must be a multiple of the 2 replicas. Received: effective=9"),
        ({"replicas": 0}, "`replicas` must be an integer at least 1"),
        ({"largest": 0}, "`largest` must be an integer at least 1"),
        ({"precision": 0.0}, "`precision` must be a number above 0 and below 1"),
        ({"steps": 0}, "`steps` must be an integer at least 1"),
        ({"timeout": 0}, "`timeout` must be a number above 0"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        finders.batch_size(plain_model(), X, Y, **{"memory": "device", **options})


@tensorflow
def test_models_of_several_replicas_are_not_tried_here(two_replicas):
    with two_replicas.scope():
        model = plain_model()
    with pytest.raises(ValueError, match="`model` must be made outside of a strategy.*a model of 2 replicas"):
        finders.batch_size(model, X, Y, memory="device")


def test_models_that_are_none():
    with pytest.raises(TypeError, match="`model` must be a compiled Keras model, or a function"):
        finders.batch_size("model", X, Y, memory="1GiB")
    with pytest.raises(TypeError, match="`model` must be a compiled Keras model. Received"):
        finders.batch_size(plain_model, X, Y, memory="device")
    with pytest.raises(ValueError, match="`model` must be compiled"):
        finders.batch_size(keras.Sequential([keras.Input((4,))]), X, Y, memory="device")
