"""`report`: one file that needs nothing else, with what the run has and without what it lacks."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from keras_trainkit import reporting
from keras_trainkit.reporting import charts, curves, page


class Page(html.parser.HTMLParser):
    """Tags, texts and addresses of a page; complains about tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.images, self.texts, self.tags = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "srcset", "action"):
                self.addresses.append(value)
            if tag == "img" and name == "alt":
                self.images.append(value.partition(" over")[0])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.texts.append(" ".join(data.split()))


def write_run(directory, status="completed", epochs=3, steps=30, loss_scale=False, **result):
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        line = {
            "kind": "step",
            "step": 10 * step,
            "epoch": 1 + step * epochs // (steps + 1),
            "loss": 1 / step + 0.01 * rng.random(),
            "learning_rate": 1e-3,
            "gradient_norm": 2.0 + rng.random(),
            "clipped_gradient_norm": 1.0,
            "update_to_weight_ratio": 1e-3,
            "samples_per_second": 1000.0,
        }
        lines.append(line | ({"loss_scale": 2.0**15} if loss_scale else {}))
    for epoch in range(1, epochs + 1):
        lines.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": 10 * steps * epoch // epochs,
                "loss": 1 / epoch,
                "accuracy": 1 - 0.5 / epoch,
                "val_loss": 0.9 / epoch,
                "val_accuracy": 1 - 0.4 / epoch,
                "learning_rate": 1e-3,
                "samples_per_second": 1234.5,
            }
        )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {"recipe": {"optimizer": "radam", "epochs": 3, "data": None}, "resolved": {"parameters": 4321}}
    (directory / "recipe.json").write_text(json.dumps(recipe))
    around = {"versions": {"keras": "3.15.1"}, "command": ["/usr/bin/keras-trainkit", "train"], "devices": ["CPU:0"]}
    (directory / "environment.json").write_text(json.dumps(around | {"started": "2026-01-02T03:04:05+00:00"}))
    if status is not None:
        outcome = {
            "status": status,
            "name": "digits",
            "epochs": 3,
            "epochs_completed": epochs,
            "best": {"metric": "val_accuracy", "value": 0.8, "epoch": 2},
            "test": {"loss": 0.25, "accuracy": 0.98765},
            "test_examples": 359,
            "seconds": 75.2,
        }
        (directory / "result.json").write_text(json.dumps(outcome | result))
    return directory


def page_of(directory):
    path = reporting.report(directory)
    assert path == directory / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_completed_run(tmp_path):
    shown = page_of(write_run(tmp_path))
    text = " ".join(shown.texts)
    assert shown.images == [
        "Loss", "Accuracy", "Learning rate", "Gradient norm", "Update to weight ratio", "Samples per second",
    ]  # fmt: skip
    assert "completed" in shown.texts and "digits" in shown.texts
    assert "0.9877" in shown.texts and "on 359 examples" in shown.texts and "1 min 15 s" in shown.texts
    assert "radam" in shown.texts and "3.15.1" in shown.texts and "2026-01-02 03:04:05 UTC" in shown.texts
    assert "4,321" in shown.texts and "keras-trainkit train" in shown.texts
    assert "val. accuracy" in shown.texts and "1,234" in shown.texts
    assert "interrupted" not in text and "was not finite" not in text and "missing" not in text


def test_it_is_one_file_that_works_offline(tmp_path):
    shown = page_of(write_run(tmp_path, loss_scale=True))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert shown.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in shown.addresses)
    assert "script" not in shown.tags and "link" not in shown.tags and "@import" not in text and "url(" not in text
    for address in shown.addresses:
        picture = base64.b64decode(address.partition(",")[2]).decode()
        assert picture.rstrip().endswith("</svg>")
        assert not re.search(r'href="(?!#)', picture)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_loss_scale_has_a_curve_when_there_is_one(tmp_path):
    assert "Loss scale" in page_of(write_run(tmp_path, loss_scale=True)).images


@pytest.mark.parametrize(
    ("status", "result", "sentence"),
    [
        ("interrupted", {"epochs_completed": 2}, "It completed 2 of 3 epochs. The model is that of epoch 2"),
        ("failed", {"error": "the loss is NaN at update 70"}, "Reason: the loss is NaN at update 70"),
        (None, {}, "There is no result"),
    ],
)
def test_runs_that_did_not_end_as_planned_say_so(tmp_path, status, result, sentence):
    shown = page_of(write_run(tmp_path, status, **result))
    assert (status or "unfinished") in shown.texts
    assert sentence in " ".join(shown.texts)


