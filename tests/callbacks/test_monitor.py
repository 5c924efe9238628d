"""TrainingMonitor: what it writes, when, and that it is true."""

import copy
import errno
import json
import math
import threading
import time
import warnings

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, optimizers, schedules
from keras_trainkit.monitoring import counting, event_log

TENSORFLOW = pytest.mark.tensorflow


def make_model(optimizer, steps_per_execution=1, **compile_arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"], steps_per_execution=steps_per_execution, **compile_arguments)
    return model


def make_data(rows=64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5)).astype("float32")
    return x, x.sum(axis=1, keepdims=True).astype("float32")


def lines(directory, kind=None):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def fit(model, directory, rows=64, every=2, batch_size=8, monitor=None, **arguments):
    monitor = monitor or callbacks.TrainingMonitor(directory, every=every)
    x, y = make_data(rows)
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[monitor], **arguments)
    return monitor


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by one second each time it is read."""
    now = [0.0]

    def perf_counter():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(counting.time, "perf_counter", perf_counter)


def test_steps_and_epochs_over_two_fits(tmp_path):
    model = make_model(optimizers.Adam(0.01))
    monitor = fit(model, tmp_path, rows=56, every=3, epochs=2, validation_data=make_data(16))
    fit(model, tmp_path, rows=56, monitor=monitor)
    assert [(line["step"], line["epoch"]) for line in lines(tmp_path, "step")] == [
        (3, 1), (6, 1), (9, 2), (12, 2), (15, 3), (18, 3), (21, 3),
    ]  # fmt: skip
    epochs = lines(tmp_path, "epoch")
    assert [(line["step"], line["epoch"]) for line in epochs] == [(7, 1), (14, 2), (21, 3)]
    assert {"loss", "mae", "val_loss", "val_mae", "samples_per_second", "learning_rate"} <= set(epochs[0])
    assert [line["kind"] for line in lines(tmp_path)][:3] == ["step", "step", "epoch"]


def test_initial_epoch_and_a_new_compile_continue_the_axis(tmp_path):
    model = make_model(optimizers.Adam(0.01))
    monitor = fit(model, tmp_path, epochs=2)
    fit(model, tmp_path, monitor=monitor, initial_epoch=2, epochs=3)
    model.compile(optimizers.SGD(0.01), "mse")
    fit(model, tmp_path, monitor=monitor)
    assert [(line["step"], line["epoch"]) for line in lines(tmp_path, "epoch")] == [(8, 1), (16, 2), (24, 3), (32, 4)]
    assert [line["step"] for line in lines(tmp_path, "step")] == list(range(2, 33, 2))


def test_values_equal_a_training_done_by_hand(tmp_path):
    """SGD by NumPy: norms, ratio, rate and loss of each second update."""
    rate = 0.1
    model = make_model(optimizers.SGD(rate))
    first, second = (layer for layer in model.layers)
    weights = [w.astype(np.float64) for w in (*first.get_weights(), *second.get_weights())]
    x, y = make_data(32)
    expected = []
    losses = []
    for step in range(4):
        rows = slice(8 * step, 8 * step + 8)
        w1, b1, w2, b2 = weights
        hidden = np.tanh(x[rows] @ w1 + b1)
        error = hidden @ w2 + b2 - y[rows]
        losses.append((error**2).mean())
        top = 2 * error / error.size
        low = (top @ w2.T) * (1 - hidden**2)
        gradients = [x[rows].T @ low, low.sum(0), hidden.T @ top, top.sum(0)]
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        weight_norm = math.sqrt(sum((w**2).sum() for w in weights))
        weights = [w - rate * g for w, g in zip(weights, gradients, strict=True)]
        expected.append((norm, rate * norm / weight_norm))
    fit(model, tmp_path, rows=32)
    written = lines(tmp_path, "step")
    for line, step in zip(written, (1, 3), strict=True):
        assert line["gradient_norm"] == pytest.approx(expected[step][0], rel=1e-4)
        assert line["update_to_weight_ratio"] == pytest.approx(expected[step][1], rel=1e-4)
        assert line["loss"] == pytest.approx((losses[step - 1] + losses[step]) / 2, rel=1e-4)
        assert line["learning_rate"] == pytest.approx(rate)
        assert line["update_norm"] == pytest.approx(rate * expected[step][0], rel=1e-3)


def test_clipping_is_seen(tmp_path):
    fit(make_model(optimizers.SGD(0.1, global_clipnorm=0.25)), tmp_path)
    line = lines(tmp_path, "step")[0]
    assert line["clipped_gradient_norm"] == pytest.approx(0.25, rel=1e-5) and line["gradient_norm"] > 0.3


def test_schedule(tmp_path):
    fit(make_model(optimizers.SGD(schedules.Warmup(schedules.Constant(0.8), 8))), tmp_path)
    rates = [line["learning_rate"] for line in lines(tmp_path, "step")]
    schedule = schedules.Warmup(schedules.Constant(0.8), 8)
    assert rates == pytest.approx([float(schedule(step)) for step in (2, 4, 6, 8)])
    assert rates[0] < rates[1] < rates[2]


@pytest.mark.parametrize("steps_per_execution", [1, 3, 8])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_axis_counts_updates_whatever_the_executions(tmp_path, steps_per_execution, accumulation):
    optimizer = optimizers.SGD(0.01, gradient_accumulation_steps=accumulation)
    fit(make_model(optimizer, steps_per_execution), tmp_path, rows=96, epochs=2)
    updates = 12 // accumulation
    assert [line["step"] for line in lines(tmp_path, "epoch")] == [updates, 2 * updates]
    steps = [line["step"] for line in lines(tmp_path, "step")]
    if steps_per_execution == 1:
        assert steps == list(range(2, 2 * updates + 1, 2))
    assert steps == sorted(set(steps)) and len(steps) >= 3 - (accumulation == 2) and steps[-1] == 2 * updates


def test_samples_per_second_counts_real_samples(tmp_path, ticking):
    """Each stretch reads the clock twice, so it takes one second: the speed is its number of samples."""
    fit(make_model(optimizers.SGD(0.01)), tmp_path, rows=76, every=4, epochs=2)
    first, second = lines(tmp_path, "epoch")
    # 76 samples are 9 batches of 8 and one of 4. The first batch traces, the last ends after the clock stops.
    assert first["samples_per_second"] * odd_seconds(first, 64) == pytest.approx(64)
    assert second["samples_per_second"] * odd_seconds(second, 72) == pytest.approx(72)
    steps = lines(tmp_path, "step")
    assert steps[0]["samples_per_second"] * odd_seconds(steps[0], 24) == pytest.approx(24)
    assert steps[1]["samples_per_second"] * odd_seconds(steps[1], 32) == pytest.approx(32)


def odd_seconds(line, samples):
    """The whole seconds that the ticking clock gave a stretch of so many samples."""
    seconds = samples / line["samples_per_second"]
    assert seconds == pytest.approx(round(seconds)) and 1 <= round(seconds) <= 40
    return round(seconds)


def test_first_step_and_validation_are_no_training_time(tmp_path, monkeypatch):
    """A clock that stands still but while the first step is traced and while others work at the epoch's end."""
    now = [100.0]
    monkeypatch.setattr(counting.time, "perf_counter", lambda: now[0])

    class Steps(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch > 0:
                now[0] += 1000.0 if batch == 1 and self.params["epochs"] == 1 else 1.0

        def on_epoch_end(self, epoch, logs=None):
            now[0] += 5000.0

    x, y = make_data(64)
    model = make_model(optimizers.SGD(0.01))
    monitor = callbacks.TrainingMonitor(tmp_path, every=4)
    # `Steps` runs first, so that the slow first step lies between the monitor's first and second look.
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Steps(), monitor], epochs=1)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Steps(), monitor], epochs=2)
    assert len(lines(tmp_path)) == 9
    for line in lines(tmp_path):
        assert line["samples_per_second"] == pytest.approx(8.0), line


