"""The problems, drivers and statistics of the benchmark of searches; what it measures is not tested here."""

import importlib
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    if not FOLDER.exists():
        pytest.skip("the benchmarks are not here")
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


def test_known_minima(module):
    problems = {problem.name: problem for problem in module("search_problems").functions()}
    for x, y in ((-math.pi, 12.275), (math.pi, 2.275), (9.42478, 2.475)):
        assert problems["branin"].regret({"x": x, "y": y}) == pytest.approx(0.0, abs=1e-5)
    at = [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]
    best = {f"x{number}": value for number, value in enumerate(at)}
    assert problems["hartmann6"].regret(best) == pytest.approx(0.0, abs=1e-5)
    best = {"optimizer": "adam", "rate": 1e-3, "beta_1": 0.9, "epsilon": 1e-7, "layers": 3, "units_0": 128,
            "units_1": 64, "units_2": 32, "dropout": 0.2, "batch_size": 64, "augment": True, "strength": 0.4,
            "decay": 1e-3}  # fmt: skip
    assert problems["conditional"].regret(best) == pytest.approx(0.0, abs=1e-12)


def test_no_point_is_better_than_the_minimum(module):
    drivers, problems = module("search_drivers"), module("search_problems")
    for problem in problems.functions():
        regrets, seconds = drivers.run("ours, random", problem, 25, 0)
        assert len(regrets) == len(seconds) == 25
        assert all(a >= b >= 0 for a, b in itertools.pairwise(regrets))


@pytest.mark.parametrize("method", ["ours", "ours, TPE", "KerasTuner, random", "Optuna, TPE"])
def test_every_driver_searches_with_conditions_alike_for_a_seed(module, method):
    drivers, problems = module("search_drivers"), module("search_problems")
    problem = problems.functions()[2]
    first, again, other = (drivers.run(method, problem, 6, seed)[0] for seed in (0, 0, 1))
    assert first == again != other


def test_a_table_charges_one_training_and_judges_by_the_mean(module, tmp_path):
    problems = module("search_problems")
    shape = [len(values) for values in problems._TABLE.values()]
    losses = np.full([*shape, 4], 2.0, "float32")
    losses[(1,) * 8 + (0,)] = [0.1, 0.2, 0.3, 0.4]
    np.savez(tmp_path / "fcnet.npz", made_up=losses)
    (problem,) = problems.table(tmp_path / "fcnet.npz")
    best = {name: values[1] for name, values in problems._TABLE.items()} | {"n_units_2": 16}
    seen = {round(problem.observe(best, np.random.default_rng(seed)), 4) for seed in range(30)}
    assert seen == {0.1, 0.2, 0.3, 0.4} and problem.regret(best) == 1.0
    assert problem.regret(best | {"n_units_2": 32}) == pytest.approx(8.0)


def test_curves_are_those_of_the_grid_and_budgets_hold(module):
    drivers, problems, curves_of = module("search_drivers"), module("search_problems"), module("search_curves")
    curves = problems.Curves()
    stored = json.loads(curves_of.FILE.read_text())
    assert stored["grid"] == curves_of.GRID and len(stored["curves"]) == len(curves_of.points())
    assert {len(curve) for curve in stored["curves"]} == {curves_of.EPOCHS}
    point = curves_of.points()[-1]
    assert curves(point) == stored["curves"][-1] and curves.regret(curves.best) == 0.0
    for method in ("ours", "KerasTuner, Hyperband", "KerasTuner, random"):
        regrets, epochs = drivers.run_curves(method, curves, 60, 0)
        assert epochs == len(regrets) == 60
        assert all(a >= b for a, b in itertools.pairwise(regrets))


def test_statistics(module, tmp_path):
    table = module("search_table")

    def record(kind, problem, method, seed, regrets, budget=4):
        return {"kind": kind, "problem": problem, "method": method, "seed": seed, "budget": budget, "regrets": regrets,
                "epochs": len(regrets)}  # fmt: skip

    records = [
        record("quality", "fcnet a", "ours", 0, [9.0, 1.0]),
        record("quality", "fcnet a", "ours", 1, [9.0, 1.0]),
        record("quality", "fcnet a", "ours", 2, [100.0, 64.0]),
        record("quality", "fcnet b", "ours", 0, [9.0, 4.0]),
        record("quality", "branin", "ours", 0, [9.0, 100.0]),
        record("curves", "digits", "ours", 0, [0.9, 0.4, 0.4, 0.1]),
        record("curves", "digits", "KerasTuner, Hyperband", 0, [0.9, 0.8, 0.7, 0.4]),
        record("curves", "digits", "ours", 1, [0.9, 0.9, 0.9, 0.9]),
        record("curves", "digits", "KerasTuner, Hyperband", 1, [0.9, 0.8, 0.7, 0.4]),
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([json.dumps({"sitting": {}}), *map(json.dumps, records), '{"problem": "cut']))
    read = table.read(path)
    assert read == records
    assert table.over_tables(read) == {"ours": pytest.approx(4.0)}
    assert table.over_medians(read) == {"ours": pytest.approx(2.0)}
    assert table.share_of_hyperband(read, "ours") == [0.5, math.inf]
    assert table.regret_at(records[5], 0.5) == 0.4 and table.spread([3.0])["quartile_1"] == 3.0
