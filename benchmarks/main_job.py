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


CASES = {
    "digits": Case((), "accuracy", 0.98, at_most_seconds=90),
    "digits_replicas_2": Case(("--replicas", "2"), "accuracy", 0.98),
    "digits_mixed_float16": Case(("--precision", "mixed_float16"), "accuracy", 0.98),
    "mnist": Case(("--epochs", "3"), "accuracy", 0.985, data="mnist.npz"),
    "california_housing": Case(("--target", "median_house_value"), "r2", 0.78, data="california_housing.csv.gz"),
}


def measure(case: Case, data_folder: Path | None) -> dict[str, Any]:
    """Runs a case and returns its figures. `seconds` is the whole process, with the import of TensorFlow."""
    data = [] if case.data is None or data_folder is None else ["--data", str(data_folder.resolve() / case.data)]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "keras_trainkit",
            "train",
            "--json",
            "--run-dir",
            "run",
            *case.arguments,
            *data,
        ]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
        result = json.loads(done.stdout)
        recipe = json.loads(Path(folder, "run", "recipe.json").read_text(encoding="utf-8"))
        environment = json.loads(Path(folder, "run", "environment.json").read_text(encoding="utf-8"))
    fast_enough = case.at_most_seconds is None or seconds <= case.at_most_seconds
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["keras-trainkit train", *(["--data", case.data] if case.data else []), *case.arguments]),
        "claim": {"metric": case.metric, "at_least": case.at_least, "at_most_seconds": case.at_most_seconds},
        "holds": result["test"][case.metric] >= case.at_least and fast_enough,
        "seconds": round(seconds, 1),
        **{key: result[key] for key in ("test", "best", "epochs", "updates", "parameters", "samples_per_second")},
        "recipe": {**recipe["recipe"], "data": case.data},
        "rows": recipe["resolved"]["data"]["splits"],
        "versions": environment["versions"],
        "machine": environment["machine"],
        "devices": environment["devices"],
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
        print(
            f"{name}: test {case.metric} {figures['test'][case.metric]:.4f} (claim: {case.at_least} or more), "
            f"{figures['seconds']} s, {figures['samples_per_second']:,.0f} samples/s: "
            f"{'holds' if figures['holds'] else 'DOES NOT HOLD'}",
            flush=True,
        )
    return 0 if all_hold else 1


if __name__ == "__main__":
    raise SystemExit(main())
