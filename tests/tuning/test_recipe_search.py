"""`tuning.tune` and `keras-trainkit tune`: the folder, the best recipe, and going on."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from keras_trainkit import reporting
from keras_trainkit.cli import tune as command
from keras_trainkit.cli.errors import BadInput
from keras_trainkit.cli.main import main
from keras_trainkit.recipes import Recipe, RecipeError
from keras_trainkit.tuning import TrainingSpace, recipe_search, tune
from keras_trainkit.tuning.recipe_search import Settings

pytestmark = pytest.mark.tensorflow

NET = """
import keras

def small(input_shape, outputs):
    return keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(outputs)])
"""
SPACE = TrainingSpace(learning_rate=(1e-5, 1e-1))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "report", lambda path: (path / "report.html").write_text("quick"))
    monkeypatch.setattr(reporting, "report_search", lambda path: (path / "report.html").write_text("quick"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "tune_net.py").write_text(NET)
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 3)).astype("float32")
    y = (x @ [1.0, -2.0, 0.5] > 0).astype("int64")
    np.savez("easy.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    yield tmp_path
    sys.modules.pop("tune_net", None)


def easy(**keys):
    return Recipe(data="easy.npz", model="tune_net:small", epochs=2, batch_size=16, learning_rate=1e-4, **keys)


def values(found):
    return found.best["values"]


def test_the_best_recipe_is_better_than_the_one_given_and_runs_as_it_did(here):
    found = tune(easy(), SPACE, Settings(trials=5), progress=False)
    folder = here / "searches" / "easy-1"
    assert (found.status, found.directory, found.trials["completed"]) == ("completed", "searches/easy-1", 5)
    assert found.first["values"] == {"learning_rate": 1e-4} and found.first["trial"] == "0"
    assert found.best["score"] < 0.8 * found.first["score"]
    recipe = Recipe.from_file(folder / "best.json")
    assert recipe.to_dict() == found.recipe == easy().to_dict() | values(found)
    lines = [json.loads(line) for line in (folder / "best" / "metrics.jsonl").read_text().splitlines()]
    assert min(line["val_loss"] for line in lines if line["kind"] == "epoch") == found.best["score"]
    assert found.result["test"]["accuracy"] == json.loads((folder / "best/result.json").read_text())["test"]["accuracy"]
    assert (folder / "report.html").exists()
    assert main(["train", "--config", str(folder / "best.json"), "--quiet"]) == 0


def test_a_search_goes_on_with_what_was_tried(here):
    whole = tune(easy(), SPACE, Settings(trials=5), "whole", progress=False, train_best=False)
    tune(easy(), SPACE, Settings(trials=3), "parts", progress=False, train_best=False)
    rest = recipe_search.resume("parts", trials=5, progress=False, train_best=False)
    assert rest.trials["completed"] == 5
    assert (values(rest), rest.best["score"]) == (values(whole), whole.best["score"])
    facts = json.loads((here / "parts/search.json").read_text())
    assert facts["settings"]["trials"] == 5 and facts["space"]["learning_rate"]["low"] == 1e-5


def test_ctrl_c_keeps_what_was_tried(here, monkeypatch, capsys):
    from keras_trainkit.tuning.training_models import RecipeModel

    fit, calls = RecipeModel.fit, []

    def pressed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(RecipeModel, "fit", pressed)
    arguments = ["tune", "--data", "easy.npz", "--model", "tune_net:small", "--epochs", "2", "--trials", "4"]
    assert main([*arguments, "--workers", "0", "--quiet"]) == 130
    out, _ = capsys.readouterr()
    assert "2 completed" in out and "Go on: keras-trainkit tune --resume searches/easy-1" in out
    assert not (here / "searches/easy-1/best").exists() and (here / "searches/easy-1/best.json").exists()
    monkeypatch.setattr(RecipeModel, "fit", fit)
    assert main(["tune", "--resume", "searches/easy-1", "--json", "--skip-best-run"]) == 0
    out, _ = capsys.readouterr()
    found = json.loads(out)
    assert (found["status"], found["trials"]["completed"], found["result"]) == ("completed", 4, None)


def test_all_that_fails_is_a_failure_with_its_reason(here, capsys):
    arguments = ["tune", "--data", "easy.npz", "--model", "tune_net:small", "--epochs", "1", "--trials", "2"]
    assert main([*arguments, "--search", "batch_size=500,600", "--workers", "0", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "2 failed" in out and "lower batch_size" in " ".join(out.split())


def test_trials_that_fall_behind_end_early_but_not_before_a_third_of_the_run():
    model = recipe_search.RecipeModel(Recipe(epochs=20), SPACE, None)
    plan = recipe_search._plan(model, Settings())
    assert plan.pruner._min_resource == 6 and "successive halving from epoch 6 on" in plan.reasons[-1]
    for settings, epochs in [(Settings(prune=False), 20), (Settings(sampler="grid"), 20), (Settings(), 5)]:
        model = recipe_search.RecipeModel(Recipe(epochs=epochs), SPACE, None)
        assert recipe_search._plan(model, settings).pruner is None
    assert recipe_search._plan(model, Settings(sampler="grid")).grid


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trials": 0}, "`trials` must be an integer at least 1"),
        ({"objective": "accuracy"}, "Did you mean 'val_accuracy'"),
        ({"sampler": "tpf"}, "Did you mean 'tpe'"),
        ({"time_budget": 0}, "`time_budget` must be a number above 0"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(RecipeError, match=words):
        Settings(**settings)


def test_what_is_wrong_shows_before_anything_is_written(here):
    (here / "other").mkdir()
    (here / "other" / "file").write_text("mine")
    for arguments, words in [
        ((easy(), TrainingSpace()), "nothing to search"),
        ((easy(), SPACE, Settings(objective="val_r2")), "`objective` must be one of val_loss, val_accuracy"),
        ((easy(dropout=0.5), SPACE), "`dropout` has no effect"),
        ((easy(), SPACE, None, "other"), "the search directory other exists"),
    ]:
        with pytest.raises(RecipeError, match=words):
            tune(*arguments, progress=False)
    with pytest.raises(RecipeError, match="holds something else than a search"):
        tune(easy(), SPACE, None, "other", progress=False, overwrite=True)
    with pytest.raises(RecipeError, match="is not the directory of a search"):
        recipe_search.resume("other")
    written = {child.name for child in here.iterdir()} - {"__pycache__"}
    assert written == {"easy.npz", "other", "tune_net.py"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "learning_rat"], "no key 'learning_rat'. Did you mean 'learning_rate'"),
        (["--search", "dropout=low:high"], "needs two numbers. Received: low:high"),
        (["--search", "optimizer=adamv"], "Did you mean 'adam"),
        (["--time-budget", "soon"], "--time-budget must be a time such as 90s"),
        (["--time-budget", "3ep"], "--time-budget must be a time such as 90s"),
        (["--trials", "0"], "`trials` must be an integer at least 1"),
        (["--resume", "nowhere"], "nowhere is not the directory of a search"),
        (["--resume", "nowhere", "--epochs", "3"], "--epochs does not go with --resume"),
        (["--data", "none.csv"], "none.csv"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(capsys, arguments, words):
    assert main(["tune", "--data", "easy.npz", "--quiet", *arguments]) == 2 or "--resume" in arguments
    error = capsys.readouterr().err
    assert words in error or "--data does not go with --resume" in error
    assert error.count("\n") == 1


def test_keys_of_the_command_line():
    assert command.parsed("batch-size=16,32") == ("batch_size", [16, 32])
    assert command.parsed("learning_rate=1e-4:1e-2") == ("learning_rate", (1e-4, 1e-2))
    assert (command.seconds_of("90s"), command.seconds_of("2h")) == (90.0, 7200.0)
    with pytest.raises(BadInput):
        command.seconds_of("5")


def test_a_file_of_a_space_and_keys_together(here):
    (here / "space.json").write_text('{"learning_rate": {"low": 0.001, "high": 0.1}, "warmup": [0.0, 0.2]}')
    arguments = ["tune", "--data", "easy.npz", "--model", "tune_net:small", "--epochs", "1", "--trials", "2"]
    options = ["--space", "space.json", "--search", "optimizer=adamw,lion", "--no-pruning", "--sampler", "random"]
    assert main([*arguments, *options, "--workers", "0", "--quiet", "--skip-best-run"]) == 0
    facts = json.loads((here / "searches/easy-1/search.json").read_text())
    assert set(facts["space"]) == {"learning_rate", "warmup", "optimizer"} and facts["settings"]["prune"] is False


@pytest.mark.slow
def test_processes_of_trials_write_into_a_file_of_their_own(here, capfd):
    (here / "tune_net.py").write_text(NET.replace("def small", "print('built by a trial')\n\ndef small"))
    arguments = ["tune", "--data", "easy.npz", "--model", "tune_net:small", "--epochs", "1", "--trials", "2"]
    capfd.readouterr()
    assert main([*arguments, "--workers", "1", "--quiet", "--json", "--skip-best-run"]) == 0
    out, _ = capfd.readouterr()
    assert json.loads(out)["trials"]["completed"] == 2
    assert "built by a trial" in (here / "searches/easy-1/workers.log").read_text()
