"""`read_run`: whole runs, resumed ones, and what a killed one leaves."""

import json

import pytest

from keras_trainkit import reporting


def write(directory, name, content):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


def write_lines(directory, *lines):
    write(directory, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def step(number, **values):
    return {"kind": "step", "step": number, "epoch": 1, **values}


def test_a_whole_run(tmp_path):
    write(tmp_path, "recipe.json", {"recipe": {"epochs": 2}, "resolved": {"parameters": 9}})
    write(tmp_path, "environment.json", {"versions": {"keras": "3"}})
    write(tmp_path, "result.json", {"status": "completed", "name": "digits"})
    write_lines(tmp_path, step(1), step(2), {"kind": "epoch", "epoch": 1, "step": 2, "loss": 0.5})
    run = reporting.read_run(tmp_path)
    assert run.recipe == {"epochs": 2} and run.resolved == {"parameters": 9}
    assert run.environment == {"versions": {"keras": "3"}}
    assert run.status == "completed" and run.name == "digits"
    assert [line["step"] for line in run.steps] == [1, 2]
    assert run.epochs == [{"kind": "epoch", "epoch": 1, "step": 2, "loss": 0.5}]
    assert run.problems == []


def test_a_plain_recipe(tmp_path):
    write(tmp_path, "recipe.json", {"epochs": 2})
    assert reporting.read_run(tmp_path).recipe == {"epochs": 2}


def test_a_torn_last_line_and_missing_files(tmp_path):
    write_lines(tmp_path, step(1), step(2))
    text = (tmp_path / "metrics.jsonl").read_text()
    write(tmp_path, "metrics.jsonl", text + '{"kind": "step", "ste')
    write(tmp_path, "recipe.json", '{"recipe": ')
    write(tmp_path, "environment.json", "[1]")
    run = reporting.read_run(tmp_path)
    assert [line["step"] for line in run.steps] == [1, 2]
    assert run.recipe == run.environment == run.result == {}
    assert run.status == "unfinished" and run.name == tmp_path.name
    assert run.problems == [
        "recipe.json cannot be read (JSONDecodeError).",
        "1 line of metrics.jsonl cannot be read.",
        "environment.json holds no object.",
        "result.json is missing.",
    ]


def test_a_torn_line_in_the_middle(tmp_path):
    write(tmp_path, "metrics.jsonl", '{"kind": "step", "step": 1}\n{"kind": "st\n3\n{"kind": "step", "step": 2}\n\n')
    run = reporting.read_run(tmp_path)
    assert [line["step"] for line in run.steps] == [1, 2]
    assert "2 lines of metrics.jsonl cannot be read." in run.problems


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write_lines(
        tmp_path,
        *(step(n, loss=1.0) for n in (10, 20, 30, 40)),
        {"kind": "epoch", "epoch": 1, "step": 25, "loss": 1.0},
        *(step(n, loss=2.0) for n in (30, 40, 50)),
        {"kind": "epoch", "epoch": 1, "step": 25, "loss": 2.0},
    )
    run = reporting.read_run(tmp_path)
    assert [(line["step"], line["loss"]) for line in run.steps] == [(10, 1), (20, 1), (30, 2), (40, 2), (50, 2)]
    assert [line["loss"] for line in run.epochs] == [2.0]


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run directory"):
        reporting.read_run(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no run in"):
        reporting.read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run in"):
        reporting.report(tmp_path)
    assert list(tmp_path.iterdir()) == []
