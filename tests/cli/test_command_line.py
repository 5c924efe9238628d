"""The command without TensorFlow: help, list, version; every kind of bad input in one line, with nothing written."""

import json
import subprocess
import sys

import numpy as np
import pytest

from keras_trainkit import __version__
from keras_trainkit.cli.main import main

LIGHT = [
    ["plot-schedule", "--help"],
    ["lr-find", "--help"],
    ["--help"],
    ["--version"],
    [],
    ["list"],
    ["list", "adam", "--json"],
    ["train", "--help"],
    ["doctor", "--help"],
    ["report", "--help"],
    ["compare", "--help"],
    ["autopsy", "--help"],
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_import_neither_tensorflow_nor_keras(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "keras_trainkit", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "keras_trainkit" in imported
    assert imported & {"tensorflow", "keras", "numpy", "rich", "matplotlib", "sklearn"} == set()


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"keras-trainkit {__version__}\n")
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("train", "list", "plot-schedule", "doctor"))


def test_every_recipe_key_has_an_option(capsys):
    from keras_trainkit.recipes import Recipe

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert [key for key in Recipe().to_dict() if "--" + key.replace("_", "-") not in shown] == []


def test_list_shows_kinds_names_and_summaries(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "optimizers"
    assert any(line.startswith("  RAdam ") and "Adam that warms itself up" in line for line in lines)
    assert {"schedules", "layers", "callbacks"} <= set(lines)


def test_list_has_columns_for_optimizers(capsys):
    assert main(["list", "adam[w]"]) == 0
    kind, header, line = capsys.readouterr().out.splitlines()
    assert kind == "optimizers"
    assert header.split() == ["optimizer", "year", "paper", "state", "bytes/parameter", "sparse", "gradients"]
    assert line.split()[:5] == ["AdamW", "2017", "arXiv:1711.05101", "8", "dense"]
    assert line.index("arXiv") == header.index("paper") and "weight decay" in line


def test_list_as_json_filters_by_pattern(capsys):
    assert main(["list", "adam[w]", "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)
    assert (part["kind"], part["name"], part["is_class"]) == ("optimizers", "AdamW", True)
    assert part["summary"]
    assert part["info"] == {
        "year": 2017, "paper": "arXiv:1711.05101", "state_bytes": 8, "sparse": "dense", "constant_rate": False
    }  # fmt: skip


def test_lines_are_cut_only_in_a_terminal():
    from keras_trainkit.cli import listing
    from keras_trainkit.recipes.catalog import Part

    part = Part("layers", "Wide", True, "x" * 100)
    assert listing.text([part], None).splitlines()[1] == "  Wide  " + "x" * 100
    cut = listing.text([part], 40).splitlines()[1]
    assert len(cut) == 40 and cut.endswith("x...")


def refused(capsys, here, arguments, code=2):
    """Runs the command, which must fail in one line and write nothing; returns the line."""
    before = sorted(here.rglob("*"))
    assert main(arguments) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("keras-trainkit: error: ") and error.count("\n") == 1
    assert sorted(here.rglob("*")) == before
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["trian", "train"]),
        (["list", "adaam"], ["'adaam'", "'Adam'"]),
        (["list", "adam", "sgd"], ["unknown argument sgd"]),
        (["train", "--optimzer", "adam"], ["--optimzer", "'--optimizer'"]),
        (["train", "--optimizer", "radm"], ["'radm'", "'radam'"]),
        (["train", "--learning-rate", "-1"], ["`learning_rate`", "above 0", "-1"]),
        (["train", "--learning-rate=-0.5"], ["`learning_rate`", "-0.5"]),
        (["train", "--learning-rate", "fast"], ["--learning-rate", "'fast'"]),
        (["train", "--epochs", "0"], ["`epochs`"]),
        (["train", "--schedule", "linar"], ["--schedule", "linar", "linear", "cosine"]),
        (["train", "--precision", "float16"], ["float16", "mixed_float16"]),
        (["train", "--replicas", "2", "--batch-size", "31"], ["multiple of `replicas`"]),
        (["train", "--target", "price"], ["`target`", "`data`"]),
        (["train", "--model", "nets"], ["module:function"]),
        (["train", "--config", "none.json"], ["no such recipe file", "none.json"]),
        (["train", "--config", "typo.json"], ["'lerning_rate'", "'learning_rate'"]),
        (["train", "--data", "none.npz"], ["none.npz", "no such file"]),
        (["train", "--data", "text.npz"], ["text.npz", "npz"]),
        (["train", "--data", "half.npz"], ["half.npz", "y_train"]),
        (["train", "--data", "nan.npz"], ["`x_train`", "2 NaN", "(3, 0)"]),
        (["train", "--data", "labels.npz"], ["labels out of range", "`y_test`", "99"]),
        (["train", "--data", "table.csv"], ["target", "size, price"]),
        (["train", "--data", "table.csv", "--target", "prize"], ["`prize`", "'price'"]),
        (["train", "--run-dir", "old"], ["old", "exists", "--overwrite"]),
        (["train", "--run-dir", "home", "--overwrite"], ["home", "something else"]),
        (["train", "--run-dir", "table.csv"], ["table.csv", "is a file"]),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, here, arguments, words):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 3)).astype("float32"), np.arange(40) % 4
    (here / "text.npz").write_text("hello")
    np.savez(here / "half.npz", x_train=x, x_test=x, y_test=y)
    x_nan = x.copy()
    x_nan[3, 0] = x_nan[5, 1] = np.nan
    np.savez(here / "nan.npz", x_train=x_nan, y_train=y, x_test=x, y_test=y)
    np.savez(here / "labels.npz", x_train=x, y_train=y, x_test=x, y_test=np.where(y == 3, 99, y))
    (here / "table.csv").write_text("size,price\n" + "".join(f"{i},{i * 1.5}\n" for i in range(30)))
    (here / "typo.json").write_text('{"lerning_rate": 0.1}')
    (here / "old").mkdir()
    (here / "home").mkdir()
    (here / "home" / "letter.txt").write_text("dear")
    line = refused(capsys, here, arguments)
    assert [word for word in words if word not in line] == []


def test_options_override_the_file(here):
    from keras_trainkit.cli.main import make_parser
    from keras_trainkit.cli.train import recipe_of

    (here / "recipe.json").write_text(
        '{"epochs": 3, "optimizer": {"name": "adam", "beta_1": 0.8}, "global_clipnorm": 5}'
    )
    given = make_parser().parse_args(
        ["train", "--config", "recipe.json", "--epochs", "4", "--seed", "7", "--global-clipnorm", "none"]
    )
    recipe = recipe_of(given)
    assert (recipe.epochs, recipe.seed, recipe.global_clipnorm) == (4, 7, None)
    assert recipe.optimizer == {"name": "adam", "beta_1": 0.8}


def test_a_reader_that_goes_away_is_no_traceback():
    command = [sys.executable, "-m", "keras_trainkit", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1
