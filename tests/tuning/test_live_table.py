"""How a search is shown: a table in a terminal, lines elsewhere, nothing with verbose=0."""

import io
import os
import re
import subprocess
import sys
import types

import keras
import pytest
from rich.console import Console

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import curve, killed_after, search

from keras_trainkit import tuning
from keras_trainkit.tuning import progress


def terminal(width=140):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system=None)


def shown_by(console):
    """What a terminal was sent, without what moves the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def drawn(tuner, like):
    """The table as it is now."""
    console = Console(file=io.StringIO(), width=like.width, height=like.height)
    console.print(tuner._progress._table())
    return console.file.getvalue()


def loud(folder, base=tuning.RandomSearch, **kwargs):
    tuner = search(folder, base, run=False, **kwargs)
    tuner.oracle.verbose = 1
    return tuner


def sometimes(values, epochs):
    if values["x"] > 0.6:
        raise ValueError("x is [bold]too[/bold] high\nmore of it")
    return curve(values, epochs)


def test_a_pipe_has_a_line_for_each_begin_and_each_end(tmp_path, capsys):
    tuner = loud(tmp_path, tuning.SuccessiveHalving, max_trials=10, max_epochs=4, min_epochs=1, score=sometimes)
    tuner.search()
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = [line for line in out.splitlines() if line.startswith("trial ")]
    assert len(lines) == 20 and [line.split()[2] for line in lines[::2]] == ["begins"] * 10
    trials = list(tuner.oracle.trials.values())
    for trial, line in zip(trials, lines[1::2], strict=True):
        assert line.startswith(f"trial {trial.trial_id}  ")
        if trial.status == "FAILED":
            assert "failed" in line and "ValueError: x is [bold]too[/bold] high" in line and "more of it" not in line
        elif trial.trial_id in tuner.oracle.ended_early:
            assert "pruned" in line and tuner.oracle.ended_early[trial.trial_id] in line
        else:
            assert f"completed  val_loss {trial.score:.5g}  4 epochs" in line
    assert {line.split()[2] for line in lines[1::2]} == {"completed", "pruned", "failed"}
    best = tuner.oracle.get_best_trials()[0]
    assert f"best {best.score:.5g} (trial {best.trial_id})" in lines[-1] and "10 of 10 trials" in lines[-1]
    assert "Running Trial" not in out  # KerasTuner's own


def test_a_terminal_has_a_table_with_running_and_ended_trials(tmp_path):
    console = terminal()
    tuner = loud(tmp_path, max_trials=9, score=sometimes, progress=console, epoch_budget=200, time_budget=1000.0)
    seen = []
    original = tuner.on_epoch_end

    def look(trial, model, epoch, logs):
        original(trial, model, epoch, logs)
        seen.append((trial, epoch, logs["val_loss"], drawn(tuner, console)))

    tuner.on_epoch_end = look
    tuner.search()
    trial, epoch, loss, table = seen[-1]
    row = next(line for line in table.splitlines() if "running" in line)
    assert row.split()[:4] == [trial.trial_id, "running", str(epoch + 1), f"{loss:.5g}"] and epoch == 3
    assert "of 200 epochs" in table and "of 16:40" in table and "of 9 trials" in table and " left" in table
    lines = table.splitlines()
    assert len([line for line in lines if re.match(r"\d +(completed|failed)", line)]) == 5
    best = min(t.score for t in tuner.oracle.trials.values() if t.score is not None and t is not trial)
    assert any(line.startswith(f"best val_loss {best:.5g}, trial ") and "x " in line for line in lines)
    # What stays in the end: no trial runs.
    last = shown_by(console).rpartition("search p")[2]
    assert "running" not in last and "9 of 9 trials" in last
    assert tuner._progress._live is None and console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_the_table_fits_a_small_terminal(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=50, height=8, color_system=None)
    tuner = loud(tmp_path, max_trials=6, progress=console)
    tuner.search()
    lines = drawn(tuner, console).splitlines()
    assert len(lines) <= 8 and max(map(len, lines)) <= 50


def test_verbose_0_is_quiet(tmp_path, capfd):
    tuner = search(tmp_path, max_trials=2, progress=terminal(), run=False)
    tuner.search(verbose=0)
    assert tuner._progress._given.file.getvalue() == "" and capfd.readouterr().out == ""


def test_progress_false_leaves_it_to_kerastuner(tmp_path, capsys):
    loud(tmp_path, max_trials=1, progress=False).search()
    out = capsys.readouterr().out
    assert "Search: Running Trial #1" in out and "begins" not in out


def test_lines_in_a_terminal_where_keras_shows_its_bars(tmp_path):
    console = terminal()
    tuner = loud(tmp_path, max_trials=1, progress=console)
    tuner.search(verbose=1)
    text = console.file.getvalue()
    assert "\x1b[?25l" not in text and text.startswith("trial 0  begins")


def test_an_error_leaves_the_terminal_as_it_was(tmp_path):
    console = terminal()
    tuner = loud(tmp_path, max_trials=3, progress=console)
    with killed_after(tuner, 2, "end_trial"):
        tuner.search()
    assert console.file.getvalue().endswith("\x1b[?25h") and tuner._progress._live is None
    assert keras.config.is_interactive_logging_enabled()


def test_a_search_that_goes_on_counts_what_was_there(tmp_path, capsys):
    search(tmp_path, max_trials=3)
    loud(tmp_path, max_trials=4).search()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert len(lines) == 2 and "4 of 4 trials" in lines[-1] and "best " in lines[-1]


def test_a_trial_that_is_begun_again_says_so(tmp_path, capsys):
    calls = []

    def at_the_second_time(values, epochs):
        calls.append(values)
        if len(calls) == 1:
            raise ValueError("once")
        return curve(values, epochs)

    loud(tmp_path, score=at_the_second_time, max_trials=1, max_retries_per_trial=1).search()
    words = [line.split()[2] for line in capsys.readouterr().out.splitlines() if re.match(r"trial 0  ", line)]
    assert words == ["begins", "again", "begins", "completed"]


def test_what_another_process_writes_goes_above_the_table(tmp_path):
    console = terminal()
    tuner = loud(tmp_path, max_trials=1, progress=console)
    shown = tuner._progress
    tuner.search()
    shown._live = types.SimpleNamespace(refresh=lambda: None)  # as if it were still open
    code = "import os; os.write(1, b'from its output\\n'); os.write(2, b'1/9\\r9/9 [bold]\\n')"
    before = {fd: os.fstat(fd).st_ino for fd in (1, 2)}
    with shown.above():
        process = subprocess.Popen([sys.executable, "-c", code])
    assert {fd: os.fstat(fd).st_ino for fd in (1, 2)} == before
    assert process.wait() == 0
    shown.wait_for_output()
    shown._live = None
    text = shown_by(console)
    assert "from its output\n" in text and "9/9 [bold]\n" in text and "1/9" not in text


@pytest.mark.tensorflow
def test_keras_shows_no_bars_beside_it_unless_asked(tmp_path, capsys):
    def build(hp):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(hp.Float("rate", 0.01, 0.1)), "mse")
        return model

    x = keras.ops.convert_to_numpy(keras.ops.ones((8, 2)))
    kwargs = {"max_trials": 1, "directory": tmp_path, "seed": 0}
    tuning.RandomSearch(build, "val_loss", project_name="quiet", **kwargs).search(x, x[:, :1], validation_split=0.5)
    out = capsys.readouterr().out
    assert "trial 0  completed" in out and "Epoch 1" not in out and "/step" not in out
    assert keras.config.is_interactive_logging_enabled()
    tuner = tuning.RandomSearch(build, "val_loss", project_name="asked", **kwargs)
    tuner.search(x, x[:, :1], validation_split=0.5, verbose=2)
    assert "/step" in capsys.readouterr().out


def test_the_numbers_of_a_row():
    assert progress._number(None) == "" and progress._number(0.123456789) == "0.12346"
    assert progress._seconds(3.14) == "3.1 s" and progress._seconds(75) == "1:15"