def test_an_epoch_that_only_traces_has_no_speed(tmp_path):
    fit(make_model(optimizers.SGD(0.01)), tmp_path, rows=8, every=1, epochs=3)
    assert ["samples_per_second" in line for line in lines(tmp_path, "epoch")] == [False, True, True]
    assert ["samples_per_second" in line for line in lines(tmp_path, "step")] == [False, True, True]


def test_own_train_step_is_not_taken_for_samples(tmp_path):
    class Model(keras.Sequential):
        def train_step(self, *args, **kwargs):
            return super().train_step(*args, **kwargs)

    model = Model([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.01), "mse")
    fit(model, tmp_path)
    assert all("samples_per_second" not in line for line in lines(tmp_path))
    assert all("loss" not in line and line["gradient_norm"] > 0 for line in lines(tmp_path, "step"))
    assert all(line["loss"] > 0 for line in lines(tmp_path, "epoch"))


def test_unknown_number_of_steps(tmp_path):
    x, y = make_data(60)

    def batches():
        for start in range(0, 60, 8):
            yield x[start : start + 8], y[start : start + 8]

    model = make_model(optimizers.SGD(0.01))
    monitor = callbacks.TrainingMonitor(tmp_path, every=3)
    updates = []
    for _ in range(2):
        model.fit(batches(), verbose=0, callbacks=[monitor], epochs=1)
        updates.append(int(model.optimizer.iterations))
    # Keras itself counts one update more than the generator has batches.
    assert [line["step"] for line in lines(tmp_path, "epoch")] == updates
    assert [line["step"] for line in lines(tmp_path, "step")] == list(range(3, updates[-1] + 1, 3))
    assert all(line["samples_per_second"] > 0 for line in lines(tmp_path))


