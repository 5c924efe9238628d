"""`compare`, `plot`, and reports of what `fit` returned."""

import html.parser
import json
import re

import keras
import numpy as np
import pytest
from written_runs import write_run

from keras_trainkit import reporting


class Rows(html.parser.HTMLParser):
    """The cells of a page's tables, row by row; complains about tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.addresses = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open += [] if tag in self.VOID else [tag]
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(dict(attributes).get("class", "") + "|")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:-1] in (["tr"], ["td"], ["th"]) and data.strip():
            self.rows[-1][-1] += " ".join(data.split())


@pytest.fixture
def runs(tmp_path):
    fast = write_run(tmp_path / "fast", recipe={"optimizer": "lion"}, test={"accuracy": 0.75})
    slow = write_run(tmp_path / "slow", (1.0, 0.9), (0.5, 0.55), status="interrupted", test={"accuracy": 0.5})
    return [fast, slow]


def test_final_and_best_metrics_and_differences(runs):
    found = reporting.compare(runs)
    assert found.names == ["fast", "slow"]
    assert found.metrics[0]["val_loss"] == reporting.Metric(0.6, 0.5, 2)
    assert found.metrics[0]["val_accuracy"] == reporting.Metric(0.7, 0.8, 2)
    assert found.metrics[1]["val_loss"] == reporting.Metric(0.9, 0.9, 2)
    assert found.differences == {"optimizer": ["lion", "adam"]}
    table = str(found).splitlines()
    assert re.split(r"  +", table[0]) == [
        "run", "test accuracy", "val. loss", "val. accuracy", "epochs", "time", "samples/s",
    ]  # fmt: skip
    assert re.split(r"  +", table[1]) == [
        "fast", "0.7500", "0.6 (best 0.5, epoch 2)", "0.7000 (best 0.8000, epoch 2)", "3", "1 min 15 s", "100",
    ]  # fmt: skip
    assert "2 (interrupted)" in table[2] and re.split(r"  +", table[-1]) == ["optimizer", "lion", "adam"]


def test_json_is_plain(runs):
    found = json.loads(json.dumps(reporting.compare(runs).to_dict(), allow_nan=False))
    first, second = found["runs"]
    assert first["metrics"]["val_loss"] == {"final": 0.6, "best": 0.5, "epoch": 2}
    assert (first["updates"], first["epochs"], first["seconds"], second["status"]) == (150, 3, 75.2, "interrupted")
    assert found["differences"] == {"optimizer": ["lion", "adam"]}


def test_the_page_is_one_file_and_marks_the_best(runs, tmp_path):
    found = reporting.compare(runs, tmp_path / "page.html", names=["<b>one</b>", "two"])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Rows(text)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert len(page.addresses) == len(found.charts()) == 3  # both metrics and the speed
    assert "<b>one</b>" not in text and "script" not in text
    winners = [[cell for cell in row if cell.startswith("winner")] for row in page.rows]
    assert winners[1] == ["winner|0.7500", "winner|0.6best 0.5, epoch 2", "winner|0.7000best 0.8000, epoch 2"]
    assert winners[2] == [] and page.rows[-1] == ["|optimizer", "|lion", "|adam"]
    assert not list(tmp_path.glob("*.partial"))


def test_lines_of_charts_are_what_was_written(runs):
    chart = reporting.compare(runs).charts()[0]
    assert chart.title == "Loss" and [line.label for line in chart.lines] == ["fast", "slow"]
    np.testing.assert_array_equal(chart.lines[0].x, [50, 100, 150])
    np.testing.assert_array_equal(chart.lines[1].y, [1.0, 0.9])
    assert len({line.color for line in chart.lines}) == 2


def test_values_that_are_not_finite(tmp_path):
    found = reporting.compare([write_run(tmp_path / "bad", (0.5, None), (0.5, 0.6))])
    assert found.metrics[0]["val_loss"] == reporting.Metric(None, 0.5, 1)
    assert "not finite (best 0.5, epoch 1)" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.fixture
def history():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    x = np.ones((16, 2), "float32")
    return model.fit(x, x[:, :1], epochs=3, validation_split=0.5, verbose=0)


def test_what_fit_returned(history, runs, tmp_path):
    path = reporting.report(history, tmp_path / "fit.html")
    text = path.read_text(encoding="utf-8")
    assert "over the epochs" in text and "update" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
    rows = Rows(text).rows
    assert [row[0] for row in rows[1:4]] == ["|1", "|2", "|3"]
    mixed = reporting.compare({"mine": history, "first": runs[0]})
    assert mixed.names == ["mine", "first"]
    assert {chart.axis for chart in mixed.charts()} == {"epoch"}
    assert mixed.metrics[0]["val_loss"].final == history.history["val_loss"][-1]
    assert len(reporting.compare([history, history]).names) == 2


def test_a_picture_of_a_run(history, runs, tmp_path):
    figure = reporting.plot(history, tmp_path / "fit.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "MAE"]
    assert (tmp_path / "fit.png").read_bytes()[1:4] == b"PNG"
    y = figure.axes[0].lines[-1].get_ydata()
    np.testing.assert_allclose(y, history.history["val_loss"])
    assert reporting.plot(runs[0]).axes[0].get_xlabel() == "update"
    assert reporting.plot(runs[0] / "metrics.jsonl", columns=1).axes


def test_metrics_that_came_now_and_then_are_said_to_be_missing(tmp_path):
    path = reporting.report({"loss": [3, 2, 1], "val_loss": [2]}, tmp_path / "r.html")
    assert "val_loss: not one value for each epoch, so left out." in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: reporting.compare([]), ValueError, "`runs` must hold at least one run"),
        (lambda: reporting.compare("runs/1"), TypeError, "`runs` must be a list of runs"),
        (
            lambda: reporting.compare([{"loss": [1.0]}], names=["a", "b"]),
            ValueError,
            "`names` must name each of 1 runs",
        ),
        (lambda: reporting.compare([3]), TypeError, "a run is given by its directory"),
        (lambda: reporting.compare([{"loss": ["a"]}]), ValueError, "a history holds one number for each epoch"),
        (lambda: reporting.report({}), ValueError, "the history holds no epoch"),
        (lambda: reporting.report("none"), FileNotFoundError, "no run directory none"),
        (lambda: reporting.plot({"loss": [1.0]}, "a.gif"), ValueError, "`file` must end in .svg, .png, .pdf"),
    ],
)
def test_what_is_no_run(call, kind, words):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
