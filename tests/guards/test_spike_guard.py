"""Spikes of loss and gradient: found as theory says, their updates not made, or all taken back."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, guards, optimizers, precision, schedules
from keras_trainkit.guards.spikes import judged

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(7)
BATCHES, SPIKE = 60, 45


def twin(value, before, threshold, warmup):
    """Written plainly: whether a value is a spike, median and deviation of those before."""
    if not len(before):
        return not np.isfinite(value), 0.0, 1e-30
    median = np.median(before)
    deviation = max(1.4826 * np.median(np.abs(before - median)), 0.01 * abs(median) + 1e-30)
    high = len(before) >= warmup and value > median + threshold * deviation
    return bool(high or not np.isfinite(value)), median, deviation


@pytest.mark.parametrize("known", [0, 1, 2, 7, 8, 15, 16])
def test_a_verdict_equals_its_numpy_twin(known):
    for scale in (1.0, 1e-4):
        row = np.where(np.arange(16) < known, 3 + scale * RNG.normal(size=16), 0).astype("float32")
        for value in (3.0, 3.05, 3 + 4 * scale, 1e9, np.nan, -1e9):
            found = judged(keras.ops.cast(value, "float32"), keras.ops.cast(row, "float32"), known, 3.0, 8)
            spike, median, deviation = (keras.ops.convert_to_numpy(t).item() for t in found)
            expected = twin(value, row[:known], 3.0, 8)
            assert spike == expected[0]
            assert (median, deviation) == pytest.approx(expected[1:], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("threshold", "window"), [(3.0, 128), (2.0, 64), (3.0, 32)])
def test_false_alarms_of_normal_noise_are_as_many_as_said(threshold, window):
    tries = 60_000
    values = RNG.normal(size=(tries, window + 1))
    before = values[:, :-1]
    median = np.median(before, axis=1)
    deviation = 1.4826 * np.median(np.abs(before - median[:, None]), axis=1)
    share = np.mean(values[:, -1] > median + threshold * deviation)
    said = guards.false_alarm_rate(threshold, window)
    # 5 standard errors, and an eighth for what is not normal about a median absolute deviation of few values.
    assert abs(share - said) < 5 * np.sqrt(said / tries) + said / 8
    assert guards.false_alarm_rate(6.0, 128) < 2.5e-7


@keras.saving.register_keras_serializable("tests")
def plain(y, prediction):
    return y * prediction


def make_model(optimizer, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.1), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, plain, **options)
    return model


def make_data(spike=SPIKE, batches=BATCHES, size=4, factor=1000.0):
    x = (1 + 0.1 * RNG.normal(size=(batches * size, 4))).astype("float32")
    if spike is not None:
        x[spike * size : (spike + 1) * size] *= factor
    return x, np.ones((batches * size, 1), "float32")


class Watch(keras.callbacks.Callback):
    """The weights before each batch and in the end."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(self.model.get_weights()[0])

    def on_train_end(self, logs=None):
        self.seen.append(self.model.get_weights()[0])


def fit(model, guard, data, *others, batch_size=4, **options):
    history = model.fit(*data, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[guard, *others], **options)
    return history.history


def test_the_update_of_a_spike_is_not_made_and_it_is_said(capsys):
    model, guard, watch = make_model(optimizers.Adam(0.01)), callbacks.SpikeGuard(), Watch()
    history = fit(model, guard, make_data(), watch)
    moved = [bool((a != b).any()) for a, b in zip(watch.seen[:-1], watch.seen[1:], strict=True)]
    assert moved == [batch != SPIKE for batch in range(BATCHES)]
    assert int(model.optimizer.iterations) == BATCHES - 1 and history["spikes"] == [1]
    (event,) = guard.events
    assert (event["iterations"], event["action"], event["back_to"]) == (SPIKE, "skip", None)
    assert event["value"] > 1000 * event["deviation"]
    assert "after 45 updates" in capsys.readouterr().err and "train_step" not in vars(model)


