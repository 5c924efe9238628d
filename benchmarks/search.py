"""Searches against each other, without training: ours, KerasTuner's and plain Optuna, over the same problems and seeds.

    python benchmarks/search.py --data-folder DIR            # everything: an hour; go on at any time
    python benchmarks/search.py --parts quality --seeds 10   # the best point after 50 trials
    python benchmarks/search.py --parts curves               # the best loss for epochs spent, on real learning curves
    python benchmarks/search.py --parts times                # of suggestions, of trials that do nothing, of 2 workers

`quality`: two known functions, one with conditions, and the table fcnet.npz, which the folder holds. `curves`:
search_curves.json, which is here. Each finished search is a line of benchmarks/results/search.jsonl and is not made
again; what else the machine does, does not change these. `times` does them in turn and writes
benchmarks/results/search_times.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import in_turn
import search_drivers
import search_problems
import search_table
from search_drivers import METHODS

RUNS = in_turn.RESULTS / "search.jsonl"
TIMES = in_turn.RESULTS / "search_times.json"
SLOW = ("KerasTuner, Bayesian", "Optuna, GP", "ours, TPE")
CURVE_METHODS = ["ours", "KerasTuner, Hyperband", "KerasTuner, random", "KerasTuner, Bayesian"]


def problems(folder: Path | None) -> dict[str, search_problems.Problem]:
    """The problems that are there; without the folder no table."""
    found = search_problems.functions()
    path = None if folder is None else next(folder.rglob("fcnet.npz"), None)
    if path is not None:
        found += search_problems.table(path)
    return {problem.name: problem for problem in found}


def one(job: tuple[str, str, str, int, int], folder: Path | None) -> dict[str, Any]:
    """A search, in a process of its own."""
    kind, name, method, seed, budget = job
    record: dict[str, Any] = {"kind": kind, "problem": name, "method": method, "seed": seed, "budget": budget}
    if kind == "quality":
        regrets, _ = search_drivers.run(method, problems(folder)[name], budget, seed)
        return record | {"regrets": [round(value, 5) for value in regrets[9::10]]}
    regrets, epochs = search_drivers.run_curves(method, search_problems.Curves(), budget, seed)
    return record | {"regrets": [round(value, 4) for value in regrets], "epochs": epochs}


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a search that search."""
    return tuple(record[name] for name in ("kind", "problem", "method", "seed", "budget"))


def make(jobs: list[tuple[Any, ...]], folder: Path | None, processes: int) -> None:
    """Runs the searches that are not there yet, and writes a line for each."""
    known = {key(record) for record in search_table.read(RUNS)}
    left = [job for job in jobs if job not in known]
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool, RUNS.open("a") as file:
        sitting = in_turn.circumstances(["keras-tuner", "optuna", "torch", "scikit-learn"])
        file.write(json.dumps({"sitting": sitting}) + "\n")
        running = [pool.submit(one, job, folder) for job in left]
        for number, done in enumerate(as_completed(running)):
            record = done.result()
            file.write(json.dumps(record) + "\n")
            file.flush()
            last = f"{record['regrets'][-1]:.4g}"
            print(f"{number + 1} of {len(left)}: {record['problem']}, {record['method']}, "
                  f"seed {record['seed']}: {last}", flush=True)  # fmt: skip


def quality(seeds: int, trials: int, folder: Path | None) -> list[tuple[Any, ...]]:
    """The searches over functions and tables.

    The table of a few words and steps is a coarse judge: what takes little time searches there with thrice the seeds.
    """
    return [
        ("quality", name, method, seed, trials)
        for seed in range(3 * seeds)
        for name in problems(folder)
        for method in METHODS
        if method != "ours, GP"  # what "ours" takes where it fits
        if method != "Optuna, GP" or name != "conditional"  # it takes no conditions
        if seed < seeds or (name.startswith("fcnet") and method not in SLOW)
    ]


def curve_jobs(seeds: int) -> list[tuple[Any, ...]]:
    """The searches over learning curves, all with the epochs that KerasTuner's Hyperband takes."""
    curves = search_problems.Curves()
    _, epochs = search_drivers.run_curves("KerasTuner, Hyperband", curves, 10**6, 0)
    return [("curves", "digits", method, seed, epochs) for seed in range(seeds) for method in CURVE_METHODS]


def times(rounds: int) -> dict[str, Any]:
    """What a suggestion, a trial and a second worker cost."""
    found: dict[str, Any] = in_turn.circumstances(["keras-tuner", "optuna", "torch"])
    functions = {problem.name: problem for problem in search_problems.functions()}
    for name, method, problem in [("TPE", "ours, TPE", "conditional"), ("GP", "ours, GP", "hartmann6")]:
        _, seconds = search_drivers.run(method, functions[problem], 205, 0)
        found[f"suggestion {name}"] = in_turn.summary([1e3 * each for each in seconds[195:]])
        print(f"{name}: {found[f'suggestion {name}']} ms for a trial after 200", flush=True)
    found["trial"] = search_drivers.trial_times(rounds)
    print(f"a trial that does nothing: {found['trial']} ms", flush=True)
    found["workers"] = search_drivers.worker_times(max(rounds // 4, 3))
    print(f"two workers: {found['workers']}", flush=True)
    return found


def table(records: list[dict[str, Any]]) -> list[str]:
    """The median regret and the quartiles, by problem and method."""
    lines = []
    for kind in ("quality", "curves"):
        for problem, methods in search_table.of(records, kind).items():
            for method, found in methods.items():
                figure = search_table.spread(search_table.last(found))
                middle, low, high = (f"{figure[name]:.4g}" for name in ("median", "quartile_1", "quartile_3"))
                lines.append(f"{problem:26} {method:24} {middle} [{low}, {high}] of {len(found)}")
    for words, means in [
        ("fcnet, of the medians", search_table.over_medians(records)),
        ("fcnet, of all searches", search_table.over_tables(records)),
    ]:
        lines += [f"{words:26} {method:24} {mean:.4g}, geometric mean" for method, mean in means.items()]
    shares = search_table.share_of_hyperband(records, "ours")
    if shares:
        lines.append(
            f"epochs until ours is as good as {search_table.HYPERBAND}: {statistics.median(shares):.3f} of them"
        )
    return lines


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["quality", "curves", "times"], default=["quality", "curves"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=12, help="of the times")
    parser.add_argument("--data-folder", type=Path, help="holds fcnet.npz; without it the table is left out")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    RUNS.parent.mkdir(exist_ok=True)
    if "quality" in arguments.parts:
        if len(problems(arguments.data_folder)) == 3:
            print("no fcnet.npz in --data-folder: its table is left out")
        make(quality(arguments.seeds, arguments.trials, arguments.data_folder), arguments.data_folder,
             arguments.processes)  # fmt: skip
    if "curves" in arguments.parts:
        make(curve_jobs(max(arguments.seeds, 40)), None, arguments.processes)
    for line in table(search_table.read(RUNS)):
        print(line)
    if "times" in arguments.parts:
        TIMES.write_text(json.dumps(times(arguments.rounds), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
