"""`keras-trainkit resume` in this process: a run that SIGTERM ended goes on and ends as one that was not."""

import json
import os
import signal

import keras
import numpy as np
import pytest

from keras_trainkit import recipes, reporting
from keras_trainkit.callbacks import resumable_training
from keras_trainkit.cli.main import main

RNG = np.random.default_rng(3)
OF_THE_MACHINE = (
    "time",
    "samples_per_second",
    "step_seconds",
    "data_wait",
    "compute_seconds",
    "host_memory",
    "device_memory",
)
RECIPE = {"data": "easy.npz", "epochs": 3, "batch_size": 16, "accumulation": 2, "optimizer": "schedulefreeadamw"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "report", lambda path: (path / "report.html").write_text("quick"))
    monkeypatch.setattr(resumable_training, "_ended", set())
    x = RNG.normal(size=(120, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    np.savez(tmp_path / "easy.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    return tmp_path


class Terminate(keras.callbacks.Callback):
    """Another process that ends this one after some steps."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1
        if self.steps == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def get_state(self):
        return {}

    def set_state(self, state):
        self.steps = 100


def lines(path):
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(OF_THE_MACHINE)} for line in found]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_run_goes_on_from_where_it_was_ended(here, capsys):
    recipe = recipes.Recipe.from_dict(RECIPE)
    whole = recipes.run(recipe, "whole", progress=False)
    with pytest.raises(SystemExit) as left:
        recipes.run(recipe, "cut", [Terminate()], progress=False)
    assert left.value.code == 0
    assert json.loads((here / "cut/result.json").read_text())["status"] == "interrupted"
    capsys.readouterr()
    with pytest.warns(UserWarning, match="Terminate#0 is gone"):
        assert main(["resume", "cut", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "completed" and result["test"] == whole.test and result["best"] == whole.best
    assert (result["epochs_completed"], result["updates"]) == (whole.epochs_completed, whole.updates)
    assert lines(here / "cut") == lines(here / "whole")
    one, other = (keras.saving.load_model(here / name / "model.keras") for name in ("whole", "cut"))
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_cannot_be_resumed(here, capsys):
    assert main(["resume", "nowhere"]) == 2
    assert "nowhere is not the directory of a run" in capsys.readouterr().err
    (here / "old").mkdir()
    (here / "old/recipe.json").write_text(json.dumps({"recipe": RECIPE, "resolved": {}, "save_every": None}))
    with pytest.raises(recipes.RecipeError, match="saved no states"):
        recipes.resume("old")
    assert main(["train", "--save-every", "often"]) == 2
    assert "`every` must be a number of batches" in capsys.readouterr().err