def test_clean_noise_makes_no_spikes_and_a_level_that_rose_is_accepted():
    guard = callbacks.SpikeGuard(window=32)
    fit(make_model(optimizers.SGD(1e-4)), guard, make_data(None))
    assert guard.events == []
    x, y = make_data(None, 120)
    x[200:] *= 10
    guard = callbacks.SpikeGuard("gradient_norm", window=32, verbose=0)
    model = make_model(optimizers.SGD(1e-6))
    fit(model, guard, (x, y))
    assert 10 <= len(guard.events) <= 17 and int(model.optimizer.iterations) == 120 - len(guard.events)


@pytest.mark.parametrize(
    "case", ["accumulation", "loss scale", pytest.param("xla", marks=pytest.mark.slow), "executions", "schedule-free"]
)
def test_the_same_update_is_left_out_in_other_ways_to_train(case):
    options, optimizer, batches = {}, optimizers.SGD(1e-4), 1
    if case == "accumulation":
        optimizer, batches = optimizers.SGD(1e-4, gradient_accumulation_steps=2), 2
    elif case == "loss scale":
        optimizer = precision.LossScaleOptimizer(optimizer, initial_scale=64.0)
    elif case == "xla":
        options = {"jit_compile": True}
    elif case == "executions":
        options = {"steps_per_execution": 4}
    else:
        optimizer = optimizers.ScheduleFreeSGD(1e-4)
    model, guard = make_model(optimizer, **options), callbacks.SpikeGuard(verbose=0)
    fit(model, guard, make_data(SPIKE * batches, BATCHES * batches))
    assert [event["iterations"] for event in guard.events] == [SPIKE]
    assert int(model.optimizer.iterations) == BATCHES - 1


@pytest.mark.parametrize("accumulation", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_two_replicas_judge_as_one(two_replicas, accumulation):
    found = []
    for replicas in (1, 2):
        RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state
        optimizer = optimizers.SGD(1e-4, gradient_accumulation_steps=accumulation)
        if replicas == 2:
            with two_replicas.scope():
                optimizer = optimizers.SGD(1e-4, gradient_accumulation_steps=accumulation)
                model = make_model(optimizer)
        else:
            model = make_model(optimizer)
        model.layers[0].rate = 0.0
        guard = callbacks.SpikeGuard("loss", verbose=0)
        fit(model, guard, make_data(SPIKE * (accumulation or 1), BATCHES * (accumulation or 1)))
        (event,) = guard.events
        found.append([event[name] for name in ("iterations", "value", "median", "deviation")])
        assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == BATCHES - 1
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_a_rollback_is_the_run_without_the_batches_that_were_taken_back():
    """With states every 10 batches and looks every 5: found before batch 50, back to where batch 40 began, or 30."""
    data = make_data(47)
    model, guard = make_model(optimizers.Adam(0.01)), callbacks.SpikeGuard(
        action="rollback", snapshot_every=10, look_every=5, verbose=0
    )  # fmt: skip
    fit(model, guard, data)
    (event,) = guard.events
    assert (event["iterations"], event["back_to"]) == (47, 30)
    kept = np.r_[0 : 30 * 4, 50 * 4 : BATCHES * 4]
    other = make_model(optimizers.Adam(0.01))
    fit(other, keras.callbacks.Callback(), tuple(part[kept] for part in data))
    assert int(other.optimizer.iterations) == int(model.optimizer.iterations) == 40
    pairs = zip(
        [*model.variables, *model.optimizer.variables], [*other.variables, *other.optimizer.variables], strict=True
    )
    for one, two in pairs:
        np.testing.assert_array_equal(one.numpy(), two.numpy())


@pytest.mark.parametrize(
    "rate", [0.5, schedules.Cosine(0.5, 1000), lambda: 0.5], ids=["number", "schedule", "function"]
)
def test_the_rate_is_cut_under_any_schedule_and_stays_cut_in_a_file(tmp_path, rate):
    model = make_model(optimizers.SGD(rate))
    guard = callbacks.SpikeGuard("gradient_norm", rate_factor=0.25, look_every=1, verbose=0)
    fit(model, guard, make_data())
    step = int(model.optimizer.iterations)
    said = float(rate(step)) if isinstance(rate, schedules.Cosine) else 0.5
    assert float(model.optimizer.learning_rate) == pytest.approx(0.25 * said, rel=1e-5)
    assert guard.events[0]["rate_multiplier"] == 0.25
    if callable(rate) and not isinstance(rate, schedules.Cosine):
        return  # a function is in no file
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.25 * said, rel=1e-5)


