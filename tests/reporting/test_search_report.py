"""`report_search`: one file that tells a search, whatever became of it; and what it concludes from the trials."""

import base64
import dataclasses
import math
import sys

import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from test_report import Page
from written_searches import KIND, LAYERS, RATE, optuna, parameter, write_search

from keras_trainkit import reporting
from keras_trainkit.reporting import search_charts, search_insight, search_page, search_reading
from keras_trainkit.reporting.search_reading import Parameter


def trial(rate=1e-2, kind="a", layers=None, **more):
    values = {"rate": rate, "kind": kind} | ({} if layers is None else {"layers": layers})
    return {"values": values, **more}


def scored(count, seed=0, at=-1.0):
    """Trials whose score depends on the rate and on the layers where they are there; best at 10^at."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        rate, kind = float(10 ** rng.uniform(-4, -1)), "ab"[number % 2]
        layers = int(rng.integers(1, 9)) if kind == "b" else None
        score = (math.log10(rate) - at) ** 2 + 0.05 * (layers or 1)
        curve = [score + math.exp(-epoch) for epoch in range(4)]
        found.append(trial(rate, kind, layers, score=min(curve), curve=curve))
    return found


def page_of(folder, **kwargs):
    path = reporting.report_search(folder, **kwargs)
    return Page(path.read_text(encoding="utf-8"))


def table_of(shown, first):
    """The texts of a page from one on."""
    return shown.texts[shown.texts.index(first) :]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """30 trials of every kind, and what the report makes of them."""
    trials = scored(26)
    trials[7] |= {"early": "pruned at epoch 4"}
    trials += [
        trial(2e-3, "b", 3, status="FAILED", message="ValueError: a <b> & c\n\nTraceback\n  deep <i>down</i>"),
        trial(2e-4, "b", 3, status="FAILED", message="ValueError: a <b> & c\n\nTraceback\n  elsewhere", curve=[2.0]),
        trial(3e-4, status="FAILED", message="it hung", runs=3),
        trial(3e-4, status="RUNNING", curve=[3.0, 2.0]),
    ]
    folder = write_search(tmp_path_factory.mktemp("searches") / "mixed", trials)
    return folder, page_of(folder)


def test_what_the_page_of_a_search_holds(mixed):
    folder, shown = mixed
    assert shown.texts[0] == "found: search report"
    headings = [
        "Ranges to widen",
        "Course",
        "Learning curves",
        "Importance",
        "Each hyperparameter",
        "Failures",
        "Trials",
    ]
    places = [shown.texts.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "30" in shown.texts and "25 completed, 1 pruned, 3 failed, 1 running" in shown.texts
    assert "1 min 15 s" in shown.texts and "2 runs were begun again" in shown.texts
    assert "1 trial has not ended: the search goes on, or was ended from outside." in shown.texts
    best = reporting.read_search(folder).best()
    assert best.score == min(t["score"] for t in scored(26))
    assert f"Best trial, {best.trial_id}" in shown.texts
    named = [text.partition(":")[0] for text in shown.images]
    assert named == [
        "Best so far, by trials", "Best so far, by epochs", "Learning curves", "Parallel coordinates", "Importance",
        "rate", "kind", "layers",
    ]  # fmt: skip


def test_it_is_one_file_that_works_offline(mixed):
    folder, shown = mixed
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert shown.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in shown.addresses)
    assert "script" not in shown.tags and "link" not in shown.tags and "url(" not in text and len(text) < 1_000_000
    assert all(base64.b64decode(a.partition(",")[2]).rstrip().endswith(b"</svg>") for a in shown.addresses)


def test_failures_are_told_by_their_reasons(mixed):
    _, shown = mixed
    told = table_of(shown, "Failures")
    assert told[4:9] == ["ValueError: a <b> & c", "Traceback deep <i>down</i>", "2", "26, 27", "it hung"]
    assert "i" not in shown.tags and "elsewhere" not in told


def test_the_table_is_sorted_and_leaves_out_what_is_not_there(mixed):
    folder, _ = mixed
    results = reporting.read_search(folder)
    table = search_page.trial_table(results)
    assert table["heads"] == ["trial", "val_loss", "status", "epochs", "seconds", "rate", "kind", "layers", "remark"]
    scores = [float(row["cells"][1]) for row in table["rows"][:26]]
    assert scores == sorted(scores) and len(table["rows"]) == 30
    assert [row["best"] for row in table["rows"]] == [True] + 29 * [False]
    by_name = {row["cells"][0]: row["cells"] for row in table["rows"]}
    assert by_name["00"][6:8] == ["a", ""] and by_name["26"][1:3] == ["", "failed"]
    assert by_name["07"][2] == "pruned" and by_name["07"][8] == "pruned at epoch 4" and by_name["27"][3] == "1"


def test_values_of_a_branch_that_was_not_taken_do_not_count(tmp_path):
    write_search(tmp_path, [trial(kind="a", layers=5, score=1.0)])
    assert "layers" not in reporting.read_search(tmp_path).trials[0].values


def test_the_curve_of_a_trial_that_went_on_has_the_epochs_before_the_kill(tmp_path):
    def run(first, values):
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL, intermediate_values=dict(enumerate(values, first))
        )

    points = search_reading._points
    assert points([run(0, [3.0, 2.0, 1.5]), run(2, [1.4, 1.0])]) == {0: 3.0, 1: 2.0, 2: 1.4, 3: 1.0}
    assert points([run(0, [3.0, 2.0]), run(0, [2.5])]) == {0: 2.5}  # it began anew


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        ([], "No trial was begun."),
        ([trial(score=0.5)], "1 trial with a score: importance takes 20."),
        ([trial(status="FAILED", message="no")] * 3, "All trials failed."),
        ([trial(score=math.nan), trial(score=None)], "No trial has a score."),
        ([trial(score=math.inf, curve=[math.inf, 1.0])], "1 completed trials have no finite score."),
    ],
)
def test_searches_with_little_to_tell(tmp_path, trials, sentence):
    shown = page_of(write_search(tmp_path, trials))
    assert sentence in " ".join(shown.texts)


def test_words_alone_and_names_that_look_like_html_or_formulas(tmp_path):
    odd = parameter("Choice", "<b>$x^{$</b>", values=["<u>", "$y$", "&"], ordered=False)
    trials = [{"values": {"<b>$x^{$</b>": "<u>", "yes": True}, "score": 1.0, "curve": [2.0, 1.0]}] * 2
    space = [odd, parameter("Boolean", "yes", default=False)]
    shown = page_of(write_search(tmp_path, trials, space, [("<i>loss", "max")], name="<script>"))
    assert "script" not in shown.tags and "b" not in shown.tags and "i" not in shown.tags and "u" not in shown.tags
    assert "<b>$x^{$</b>" in shown.texts and "<script>: search report" in shown.texts


def test_several_objectives(tmp_path):
    points = [[0.1, 5.0], [0.2, 9.0], [0.3, 4.0], [0.2, 8.0], [0.05, 1.0]]
    trials = [trial(score=point) for point in points]
    write_search(tmp_path, trials, objectives=[("val_loss", "min"), ("speed", "max")])
    results = reporting.read_search(tmp_path)
    assert results.best() is None and [t.trial_id for t in results.front()] == ["04", "00", "01"]
    shown = page_of(tmp_path)
    assert "Pareto front" in shown.texts and "3 trials that no other beats in every objective" in shown.texts
    assert [row["best"] for row in search_page.trial_table(results)["rows"]] == [True, True, True, False, False]
    assert [front["trial"] for front in results.to_dict()["front"]] == ["04", "00", "01"]


def test_best_so_far_counts_epochs_of_all_trials_and_goes_in_the_right_direction(tmp_path):
    trials = [
        trial(score=0.5, curve=[0.4, 0.5]),
        trial(status="FAILED", message="no", curve=[0.1]),
        trial(score=0.3, curve=[0.3]),
        trial(score=0.8, curve=[0.1, 0.2, 0.8]),
    ]
    write_search(tmp_path, trials, objectives=[("val_accuracy", "max")])
    course = search_insight.progress(reporting.read_search(tmp_path))
    np.testing.assert_array_equal(course.best, [0.5, 0.5, 0.5, 0.8])
    np.testing.assert_array_equal(course.scores, [0.5, math.nan, 0.3, 0.8])
    np.testing.assert_array_equal(course.epochs, [2, 3, 4, 7])
    np.testing.assert_array_equal(course.trials, [1, 2, 3, 4])


def test_time_in_which_nothing_ran_does_not_count():
    made = [
        search_reading.SearchTrial(n, str(n), {}, "completed", (1.0,), (), "", spans, n, 0, len(spans))
        for n, spans in enumerate([((0.0, 10.0),), ((5.0, 20.0),), ((1000.0, 1010.0), (2000.0, 2005.0))])
    ]
    results = reporting.SearchResults("s", None, (("loss", "min"),), (), tuple(made), 40.0, {})
    np.testing.assert_array_equal(search_insight.progress(results).seconds, [10, 20, 35])


def test_importance_finds_what_matters_and_what_chance_would_find(mixed, tmp_path):
    folder, _ = mixed
    found = search_insight.importance(reporting.read_search(folder))
    assert next(iter(found.shares)) == "rate" and found.shares["rate"] > 0.5 > found.chance
    assert set(found.shares) == {"rate", "kind", "layers"} and found.trials == 26
    # By ranks: however far off the worst trials are, it is the same.
    results = reporting.read_search(folder)
    far_off = [dataclasses.replace(t, scores=(math.exp(5 * t.score),)) for t in results.trials]
    assert search_insight.importance(dataclasses.replace(results, trials=tuple(far_off))) == found
    same = [trial(rate=rate, score=1.0) for rate in np.geomspace(1e-4, 1e-1, 25).tolist()]
    write_search(tmp_path / "same", same, [RATE, KIND])
    assert "fewer than two" in search_insight.importance(reporting.read_search(tmp_path / "same"))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (-0.5, "upper edge of its range [0.0001, 0.1]"),
        (-4.5, "lower edge of its range [0.0001, 0.1]"),
        (-2.5, None),
    ],
)
def test_ranges_to_widen(tmp_path, at, expected):
    space = [RATE, KIND, LAYERS]
    found = search_insight.edge_warnings(reporting.read_search(write_search(tmp_path, scored(60, at=at), space)))
    # The layers are best at 1, below which there are none.
    assert len(found) == (expected is not None)
    if expected:
        assert found[0].startswith("The best rate, ") and expected in found[0]
        assert "widen it, to 1 for example." in found[0] or "widen it, to 1e-05 for example." in found[0]


def test_one_good_trial_at_the_edge_is_chance(tmp_path):
    trials = [trial(rate, score=(math.log10(rate) + 2.5) ** 2) for rate in np.geomspace(1e-4, 1e-1, 40).tolist()]
    trials.append(trial(1e-1, score=-1.0))
    assert search_insight.edge_warnings(reporting.read_search(write_search(tmp_path, trials))) == []


def test_edges_of_linear_ranges_and_ordered_choices(tmp_path):
    space = [
        parameter("Float", "momentum", min_value=0.5, max_value=0.9, sampling="linear", step=None),
        parameter("Choice", "units", values=[64, 16, 32], ordered=True),
        parameter("Float", "dropout", min_value=0.0, max_value=1.0, sampling="linear", step=None),
    ]
    rng = np.random.default_rng(0)
    values = [
        {
            "momentum": 0.9 - 0.4 * rng.random() ** 3,
            "units": int(rng.choice([16, 32, 64])),
            "dropout": rng.uniform(0, 0.5),
        }
        for _ in range(80)
    ]
    trials = [{"values": v, "score": -10 * v["momentum"] - v["units"] / 8 + 5 * v["dropout"]} for v in values]
    found = search_insight.edge_warnings(reporting.read_search(write_search(tmp_path, trials, space)))
    assert [text.split(",")[0] for text in found] == ["The best momentum", "The best units"]
    assert "to 1.1 for example" in found[0] and "to 128 for example" in found[1]


@pytest.mark.parametrize(("low", "told"), [(0.0, 0), (0.01, 1)])
def test_a_lower_end_of_0_cannot_be_moved(tmp_path, low, told):
    dropout = parameter("Float", "dropout", min_value=low, max_value=1.0, sampling="linear", step=None)
    trials = [{"values": {"dropout": value}, "score": value} for value in np.linspace(low, 1.0, 40).tolist()]
    assert len(search_insight.edge_warnings(reporting.read_search(write_search(tmp_path, trials, [dropout])))) == told


def test_of_three_choices_the_last_one_is_met_too_easily(tmp_path):
    units = parameter("Choice", "units", values=[16, 32, 64], ordered=True)
    trials = [{"values": {"units": value}, "score": float(n)} for n, value in enumerate([64, 64, 32, 64, *[16] * 8])]
    assert search_insight.edge_warnings(reporting.read_search(write_search(tmp_path / "three", trials, [units]))) == []
    trials[2]["values"] = {"units": 64}
    (text,) = search_insight.edge_warnings(reporting.read_search(write_search(tmp_path / "four", trials, [units])))
    assert "range [16, 64], and so are 4 of the best 4 trials: widen it, to 128 for example." in text


def test_one_diverged_trial_does_not_flatten_the_picture():
    assert search_charts.axis_of_scores([0.1, 0.2, 0.15, 1e6], 1) == ("log", None, 0)
    scale, limits, outside = search_charts.axis_of_scores([0.9, 0.8, 0.85, -1e6], -1)
    assert scale == "linear" and outside == 1 and 0.7 < limits[0] < 0.8 < 0.9 < limits[1] < 1
    assert search_charts.axis_of_scores([0.9, 0.8, 0.85], -1) == ("linear", None, 0)


def test_places_on_every_scale():
    assert Parameter("x", 1.0, 3.0).place(2.5) == 0.75
    assert Parameter("x", 1e-4, 1e-2, "log").place(1e-3) == pytest.approx(0.5)
    reverse = Parameter("x", 0.01, 1.0, "reverse_log")
    assert reverse.place(0.01) == pytest.approx(0.0) and reverse.place(1.0) == pytest.approx(1.0)
    assert reverse.place(0.91) == pytest.approx(0.5)
    assert math.isnan(Parameter("x", 1.0, 3.0).place("a")) and math.isnan(Parameter("x", 1.0, 3.0).place(None))
    assert Parameter("k", choices=("a", "b", 3)).place(3) == 1.0 and math.isnan(
        Parameter("k", choices=("a",)).place("z")
    )


def test_a_thousand_trials_are_a_small_page(tmp_path):
    space = [RATE, *(parameter("Float", f"p{i}", min_value=0.0, max_value=1.0, sampling="linear") for i in range(7))]
    rng = np.random.default_rng(0)
    made = []
    for number in range(1000):
        values = {"rate": float(10 ** rng.uniform(-4, -1)), **{f"p{i}": float(rng.random()) for i in range(7)}}
        score = values["p1"] + 0.1 * rng.random()
        status = "failed" if number % 10 == 3 else "completed"
        curve = tuple((epoch, score + 1 / epoch) for epoch in range(1, 21))
        span = ((10.0 * number, 10.0 * number + 9),)
        made.append(
            search_reading.SearchTrial(
                number, f"{number:04d}", values, status, (score if status == "completed" else math.nan,), curve,
                "ValueError: no", span, number, 20, 1,
            )
        )  # fmt: skip
    parameters = search_reading._parameters(space, ())
    results = reporting.SearchResults("s", None, (("loss", "min"),), parameters, tuple(made), 9000.0, {})
    path = reporting.report_search(results, tmp_path / "big.html")
    shown = Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 2_000_000
    assert "250 of 900 trials, the best circled, later ones darker" in shown.texts
    assert any(text.startswith("250 of 900 trials with a score, the best in orange") for text in shown.texts)
    assert "100" in table_of(shown, "Failures") and "0999" in table_of(shown, "Trials")


def test_by_storage_and_name(tmp_path, monkeypatch):
    url = f"sqlite:///{write_search(tmp_path / 'there', [trial(score=1.0)], name='mine') / 'search.db'}"
    monkeypatch.chdir(tmp_path)
    assert reporting.report_search("mine", storage=url).resolve() == tmp_path / "report.html"
    with pytest.raises(FileNotFoundError, match="no search 'other' in the storage; there are \\['mine'\\]"):
        reporting.read_search("other", storage=url)
    with pytest.raises(ValueError, match="cannot be read"):
        reporting.read_search("mine", storage="nonsense")


def test_what_is_no_search(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        reporting.read_search(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="it holds no search.db"):
        reporting.read_search(tmp_path)
    (tmp_path / "search.db").touch()
    with pytest.raises(FileNotFoundError, match="no study"):
        reporting.read_search(tmp_path)
    assert (tmp_path / "search.db").stat().st_size == 0  # and nothing was made there
    (tmp_path / "search.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match="cannot be read"):
        reporting.read_search(tmp_path)


def test_without_optuna_the_error_says_what_to_install(tmp_path, monkeypatch):
    write_search(tmp_path, [])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"keras-trainkit\[tuning\]"):
        reporting.read_search(tmp_path)
