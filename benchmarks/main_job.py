"""The main job, measured: `keras-trainkit train` in a fresh process for each case, figures to benchmarks/results/.

    python benchmarks/main_job.py                                  # the cases on scikit-learn's digits
    python benchmarks/main_job.py --data-folder DIR                # mnist.npz and california_housing.csv.gz, too
    python benchmarks/main_job.py mnist --data-folder DIR          # one case

Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of the command, and what is claimed of it."""

    arguments: tuple[str, ...]
    metric: str
    at_least: float
    data: str | None = None
    at_most_seconds: float | None = None
    seeds: tuple[int, ...] = (0,)


CASES = {
    "digits": Case((), "accuracy", 0.98, at_most_seconds=90, seeds=(0, 1, 2, 3, 4)),
    "digits_replicas_2": Case(("--replicas", "2"), "accuracy", 0.98),
    "digits_mixed_float16": Case(("--precision", "mixed_float16"), "accuracy", 0.98),
    "mnist": Case(("--epochs", "3"), "accuracy", 0.985, data="mnist.npz"),
    "california_housing": Case(("--target", "median_house_value"), "r2", 0.78, data="california_housing.csv.gz"),
}


def measure(case: Case, data_folder: Path | None) -> dict[str, Any]:
    """Runs a case with each of its seeds; the figures are those of the first seed, the claim must hold for all.

    `seconds` is the whole process, with the import of TensorFlow.
    """
    runs = [run(case, seed, data_folder) for seed in case.seeds]
    values = [figures["test"][case.metric] for figures in runs]
    slowest = max(figures["seconds"] for figures in runs)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["keras-trainkit train", *(["--data", case.data] if case.data else []), *case.arguments]),
        "claim": {"metric": case.metric, "at_least": case.at_least, "at_most_seconds": case.at_most_seconds},
        "holds": min(values) >= case.at_least and (case.at_most_seconds is None or slowest <= case.at_most_seconds),
        f"{case.metric}_by_seed": dict(zip(case.seeds, values, strict=True)),
        **runs[0],
    }


def run(case: Case, seed: int, data_folder: Path | None) -> dict[str, Any]:
    """One run of the command in a folder of its own; paths stay out of the figures."""
    options = ["--seed", str(seed), *case.arguments]
    if case.data is not None and data_folder is not None:
        options += ["--data", str(data_folder.resolve() / case.data)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "keras_trainkit", "train", "--json", "--run-dir", "run", *options]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
        result = json.loads(done.stdout)
        recipe = json.loads(Path(folder, "run", "recipe.json").read_text(encoding="utf-8"))
        environment = json.loads(Path(folder, "run", "environment.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(seconds, 1),
        **{key: result[key] for key in ("test", "best", "epochs", "updates", "parameters", "samples_per_second")},
        "recipe": {**recipe["recipe"], "data": case.data},
        "rows": recipe["resolved"]["data"]["splits"],
        **{key: environment[key] for key in ("versions", "machine", "devices")},
    }


def main() -> int:
    """Measures the chosen cases, writes one file for each, prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all when left out")
    parser.add_argument("--data-folder", type=Path, help="where mnist.npz and california_housing.csv.gz are")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"no case is called {name}")
    all_hold = True
    for name in arguments.cases or CASES:
        case = CASES[name]
        if case.data and arguments.data_folder is None:
            print(f"{name}: left out, it needs --data-folder with {case.data}")
            continue
        figures = measure(case, arguments.data_folder)
        all_hold &= figures["holds"]
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(figures, indent=2) + "\n"
        (RESULTS / f"main_job_{name}.json").write_text(text, encoding="utf-8")
        lowest = min(figures[f"{case.metric}_by_seed"].values())
        print(
            f"{name}: test {case.metric} {lowest:.4f} at least (claim: {case.at_least}), {figures['seconds']} s, "
            f"{figures['samples_per_second']:,.0f} samples/s: {'holds' if figures['holds'] else 'DOES NOT HOLD'}",
            flush=True,
        )
    return 0 if all_hold else 1


if __name__ == "__main__":
    raise SystemExit(main())