def test_what_a_plain_optimizer_of_keras_allows():
    with pytest.raises(TypeError, match=r"optimizers\.wrap"):
        fit(make_model(keras.optimizers.SGD(1e-4)), callbacks.SpikeGuard(), make_data())
    model, guard = make_model(keras.optimizers.SGD(1e-4)), callbacks.SpikeGuard(action="rollback", verbose=0)
    with pytest.warns(UserWarning, match="no gradient norm of SGD"):
        fit(model, guard, make_data())
    (event,) = guard.events
    assert (event["signal"], event["iterations"], event["back_to"]) == ("loss", SPIKE, 0)
    wrapped = make_model(optimizers.wrap(keras.optimizers.SGD(1e-4)))
    guard = callbacks.SpikeGuard(action="report", verbose=0)
    fit(wrapped, guard, make_data())
    assert len(guard.events) == 1 and int(wrapped.optimizer.iterations) == BATCHES


def test_what_is_not_finite_is_a_spike_from_the_first_step_on():
    x, y = make_data(None)
    x[9] = np.nan
    model, guard = make_model(optimizers.SGD(1e-4)), callbacks.SpikeGuard(verbose=0)
    fit(model, guard, (x, y))
    assert [event["iterations"] for event in guard.events] == [2]
    assert np.isfinite(model.get_weights()[0]).all()


def test_a_run_that_was_cut_and_resumed_judges_as_the_whole_one(tmp_path):
    class Cut(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 40:
                raise KeyboardInterrupt

    def run(folder, *others):
        guard = callbacks.SpikeGuard(rate_factor=0.5, verbose=0)
        model = make_model(optimizers.Adam(0.01))
        resumable = callbacks.ResumableTraining(folder, every=20)
        try:
            fit(model, guard, data, resumable, *others)
        except KeyboardInterrupt:
            resumable.close()
        return model, guard

    data = make_data()
    data[0][36 * 4 : 37 * 4] *= 1000
    whole, first = run(tmp_path / "whole")
    run(tmp_path / "cut", Cut())
    again, second = run(tmp_path / "cut")
    assert first.events == second.events and len(first.events) == 2
    np.testing.assert_array_equal(whole.get_weights()[0], again.get_weights()[0])


def test_nothing_is_read_between_looks(monkeypatch):
    read = []
    original = callbacks.SpikeGuard._spikes
    monkeypatch.setattr(callbacks.SpikeGuard, "_spikes", lambda self: read.append(1) or original(self))
    fit(make_model(optimizers.SGD(1e-4)), callbacks.SpikeGuard(look_every=20), make_data(None))
    assert len(read) == 3 + 2  # before batches 0, 20 and 40, at the epoch's end, and in the end


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"signals": ["losses"]}, "`signals` must be one of"), ({"signals": []}, "at least one"),
     ({"action": "cut"}, "`action`"),
     ({"threshold": 0}, "threshold=0"), ({"window": 4}, "window=4"), ({"window": 8}, "warmup=32"),
     ({"rate_factor": 0}, "rate_factor=0"), ({"snapshot_every": 0}, "snapshot_every=0")],
)  # fmt: skip
def test_bad_arguments_fail_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.SpikeGuard(**arguments)


def test_the_configuration_comes_back():
    made = callbacks.SpikeGuard("loss", "rollback", 5.0, 64, 16, 0.5, 50, 5, 0)
    assert callbacks.SpikeGuard.from_config(made.get_config()).get_config() == made.get_config()


def test_the_table_in_the_guide_is_what_the_function_says():
    page = Path(__file__).parents[2] / "docs" / "guards.md"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 4 and row[0] in ("3", "4", "6")}
    assert len(table) == 3
    for threshold, cells in table.items():
        assert cells == [f"{guards.false_alarm_rate(float(threshold), window):.1e}" for window in (32, 128, 512)]
