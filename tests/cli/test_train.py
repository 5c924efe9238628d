"""`keras-trainkit train` in this process: the table, JSON, quiet, and what a terminal or a pipe gets to see."""

import io
import json
import re
import shlex
import sys

import numpy as np
import pytest

from keras_trainkit import recipes, reporting
from keras_trainkit.cli import train
from keras_trainkit.cli.main import main
from keras_trainkit.recipes import Result

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "report", lambda path: (path / "report.html").write_text("quick"))
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    np.savez(tmp_path / "easy.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    return tmp_path


EASY = ["train", "--data", "easy.npz", "--epochs", "2"]


def test_the_end_shows_what_was_reached_and_where(here, capsys):
    assert main(EASY) == 0
    out, error = capsys.readouterr()
    assert error == ""
    result = json.loads((here / "runs/easy-1/result.json").read_text())
    assert "easy.npz: 81 train, 9 validation, 30 test examples of 3, 2 classes" in out
    assert f"Test accuracy      │ {result['test']['accuracy']:.4f}" in out
    for words in ("2 epochs done", "Best epoch", "Time", "Samples per second", "runs/easy-1/report.html"):
        assert words in out
    assert "tensorboard --logdir runs/easy-1/tensorboard\n" in out
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "\x1b" not in out and "\r" not in out


def test_json_is_all_of_standard_output(here, capsys):
    assert main([*EASY, "--json", "--run-dir", "out"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out) == json.loads((here / "out/result.json").read_text())
    assert "epoch 2/2" in error and "\x1b" not in error


def test_quiet_shows_the_end_alone(capsys):
    assert main([*EASY, "--quiet"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("easy: 2 epochs done\n") and error == ""
    assert main([*EASY, "--quiet", "--json"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("{") and error == ""


def test_a_model_that_breaks_the_contract_writes_nothing(here, capsys):
    (here / "cli_net.py").write_text("def build(input_shape, outputs):\n    return outputs\n")
    assert main([*EASY, "--model", "cli_net:build", "--quiet"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "must return a keras.Model" in error
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("completed", 0, "5 epochs done"),
        ("interrupted", 130, "interrupted after 3 of 5 epochs (70 updates); the best model so far is kept"),
        ("failed", 1, "failed after 3 of 5 epochs"),
    ],
)
def test_status_decides_exit_code_and_headline(monkeypatch, capsys, status, code, words):
    result = Result(status, "easy", "classification", "my runs/x", epochs=5, epochs_completed=3, updates=70)
    result.best, result.error = {"metric": "val_accuracy", "value": 0.5, "epoch": 2}, "the loss is nan"
    monkeypatch.setattr(recipes, "run", lambda *args, **kwargs: result)
    assert main([*EASY, "--quiet"]) == code
    out, error = capsys.readouterr()
    assert words in out
    assert "tensorboard --logdir 'my runs/x/tensorboard'\n" in out
    assert error == ("keras-trainkit: the loss is nan\n" if status == "failed" else "")


def test_interrupted_before_the_first_epoch_ended():
    result = Result("interrupted", "easy", "classification", "x", epochs=5, updates=7)
    assert train.headline(result).endswith("0 of 5 epochs (7 updates); no epoch ended, so there is no model")


def test_ctrl_c_before_training_is_one_line(monkeypatch, capsys):
    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "run", press)
    assert main([*EASY, "--quiet"]) == 130
    assert capsys.readouterr().err == "keras-trainkit: interrupted\n"


def test_regression_rows_are_in_original_units():
    result = Result("completed", "houses", "regression", "x", epochs=5)
    result.test = {"loss": 0.2, "mae": 33271.2, "rmse": 5e4, "r2": 0.8012}
    assert dict(train.rows(result))["Test R2"] == "0.8012"
    assert dict(train.rows(result))["Test mean absolute error"] == "33,271.2"
    assert "Test accuracy" not in dict(train.rows(result))


def test_a_narrow_terminal_folds_the_table_but_not_the_commands(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    directory = "runs/" + "a-long-name-" * 8
    train.show(Result("completed", "easy", "classification", directory, epochs=5))
    lines = re.sub("\x1b[^m]*m", "", screen.getvalue()).splitlines()
    assert f"TensorBoard: tensorboard --logdir {shlex.quote(directory + '/tensorboard')}" in lines
    assert max(len(line) for line in lines if line.startswith("│")) <= 40
