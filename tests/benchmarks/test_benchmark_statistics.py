"""The parts of the benchmarks that count and judge; what they measure is not tested here."""

import importlib
import math
import sys
from pathlib import Path

import keras
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NEVER = math.inf


@pytest.fixture
def module(monkeypatch):
    if not FOLDER.exists():
        pytest.skip("the benchmarks are not here")
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


def run(optimizer="ours", rate=0.001, seed=0, losses=(1.0, 0.5, 0.2, 0.3), step_ms=2.0, problem="toy"):
    given = {"beta": 0.5} if optimizer == "ours" else {}
    return {
        "problem": problem,
        "optimizer": optimizer,
        "rate": rate,
        "seed": seed,
        "settings": {"steps": 400, "constant_rate": optimizer == "half", "arguments": given},
        "losses": list(losses),
        "step_ms": step_ms,
    }


def test_the_ratio_is_taken_turn_by_turn(module):
    ratio = module("in_turn").ratio([1.0, 2.0, 30.0, 4.0, 5.0], [2.0, 4.0, 60.0, 8.0, 5.0])
    assert ratio == {"median": 0.5, "quartile_1": 0.5, "quartile_3": 0.75}
    with pytest.raises(ValueError):
        module("in_turn").ratio([1.0, 2.0], [1.0, 2.0, 3.0])


def test_functions_are_called_in_turn_and_warm_up_does_not_count(module):
    called = []
    functions = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    times = module("in_turn").milliseconds(functions, rounds=2, warm_up=1)
    assert [sorted(called[turn : turn + 2]) for turn in (0, 2, 4)] == [["a", "b"]] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_the_rank_test_is_exact(module):
    rank_test = module("noise").rank_test
    assert rank_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert rank_test([6, 7, 8, 9, NEVER], [1, 2, 3, 4, 5]) == pytest.approx(2 / 252)
    assert rank_test([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)
    assert rank_test([7, 7, 7], [7, 7, 7]) == 1
    # Mann-Whitney's U is 3, which 7 of the 126 ways to choose 4 of 9 come below or at.
    assert rank_test([1, 2, 3, 7], [4, 5, 6, 8, 9]) == pytest.approx(2 * 7 / 126)


def test_the_rank_test_agrees_with_another(module):
    stats = pytest.importorskip("scipy.stats")
    a, b = [3.1, 4.5, 0.2, 8.8, 6.1], [5.0, 9.7, 7.3, 10.4, 4.9, 6.6]
    assert module("noise").rank_test(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method="exact").pvalue)


def test_the_interval_of_a_median_has_its_confidence(module):
    interval = module("noise").median_interval
    assert interval(range(30)) == (9, 20)
    assert interval([5, 1, 3, 2, 4, 6]) == (1, 6)
    assert interval([2, 1]) == (1, 2)
    for n in range(6, 40):
        low, high = interval(range(n))
        # The median is outside if at most `low` values are on one side of it.
        outside = 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n
        assert high == n - 1 - low and outside <= 0.05
        if low + 1 < n // 2:
            assert outside + 2 * math.comb(n, low + 1) / 2**n > 0.05, "a shorter one would do"


def test_the_target_is_reached_at_an_evaluation(module):
    table = module("training_table")
    assert table.steps_to(run(), 0.5) == 20
    assert table.steps_to(run(), 0.1) == NEVER
    assert table.steps_to(run(losses=(1.0, None)), 2.0) == 10
    assert table.steps_to(run(losses=(None,)), 2.0) == NEVER and table.lowest(run(losses=(None,))) == NEVER
    assert table.lowest(run()) == 0.2
    assert table.merit(run(losses=(0.4, 0.4)), 0.5) < table.merit(run(losses=(0.9, 0.1)), 0.5)
    assert table.merit(run(losses=(0.9, 0.7)), 0.5) < table.merit(run(losses=(0.9, 0.8)), 0.5)


@pytest.mark.parametrize(
    "best, powers",
    [
        (0.1, [0, 1, -1, 0.5, 0.25]),
        (2.2, [0, 1, -1, 2, 3, 2.5]),
        (-5.0, [0, 1, -1, -2, -3, -4]),
        (0.8, [0, 1, -1, 2, 0.5, 0.75]),
    ],
)
def test_the_search_for_a_rate_goes_on_beside_the_best(module, best, powers):
    table, merits, order = module("training_table"), {}, []
    for _ in powers:
        order.append(table.next_power(merits))
        merits[order[-1]] = (abs(order[-1] - best), 0.0)
    assert order == powers


def test_rates_are_the_same_number_each_time(module):
    table = module("training_table")
    assert [table.rate(0.001, power) for power in (0, 1, -1, 0.5)] == [0.001, 0.003, 0.000333, 0.00173]