def test_plain_keras_optimizer_says_once_what_is_missing(tmp_path):
    model = make_model(keras.optimizers.Adam(0.01))
    monitor = callbacks.TrainingMonitor(tmp_path, every=2)
    with pytest.warns(UserWarning, match=r"Adam reports no gradient_norm.*optimizers\.wrap\(optimizer\)"):
        fit(model, tmp_path, monitor=monitor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, tmp_path, monitor=monitor)
        model.compile(keras.optimizers.SGD(0.01), "mse")
        fit(model, tmp_path, monitor=monitor)
    assert not [w for w in caught if "reports no" in str(w.message)]
    for line in lines(tmp_path, "step"):
        assert {"loss", "learning_rate"} <= set(line) and "gradient_norm" not in line


def test_wrapped_keras_optimizer_has_norms(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(make_model(optimizers.wrap(keras.optimizers.Adam(0.01))), tmp_path)
    assert all(line["update_to_weight_ratio"] > 0 for line in lines(tmp_path, "step"))


def test_watch_reaches_a_step_that_was_traced_before(tmp_path):
    model = make_model(optimizers.Adam(0.01))
    x, y = make_data()
    model.fit(x, y, batch_size=8, verbose=0)
    fit(model, tmp_path)
    steps = lines(tmp_path, "step")
    assert [line["step"] for line in steps] == [10, 12, 14, 16]
    assert all(line["gradient_norm"] > 0 for line in steps)


@TENSORFLOW
def test_the_step_is_traced_once_per_model(tmp_path):
    import tensorflow as tf

    traces = []

    class Counting(keras.layers.Layer):
        def call(self, inputs, training=None):
            if training and tf.inside_function():
                traces.append(1)
            return inputs

    model = keras.Sequential([keras.Input((5,)), Counting(), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.01), "mse")
    monitor = fit(model, tmp_path)
    once = len(traces)
    fit(model, tmp_path, monitor=monitor, epochs=2)
    assert len(traces) == once >= 1


@TENSORFLOW
@pytest.mark.parametrize("ours", [True, False])
def test_loss_scale(tmp_path, ours):
    from keras_trainkit import precision

    inner = optimizers.SGD(0.01)
    if ours:
        optimizer = precision.LossScaleOptimizer(inner, initial_scale=64.0, dynamic_growth_steps=4)
    else:
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0, dynamic_growth_steps=4)
    fit(make_model(optimizer), tmp_path)
    steps = lines(tmp_path, "step")
    assert [line["loss_scale"] for line in steps] == [64.0, 128.0, 128.0, 256.0]
    assert all(line["gradient_norm"] > 0 for line in steps)
    assert ("skipped_steps" in steps[0]) is ours


