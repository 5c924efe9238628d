"""`keras-trainkit report` and `compare`."""

import json
import subprocess
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


def test_a_report_of_a_search(here, capsys):
    searches = pytest.importorskip("written_searches")
    searches.write_search(here / "searches" / "first", [{"values": {"rate": 1e-3, "kind": "a"}, "score": 0.5}])
    assert main(["report", "searches/first"]) == 0
    assert capsys.readouterr().out == "searches/first/report.html\n"
    assert "found: search report" in (here / "searches/first/report.html").read_text(encoding="utf-8")
    url = f"sqlite:///{here / 'searches/first/search.db'}"
    assert main(["report", "found", "--storage", url, "--output", "page.html", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["best"] == {"trial": "00", "scores": {"val_loss": 0.5}, "values": {"rate": 1e-3, "kind": "a"}}
    assert shown["trials"] == {"completed": 1} and shown["report"] == "page.html" and (here / "page.html").exists()


def test_a_report_of_a_search_does_not_wait_for_tensorflow(here):
    searches = pytest.importorskip("written_searches")
    searches.write_search(here / "first", [{"values": {"rate": 1e-3, "kind": "a"}, "score": 0.5}])
    code = """if True:
        import sys
        sys.argv = ["keras-trainkit", "report", "first"]
        from keras_trainkit.cli.main import main
        assert main(sys.argv[1:]) == 0
        assert "optuna" in sys.modules and not {"tensorflow", "keras", "torch"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


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
        (["report", "runs"], "neither a run nor a search in runs"),
        (["report", "one", "--storage", "nonsense"], "database cannot be read"),
        (["report", "runs/one", "--output", "page.pdf"], "--output must end in .html"),
        (["report", "runs/one", "--output", "no/page.html"], "there is no folder no"),
        (["report"], "DIRECTORY"),
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