def test_values_that_are_not_finite(tmp_path):
    write_run(tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in text]
    for line in (*lines[4:6], lines[-1]):
        line |= {"loss": None, "nonfinite": ["loss"]}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = page_of(tmp_path)
    assert "Loss was not finite at 2 of 30 logged steps, first at update 50." in shown.texts
    assert "not finite" in shown.texts
    assert "Loss" in shown.images


def test_a_killed_run(tmp_path):
    write_run(tmp_path, status=None, epochs=0, steps=3)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[:-30])
    (tmp_path / "environment.json").unlink()
    shown = page_of(tmp_path)
    text = " ".join(shown.texts)
    assert "1 line of metrics.jsonl cannot be read." in text and "environment.json is missing." in text
    assert "No epoch was completed." in shown.texts and "20 updates" in shown.texts


def test_a_run_without_metrics(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    shown = page_of(tmp_path)
    assert shown.images == [] and "No step was logged." in shown.texts


def test_text_from_the_run_cannot_break_the_page(tmp_path):
    write_run(tmp_path, name="<script>alert(1)</script>", error="a < b & c")
    shown = page_of(tmp_path)
    assert "script" not in shown.tags
    assert "<script>alert(1)</script>" in shown.texts


def test_the_kept_epoch_is_marked(tmp_path):
    text = reporting.report(write_run(tmp_path)).read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="best".*?</tr>', text)
    assert len(rows) == 1 and "<td>2</td>" in rows[0]
    loss = charts.charts(reporting.read_run(tmp_path))[0]
    assert loss.best == 200.0


def test_curves_show_what_was_written(tmp_path):
    write_run(tmp_path)
    found = {chart.title: chart for chart in charts.charts(reporting.read_run(tmp_path))}
    accuracy = {line.label: line for line in found["Accuracy"].lines}
    np.testing.assert_allclose(accuracy["training"].y, [0.5, 0.75, 1 - 0.5 / 3])
    np.testing.assert_allclose(accuracy["validation"].y, [0.6, 0.8, 1 - 0.4 / 3])
    np.testing.assert_array_equal(accuracy["validation"].x, [100, 200, 300])
    assert [line.label for line in found["Gradient norm"].lines][-1] == "after clipping, smoothed"
    assert found["Loss"].scale == "log" and found["Accuracy"].scale == "linear"


def test_long_runs_are_thinned_and_keep_their_peaks():
    y = np.zeros(100_000)
    y[[12_345, 77_777]] = 9.0, -9.0
    x, thinned = curves.thin(np.arange(100_000.0), y)
    assert len(x) <= curves.MOST_POINTS
    assert {12_345.0, 77_777.0} <= set(x) and set(thinned) == {0.0, 9.0, -9.0}
    assert (np.diff(x) > 0).all()
    long = curves.Chart("Long", "", [curves.Series("y", np.arange(100_000.0), y)])
    assert len(curves.draw(long)) < 200_000


def test_gaps_stay_gaps():
    y = np.full(3000, np.nan)
    y[::3] = 1.0
    _, thinned = curves.thin(np.arange(3000.0), y)
    assert np.nanmax(thinned) == 1.0
    all_nan = curves.thin(np.arange(3000.0), np.full(3000, np.nan))[1]
    assert len(all_nan) == 600 and np.isnan(all_nan).all()


def test_a_drawing_is_the_same_each_time():
    chart = curves.Chart("Same", "", [curves.Series("y", np.arange(5.0), np.arange(5.0) ** 2)], best=3.0)
    assert curves.draw(chart) == curves.draw(chart)


@pytest.mark.parametrize("scale", ["linear", "log", "powers of 2"])
@pytest.mark.parametrize("values", [[1.0], [1.0, 1e6], [0.0, 5.0], [np.nan, 2.0], [1e-9, 2e-9]])
def test_every_scale_draws_all_values(scale, values):
    y = np.array(values)
    text = curves.draw(curves.Chart("Any", "", [curves.Series("y", np.arange(len(y)) + 1.0, y, marks=True)], scale))
    assert text.rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), "not finite"), (12345.6, "12,346"), (0.00012345, "0.0001234"), (3.0, "3"), ("a", "a"), ([], "")],
)
def test_shown(value, text):
    assert page.shown(value) == text