@TENSORFLOW
def test_skipped_steps_shift_the_lines(tmp_path):
    """A step whose gradient is not finite is no update, so the line of update 2 comes after batch 3."""
    from keras_trainkit import precision

    x, y = make_data(64)
    y[:8] = np.nan
    model = make_model(precision.LossScaleOptimizer(optimizers.SGD(0.01), initial_scale=2.0**20))
    monitor = callbacks.TrainingMonitor(tmp_path, every=2)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    steps = lines(tmp_path, "step")
    assert [line["step"] for line in steps] == [2, 4, 6]
    assert [line["skipped_steps"] for line in steps] == [1, 1, 1]
    assert [line["loss_scale"] for line in steps] == [2.0**19] * 3
    assert lines(tmp_path, "epoch")[0]["step"] == 7


def test_infinite_values_are_null_and_named(tmp_path):
    x, y = make_data()
    model = make_model(optimizers.SGD(0.01))
    y[20] = np.nan
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[callbacks.TrainingMonitor(tmp_path, every=2)])
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    good, bad = lines(tmp_path, "step")[:2]
    assert good["loss"] > 0 and "nonfinite" not in good
    assert bad["loss"] is None and bad["gradient_norm"] is None and {"loss", "gradient_norm"} <= set(bad["nonfinite"])
    assert {"loss", "mae"} <= set(lines(tmp_path, "epoch")[0]["nonfinite"])


@TENSORFLOW
def test_two_replicas_count_all_samples(tmp_path, two_replicas):
    alone, together = tmp_path / "1", tmp_path / "2"
    fit(make_model(optimizers.SGD(0.05)), alone, epochs=2)
    with two_replicas.scope():
        model = make_model(optimizers.SGD(0.05))
    samples = []
    read = counting.SampleCounter.read

    def reading(self):
        samples.append(read(self).samples)
        return read(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting.SampleCounter, "read", reading)
        fit(model, together, epochs=2)
    assert max(samples) == 128
    for one, two in zip(lines(alone), lines(together), strict=True):
        assert one["step"] == two["step"]
        for name in {"loss", "gradient_norm", "update_to_weight_ratio"} & set(one):
            assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_reads_nothing_from_the_device_between_lines(tmp_path, monkeypatch):
    reads = []
    iterations = callbacks.TrainingMonitor._iterations
    monkeypatch.setattr(callbacks.TrainingMonitor, "_iterations", lambda self: reads.append(1) or iterations(self))
    read = counting.SampleCounter.read
    monkeypatch.setattr(counting.SampleCounter, "read", lambda self: reads.append(1) or read(self))
    fit(make_model(optimizers.SGD(0.01)), tmp_path, rows=800, every=1000)
    # at the beginning, after the traced step, before the last step and at the end; 100 steps in all
    assert len(reads) <= 6
    monitor = callbacks.TrainingMonitor(tmp_path)
    base = keras.callbacks.Callback
    assert (
        type(monitor).on_train_batch_end is base.on_train_batch_end and type(monitor).on_batch_end is base.on_batch_end
    )


