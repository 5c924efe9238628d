"""`keras-trainkit report` and `compare`."""

import json
import sys
from pathlib import Path

import pytest

from keras_trainkit.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from written_runs import write_run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "one", test={"accuracy": 0.75})
    write_run(tmp_path / "runs" / "two", (0.8, 0.7), (0.5, 0.6), recipe={"learning_rate": 0.5})
    return tmp_path


def test_a_report_of_a_run(here, capsys):
    assert main(["report", "runs/one"]) == 0
    assert capsys.readouterr().out == "runs/one/report.html\n"
    assert "completed" in (here / "runs/one/report.html").read_text(encoding="utf-8")
    assert main(["report", "runs/one/metrics.jsonl", "--output", "page.html", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["report"] == "page.html" and shown["metrics"]["val_loss"]["best"] == 0.5
    assert (here / "page.html").exists()


def test_a_comparison(here, capsys):
    assert main(["compare", "runs/one", "runs/two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("one  ") and lines[2].startswith("two  ")
    assert lines[-1].split() == ["learning", "rate", "0.1", "0.5"]
    assert main(["compare", "runs/one", "runs/two", "--json", "--output", "both.html"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in shown["runs"]] == ["one", "two"] and shown["page"] == "both.html"
    assert (here / "both.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "runs/three"], "no run directory runs/three"),
        (["report", "runs"], "no run in runs"),
        (["report", "runs/one", "--output", "page.pdf"], "--output must end in .html"),
        (["report", "runs/one", "--output", "no/page.html"], "there is no folder no"),
        (["report"], "RUN"),
        (["compare", "runs/one", "runs/one/recipe.json"], "holds no line of a `metrics.jsonl`"),
        (["compare", "runs/one", "--jsn"], "--json"),
        (["compare"], "RUN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("keras-trainkit: error: ") and error.count("\n") == 1 and words in error
