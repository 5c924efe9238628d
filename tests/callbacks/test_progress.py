"""Progress: plain lines in a pipe, bars in a terminal, and estimates that fit what was seen."""

import copy
import io
import re

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_trainkit import callbacks, optimizers
from keras_trainkit.callbacks import progress
from keras_trainkit.monitoring import counting


def fit(console, epochs=3, validation=True, every=0.25, batches=8, line_every=60.0, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.025), "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(batches * 8, 4)).astype("float32")
    y = x[:, :1]
    shown = callbacks.Progress(console, every, line_every)
    if validation:
        arguments["validation_data"] = (x[:8], y[:8])
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[shown], **arguments)
    return shown, model


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by one second each time it is read."""
    now = [0.0]

    def perf_counter():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(counting.time, "perf_counter", perf_counter)
    return now


def test_a_pipe_gets_one_plain_line_per_epoch():
    out = io.StringIO()
    _, model = fit(Console(file=out, width=40))
    text = out.getvalue()
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for line, loss in zip(lines, model.history.history["loss"], strict=True):
        assert f"  loss {loss:.4g}  mae " in line
        assert re.search(r"  val_loss \S+  val_mae \S+  lr 0\.025  [\d,]+ samples/s  \d+\.\d s", line)
    assert [line.endswith(" left") for line in lines] == [True, True, False]


def test_standard_output_is_the_default(capsys):
    fit(None, epochs=1, validation=False)
    assert re.fullmatch(r"epoch 1/1  loss .*\n", capsys.readouterr().out)


def test_colours_that_a_variable_asks_for_stay_out_of_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    fit(None, epochs=2, every=1e-9)
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) == 2


def test_long_epochs_leave_lines_in_a_log():
    out = io.StringIO()
    fit(Console(file=out, width=40), epochs=1, line_every=1e-9)
    lines = out.getvalue().splitlines()
    assert len(lines) == 8 and "\x1b" not in out.getvalue()
    assert re.fullmatch(
        r"epoch 1/1  step 4/8  loss \S+  mae \S+  lr 0\.025  ([\d,]+ samples/s  )?\d+ s left in the epoch", lines[3]
    )
    out = io.StringIO()
    fit(Console(file=out), epochs=1, line_every=None)
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_gets_bars_and_a_line_per_epoch():
    out = io.StringIO()
    shown, _ = fit(Console(file=out, force_terminal=True, width=120), every=1e-9)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "run    epoch 2/3" in text and "epoch  step 5/8" in text and "━" in text
    assert re.search(r"loss \S+  mae \S+  lr 0\.025  [\d,]+ samples/s", text)
    assert re.search(r"\d+ s left", text)
    assert len(re.findall(r"epoch \d/3  loss ", text)) == 3
    # what is left at the end: the cursor, and no bar
    assert out.getvalue().rstrip().endswith("\x1b[2K") and "\x1b[?25h" in out.getvalue()
    assert shown._live is None


def test_the_display_is_renewed_by_the_clock_and_not_by_the_step(monkeypatch):
    reads = []
    results = keras.Model.get_metrics_result
    monkeypatch.setattr(keras.Model, "get_metrics_result", lambda self: reads.append(1) or results(self))

    def count(every):
        reads.clear()
        fit(Console(file=io.StringIO(), force_terminal=True), epochs=1, validation=False, every=every, batches=20)
        return len(reads)

    assert count(every=1e-9) - count(every=3600.0) == 19


def test_time_left(monkeypatch):
    """Ten seconds per step: after step 4 of 8 in the second of three epochs 40 and 120 seconds are left."""
    now = [0.0]
    monkeypatch.setattr(counting.time, "perf_counter", lambda: now[0])
    seen = []

    class Steps(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if (self.epoch, batch) in ((0, 2), (1, 4)):
                seen.append((shown._epoch_left(), shown._run_left(shown._epoch_left())))

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            now[0] += 10.0

    shown = callbacks.Progress(Console(file=io.StringIO(), force_terminal=True))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((64, 4), "float32")
    model.fit(x, x[:, :1], batch_size=8, epochs=3, verbose=0, callbacks=[shown, Steps()])
    assert seen == [(60.0, 220.0), (40.0, 120.0)]


def test_speed_counts_samples(clock):
    out = io.StringIO()
    fit(Console(file=out), epochs=2, validation=False)
    # the ticking clock gives each stretch some whole seconds: 48 samples are timed in the first epoch, 56 in the second
    speeds = [float(speed) for speed in re.findall(r"([\d,]+) samples/s", out.getvalue())]
    assert len(speeds) == 2
    assert any(round(48 / seconds) == speeds[0] for seconds in range(1, 20))
    assert any(round(56 / seconds) == speeds[1] for seconds in range(1, 20))


def test_unknown_number_of_steps():
    x = np.ones((40, 4), "float32")
    out = io.StringIO()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    shown = callbacks.Progress(Console(file=out, force_terminal=True, width=100), every=1e-9)
    generator = ((x[:8], x[:8, :1]) for _ in range(5))
    model.fit(generator, verbose=0, callbacks=[shown])
    assert "step 3/?" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3599.9, "1:00:00"), (36000, "10:00:00")]
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


def test_configuration_and_copies():
    shown = callbacks.Progress(every=2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(shown))
    assert again.every == 2.0 and again.console is None
    assert copy.deepcopy(shown).every == 2.0
    assert again.get_config() == {"every": 2.0, "line_every": 60.0}
    with pytest.raises(ValueError, match=r"`line_every` must be a number above 0\. Received: line_every=0"):
        callbacks.Progress(line_every=0)
    with pytest.raises(ValueError, match=r"`every` must be a number above 0\. Received: every=0"):
        callbacks.Progress(every=0)


def test_evaluate_shows_nothing(capsys):
    _, model = fit(Console(file=io.StringIO()), epochs=1)
    model.evaluate(np.ones((8, 4)), np.ones((8, 1)), verbose=0, callbacks=[callbacks.Progress()])
    assert capsys.readouterr().out == ""


def test_the_loss_comes_first_and_validation_last():
    logs = {"val_auc": 4, "accuracy": 2, "val_loss": 3.0, "loss": np.float32(1), "text": "none"}
    assert list(progress._numbers(logs).items()) == [("loss", 1), ("accuracy", 2), ("val_loss", 3), ("val_auc", 4)]
