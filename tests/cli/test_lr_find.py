"""`keras-trainkit lr-find`."""

import json

import numpy as np
import pytest

from keras_trainkit import recipes
from keras_trainkit.cli import lr_find
from keras_trainkit.cli.main import main
from keras_trainkit.finders.learning_rate_rules import COMBINED, RULES

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    np.savez(tmp_path / "easy.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    return tmp_path


def test_the_table_and_the_picture(here, capsys):
    options = ["--batch-size", "16", "--minimum", "1e-4", "--maximum", "1", "--steps", "20", "--sweeps", "2"]
    assert main(["lr-find", "--data", "easy.npz", *options, "--output", "found.png"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert "easy.npz: 81 train" in out and "Picture: found.png" in out and "2 sweeps" in out
    assert all(name in out for name in RULES)
    assert (here / "found.png").read_bytes().startswith(b"\x89PNG")
    assert not (here / "runs").exists()
    rate = float(out.partition("--learning-rate ")[2].split()[0])
    recipe = recipes.Recipe.from_dict({"data": "easy.npz", "batch_size": 16})
    found = recipes.find_learning_rate(recipe, minimum=1e-4, maximum=1.0, steps=20, seeds=2)
    assert rate == pytest.approx(found.suggestion, rel=0.01)


def test_json_and_nothing_else(capsys):
    options = ["--batch-size", "16", "--accumulation", "2", "--maximum", "1", "--steps", "10", "--sweeps", "1"]
    assert main(["lr-find", "--data", "easy.npz", *options, "--rule", "valley", "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["rule"] == "valley" and found["suggestion"] == found["suggestions"]["valley"]["rate"]
    assert len(found["sweeps"][0]["learning_rates"]) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minimum", "0"], ["--minimum", "above 0"]),
        (["--minimum", "1", "--maximum", "0.5"], ["--maximum"]),
        (["--steps", "5"], ["--steps", "10"]),
        (["--sweeps", "0"], ["--sweeps"]),
        (["--rule", "best"], ["--rule", "valley"]),
        (["--output", "picture.gif"], [".png, .svg, .pdf", "picture.gif"]),
        (["--output", "none/picture.png"], ["there is no folder none"]),
        (["--optimizer", "adm"], ["adam"]),
        (["--data", "none.npz"], ["none.npz"]),
        (["--data", "easy.npz", "--batch-size", "500"], ["lower batch_size"]),
        (["--step", "50"], ["--step"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, here, arguments, words):
    assert main(["lr-find", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-trainkit: error: ") and error.count("\n") == 1
    assert [word for word in words if word not in error] == []
    assert [path.name for path in here.iterdir()] == ["easy.npz"]


def test_the_rules_are_all_there():
    assert (COMBINED, *RULES) == lr_find.RULES
