"""Does it train? Steps and time to a target on four real problems, for each optimizer, against Keras's Adam and AdamW.

    python benchmarks/training.py --data-folder DIR                       # everything: hours; go on at any time
    python benchmarks/training.py --problems digits --optimizers keras_adamw adan lion
    python benchmarks/training.py --times --data-folder DIR               # the time of a step, in turn
    python benchmarks/training.py --table                                 # the table of what is there, in Markdown

Each finished run is a line of benchmarks/results/training.jsonl, and is not made again: interrupt it, and call it again
to go on. Each optimizer has the same `--budget` of learning rates on each problem (training_table.next_power is the
rule), tuned with a seed of its own; then come the `--seeds`, the optimizers in turn. Losses do not depend on what else
the machine does, times do: `--times` measures them apart, into training_times.jsonl. The folder holds
california_housing.csv.gz, imdb_text_10k.jsonl.gz and tinyshakespeare.txt; problems whose file is missing are left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import in_turn
import training_problems
import training_table

# A fresh process now and then, because compiled functions of past runs keep memory.
RUNS_A_PROCESS = 40


class Records:
    """The file of runs: those that are there, and new ones at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = {training_table.identity(run): run for run in training_table.read(path)}

    def find(self, problem: str, optimizer: str, rate: float, seed: int, steps: int | None) -> dict[str, Any] | None:
        """The finished run of these settings."""
        wanted = {"problem": problem, "optimizer": optimizer, "rate": rate, "seed": seed}
        wanted["settings"] = training_problems.settings(problem, optimizer, steps)
        return self.known.get(training_table.identity(wanted))

    def add(self, record: dict[str, Any]) -> None:
        """Writes a line; it begins a new one, should the last have been cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if text and not text.endswith(b"\n") else "") + json.dumps(record) + "\n")
        if "problem" in record:
            self.known[training_table.identity(record)] = record


class Bench:
    """Makes the runs that are not there yet."""

    def __init__(self, records: Records, folder: Path | None, steps: int | None) -> None:
        self.records, self.folder, self.steps = records, folder, steps
        self.made = 0
        self._pool = _process()

    def run(self, problem: str, optimizer: str, rate: float, seed: int) -> dict[str, Any]:
        """The run, made or found."""
        found = self.records.find(problem, optimizer, rate, seed, self.steps)
        if found is not None:
            return found
        if not self.made:
            self.records.add({"sitting": in_turn.circumstances(["keras", "tensorflow", "numpy"])})
        job = self._pool.submit(training_problems.run, problem, optimizer, rate, seed, self.steps, self.folder)
        result = job.result()
        self.made += 1
        self.records.add(result)
        target = training_problems.PROBLEMS[problem].target
        print(
            f"{problem} {optimizer} {rate:g} seed {seed}: target after {training_table.steps_to(result, target)} "
            f"steps, lowest loss {training_table.lowest(result):.4f}, {result['step_ms']} ms a step",
            flush=True,
        )
        return result

    def tune(self, problem: str, optimizer: str, budget: int) -> float:
        """The best of as many learning rates as the budget allows."""
        default, target = training_problems.default_rate(optimizer), training_problems.PROBLEMS[problem].target
        merits: dict[float, tuple[float, float]] = {}
        while len(merits) < budget:
            power = training_table.next_power(merits)
            run = self.run(problem, optimizer, training_table.rate(default, power), training_table.TUNING_SEED)
            merits[power] = training_table.merit(run, target)
        return training_table.rate(default, min(merits, key=lambda power: merits[power]))

    def time(self, problem: str, names: list[str], path: Path) -> None:
        """Measures the time of a step of each optimizer, and writes a line."""
        job = self._pool.submit(training_problems.step_times, problem, names, self.folder)
        record = {"problem": problem, "step_ms": job.result(), **in_turn.circumstances(["keras", "tensorflow"])}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        medians = {name: f"{statistics.median(values):.2f}" for name, values in record["step_ms"].items()}
        print(f"{problem}: ms a step: {', '.join(f'{name} {value}' for name, value in medians.items())}", flush=True)

    def compare(self, problem: str, names: list[str], seeds: int, budget: int) -> list[str]:
        """Tunes each optimizer and runs its seeds, all in turn. Returns those that failed."""
        rates: dict[str, float] = {}
        failed = []
        for seed in [None, *range(seeds)]:
            for name in names:
                if name in failed:
                    continue
                try:
                    if seed is None:
                        rates[name] = self.tune(problem, name, budget)
                    else:
                        self.run(problem, name, rates[name], seed)
                except Exception as error:  # one optimizer's fault is not to cost the night's other runs
                    print(f"{problem} {name} FAILED: {type(error).__name__}: {error}", flush=True)
                    failed.append(name)
                    self.close()
                    self._pool = _process()
        return failed

    def close(self) -> None:
        """Ends the process that runs."""
        self._pool.shutdown(cancel_futures=True)


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=RUNS_A_PROCESS)


def current(records: Records, steps: int | None) -> Iterator[dict[str, Any]]:
    """The runs of today's settings; others were made when a problem or an optimizer's arguments were different."""
    names = set(training_problems.names())
    for run in records.known.values():
        if run["problem"] in training_problems.PROBLEMS and run["optimizer"] in names:
            wanted = training_problems.settings(run["problem"], run["optimizer"], steps)
            if run["settings"] == wanted:
                yield run


def times_file(path: Path) -> Path:
    """Where the times of a step lie that go with a file of runs."""
    return path.with_name(f"{path.stem}_times.jsonl")


def page(
    path: Path, problems: list[str] | None = None, names: list[str] | None = None, steps: int | None = None
) -> str:
    """The tables of the runs in a file, in Markdown."""
    wanted = names or training_problems.names()
    known = {
        name: {"title": problem.title, "target": problem.target, "steps": steps or problem.steps}
        for name, problem in training_problems.PROBLEMS.items()
        if problems is None or name in problems
    }
    runs = [run for run in current(Records(path), steps) if run["optimizer"] in wanted]
    return training_table.table(runs, known, training_table.read_times(times_file(path)))


def main() -> None:
    """Runs what is missing, or makes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = training_problems.PROBLEMS
    parser.add_argument("--problems", nargs="+", choices=known, default=list(known), metavar="PROBLEM")
    parser.add_argument("--optimizers", nargs="+", choices=training_problems.names(), metavar="OPTIMIZER")
    parser.add_argument("--seeds", type=int, default=5, help="how many are reported")
    parser.add_argument("--budget", type=int, default=5, help="learning rates that each optimizer may try")
    parser.add_argument("--steps", type=int, help="of a run, instead of the problem's own: to try the benchmark out")
    parser.add_argument("--data-folder", type=Path)
    parser.add_argument("--file", type=Path, default=in_turn.RESULTS / "training.jsonl")
    parser.add_argument("--times", action="store_true", help="measure the time of a step, and train no further")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table")
    arguments = parser.parse_args()
    records, times = Records(arguments.file), times_file(arguments.file)
    if arguments.table:
        print(page(arguments.file, arguments.problems, arguments.optimizers, arguments.steps), end="")
        return
    bench = Bench(records, arguments.data_folder and arguments.data_folder.resolve(), arguments.steps)
    failed: list[str] = []
    try:
        for problem in arguments.problems:
            file = known[problem].file
            if file and not (arguments.data_folder and (arguments.data_folder / file).exists()):
                print(f"{problem} is left out: {file} is not in the folder of the data", flush=True)
                continue
            names = arguments.optimizers or training_problems.names()
            if arguments.times:
                bench.time(problem, names, times)
                continue
            failed += bench.compare(problem, names, arguments.seeds, arguments.budget)
    finally:
        bench.close()
    print(f"{bench.made} runs; the table: python benchmarks/training.py --table")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