def test_the_rate_with_fewest_steps_is_reported(module):
    table = module("training_table")
    tuning = [
        run(rate=0.1, seed=table.TUNING_SEED),
        run(rate=0.3, seed=table.TUNING_SEED, losses=(0.5, 0.4)),
        run(rate=0.9, seed=table.TUNING_SEED, losses=(None,)),
    ]
    seeds = [run(rate=0.3, seed=0, step_ms=5.0), run(rate=0.3, seed=1, losses=(0.9, 0.8))]
    summary = table.summary([*tuning, *seeds, run(rate=0.1, seed=0)], 0.5)
    assert summary == {
        "rate": 0.3, "rates_tried": 3, "at_edge": False, "steps": [20, NEVER], "seconds": [0.1, NEVER],
        "loss": [0.2, 0.8],
    }  # fmt: skip
    assert table.summary(tuning[:2], 0.5)["at_edge"]


def test_a_difference_within_noise_is_called_so(module):
    compare = module("training_table").compare
    assert compare([10, 11, 12, 13, 14], [20, 21, 22, 23, 24]) == "0.55 less"
    assert compare([20, 21, 22, 23, 24], [10, 11, 12, 13, 14]) == "1.83 more"
    assert compare([10, 11, 30, 13, 14], [12, 21, 9, 23, 24]) == "0.62 noise"
    assert compare([NEVER] * 5, [10, 11, 12, 13, 14]) == "more"
    assert compare([10, 11, 12, 13, 14], [NEVER] * 5) == "less"
    assert compare([NEVER] * 5, [NEVER] * 5) == "noise"


def test_the_table_says_how_and_what(module):
    table = module("training_table")
    runs = []
    for name, losses in {"keras_adamw": (1, 0.9, 0.4), "ours": (1, 0.4, 0.4), "half": (1, 0.9, 0.9)}.items():
        runs += [run(name, rate, table.TUNING_SEED, losses) for rate in (0.1, 0.2)]
        runs += [run(name, 0.1, seed, losses) for seed in range(5)]
    runs += [run("tuned only", 0.1, table.TUNING_SEED), run(problem="unknown")]
    text = table.table(runs, {"toy": {"title": "a toy", "target": 0.5, "steps": 40}, "later": {"target": 1}})
    assert "had 2 learning rates" in text and "Then 5 seeds" in text and "compared 2 times" in text
    lines = text.splitlines()
    assert "- `ours`: `beta` 0.5" in lines and "- constant rate: `half`" in lines
    assert "| `ours` | 0.67 less |" in lines and "| `half` | more |" in lines
    assert "### A toy" in lines and "Target: validation loss 0.5, within 40 steps." in lines
    (ours,) = [line for line in lines if line.startswith("| `ours` | 0.1 †")]
    assert (
        ours == "| `ours` | 0.1 † | 20 [20, 20] | 0.04 [0.04, 0.04] | 0.4000 [0.4000, 0.4000] | 0.67 less | 0.67 less |"
    )
    (half,) = [line for line in lines if line.startswith("| `half` | 0.1 †")]
    assert "| never | never |" in half
    assert [line.split("`")[1] for line in lines if line.startswith("| `") and "†" in line] == [
        "ours",
        "keras_adamw",
        "half",
    ]
    assert "tuned only" not in text and "later" not in text
    assert table.table([], {}) == "No runs.\n"


def test_seconds_are_of_steps_that_were_timed_in_turn(module):
    table = module("training_table")
    runs = [run(name, 0.1, seed, (1, 0.4, 0.4)) for name in ("keras_adamw", "ours", "late") for seed in range(5)]
    runs += [run(name, 0.1, table.TUNING_SEED, (1, 0.4, 0.4)) for name in ("keras_adamw", "ours", "late")]
    times = {("toy", "keras_adamw"): [3.0, 1.0, 2.0], ("toy", "ours"): [1.0, 1.0]}
    lines = table.table(runs, {"toy": {"title": "a toy", "target": 0.5, "steps": 40}}, times).splitlines()
    (ours,) = [line for line in lines if line.startswith("| `ours` | 0.1")]
    (late,) = [line for line in lines if line.startswith("| `late` | 0.1")]
    assert ours.split(" | ")[3].startswith("0.02") and "0.50 less" in ours
    assert late.split(" | ")[3] == "not timed" and late.count("not timed") == 2


def test_a_line_that_was_cut_off_is_left_out(module, tmp_path):
    table = module("training_table")
    path = tmp_path / "runs.jsonl"
    assert table.read(path) == []
    path.write_text('{"sitting": {}}\n{"problem": "toy", "seed": 1}\n{"problem": "to', encoding="utf-8")
    assert table.read(path) == [{"problem": "toy", "seed": 1}]


def test_runs_of_other_settings_are_other_runs(module):
    table = module("training_table")
    assert table.identity(run()) == table.identity(run(losses=(3.0,)))
    assert len({table.identity(r) for r in (run(), run(rate=0.2), run(seed=3), {**run(), "settings": {}})}) == 4


def test_every_optimizer_can_be_made_with_its_default_rate(module):
    problems = module("training_problems")
    names = problems.names()
    assert names[:2] == ["keras_adam", "keras_adamw"] and {"adamw", "muon", "muon_rms"} <= set(names)
    for name in names:
        optimizer = problems.make(name, problems.default_rate(name), steps=100)
        scheduled = not isinstance(optimizer._learning_rate, keras.Variable)
        assert scheduled == (name not in problems.CONSTANT), name
        assert problems.settings("digits", name, steps=100)["arguments"].items() <= optimizer.get_config().items(), name