def test_continues_a_file_whose_last_line_is_torn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 2}\n{"kind": "st')
    fit(make_model(optimizers.SGD(0.01)), tmp_path)
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert written[1] == '{"kind": "st'
    assert [json.loads(line)["kind"] for line in written[2:]] == ["step"] * 4 + ["epoch"]


def test_lines_are_there_at_once_and_files_are_closed(tmp_path):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            # Another thread writes them: nobody waits for it here but the test.
            patience = time.monotonic() + 10
            while len(lines(tmp_path)) < batch // 2 and time.monotonic() < patience:
                time.sleep(0.001)
            seen.append(len(lines(tmp_path)))

    x, y = make_data()
    monitor = callbacks.TrainingMonitor(tmp_path, every=2)
    make_model(optimizers.SGD(0.01)).fit(x, y, batch_size=8, verbose=0, callbacks=[monitor, Look()])
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    assert monitor._lines is None and monitor._events is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("keras-trainkit-lines")]


@pytest.mark.parametrize("which", ["JsonLines", "EventFiles"])
def test_a_full_disk_ends_the_training_and_closes_the_files(tmp_path, monkeypatch, which):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getattr(event_log, which), "write", full)
    x, y = make_data()
    monitor = callbacks.TrainingMonitor(tmp_path, every=2)
    with pytest.raises(OSError, match="No space left"):
        make_model(optimizers.SGD(0.01)).fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    monkeypatch.undo()
    make_model(optimizers.SGD(0.01)).fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    assert [line["kind"] for line in lines(tmp_path)][-1] == "epoch"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("keras-trainkit-lines")]


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(make_model(optimizers.Adam(0.01)), tmp_path, epochs=2, validation_data=make_data(8))

    def scalars(run):
        events = EventAccumulator(str(tmp_path / "tensorboard" / run)).Reload()
        return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

    train, validation = scalars("train"), scalars("validation")
    assert {
        "step/loss", "step/learning_rate", "step/gradient_norm", "step/update_to_weight_ratio",
        "step/samples_per_second", "epoch/loss", "epoch/mae",
    } <= set(train)  # fmt: skip
    assert set(validation) == {"epoch/loss", "epoch/mae"}
    assert list(validation["epoch/loss"]) == [8, 16]
    for line in lines(tmp_path, "step"):
        assert train["step/gradient_norm"][line["step"]] == pytest.approx(line["gradient_norm"], rel=1e-6)
    for line in lines(tmp_path, "epoch"):
        assert validation["epoch/loss"][line["step"]] == pytest.approx(line["val_loss"], rel=1e-6)


def test_without_tensorboard(tmp_path):
    model = make_model(optimizers.SGD(0.01))
    fit(model, tmp_path, monitor=callbacks.TrainingMonitor(tmp_path, tensorboard=False))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_configuration_and_copies(tmp_path):
    monitor = callbacks.TrainingMonitor(tmp_path, every=7, tensorboard=False)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(monitor))
    config = {name: value for name, value in again.get_config().items() if value}
    assert config == {"directory": str(tmp_path), "every": 7}
    assert again.get_config() == monitor.get_config()
    used = fit(make_model(optimizers.SGD(0.01)), tmp_path)
    assert copy.deepcopy(monitor).every == 7 and used.directory == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "`every` must be an integer at least 1. Received: every=0"),
        ({"every": 2.5}, TypeError, "`every` must be an integer at least 1. Received: every=2.5"),
        ({"tensorboard": "yes"}, TypeError, "`tensorboard` must be True or False. Received: tensorboard='yes'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message.replace(".", r"\.")):
        callbacks.TrainingMonitor(tmp_path, **arguments)


def test_evaluate_and_predict_write_nothing(tmp_path):
    model = make_model(optimizers.SGD(0.01))
    x, y = make_data()
    monitor = callbacks.TrainingMonitor(tmp_path)
    model.evaluate(x, y, verbose=0, callbacks=[monitor])
    model.predict(x, verbose=0, callbacks=[monitor])
    assert list(tmp_path.iterdir()) == []
