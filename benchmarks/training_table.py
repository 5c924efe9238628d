"""What the runs of benchmarks/training.py say: the search for a rate, steps to a target, and tables in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import noise

EVALUATIONS = 40  # of the validation loss, evenly over a run
TUNING_SEED = 1000  # rates are chosen with it; the seeds that are reported begin at 0
REFERENCES = ("keras_adam", "keras_adamw")
SURE = 0.05  # the p-value from which on a difference counts as more than noise
FACTOR = 3.0  # between neighbouring rates
NOT_TIMED = "not timed"

Run = dict[str, Any]


def read(path: Path) -> list[Run]:
    """The finished runs in a file; a line that an interruption cut off is left out."""
    runs = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "problem" in record:
                runs.append(record)
    return runs


def read_times(path: Path) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of a step by problem and optimizer, of the last time that they were measured in turn."""
    times: dict[tuple[str, str], list[float]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            times |= {(record["problem"], name): values for name, values in record["step_ms"].items()}
    return times


def identity(run: Run) -> str:
    """What no two runs have in common; a run of another setting is another run."""
    return json.dumps([run[key] for key in ("problem", "optimizer", "rate", "seed", "settings")], sort_keys=True)


def evaluated(steps: int) -> list[int]:
    """The steps of a run after which its losses are taken."""
    return sorted({math.ceil((i + 1) * steps / EVALUATIONS) for i in range(EVALUATIONS)})


def steps_to(run: Run, target: float) -> float:
    """The step of the first evaluation at which the loss was at most the target; infinity if it never was.

    A run that diverged has fewer losses than evaluations.
    """
    at = evaluated(run["settings"]["steps"])
    reached = (at for at, loss in zip(at, run["losses"], strict=False) if loss is not None and loss <= target)
    return next(reached, math.inf)


def lowest(run: Run) -> float:
    """The lowest loss."""
    return min((loss for loss in run["losses"] if loss is not None), default=math.inf)


def merit(run: Run, target: float) -> tuple[float, float]:
    """What is to be small: steps to the target, and between runs that take equally many, the lowest loss."""
    return steps_to(run, target), lowest(run)


def rate(default: float, power: float) -> float:
    """A rate of the search, to three digits, so that it is the same number in every sitting."""
    return float(f"{default * FACTOR**power:.3g}")


def next_power(merits: dict[float, tuple[float, float]]) -> float:
    """The power of FACTOR, times the default rate, that is to be tried next, given the merits of those tried.

    First 0, 1 and -1. Then one beyond the best, if it is the highest or the lowest tried; otherwise half-way (on a
    logarithmic scale) between the best and the better one of its neighbours.
    """
    for power in (0.0, 1.0, -1.0):
        if power not in merits:
            return power
    tried = sorted(merits)
    best = min(tried, key=lambda power: merits[power])
    place = tried.index(best)
    if place == 0:
        return best - 1
    if place == len(tried) - 1:
        return best + 1
    neighbour = min(tried[place - 1], tried[place + 1], key=lambda power: merits[power])
    return (best + neighbour) / 2


def tried(runs: Iterable[Run]) -> list[Run]:
    """Those that were made to choose a rate."""
    return [run for run in runs if run["seed"] == TUNING_SEED]


def summary(runs: list[Run], target: float, step_ms: list[float] | None = None) -> dict[str, Any]:
    """One optimizer on one problem: its runs at the rate that was chosen, and how the rate was found.

    `step_ms` are times of a step that were measured in turn with the others'; without them the runs' own count.
    """
    tuning = tried(runs)
    chosen = min(tuning, key=lambda run: merit(run, target))["rate"]
    reported = [run for run in runs if run["seed"] != TUNING_SEED and run["rate"] == chosen]
    steps = [steps_to(run, target) for run in reported]
    rates = sorted(run["rate"] for run in tuning)
    return {
        "rate": chosen,
        "rates_tried": len(rates),
        "at_edge": len(rates) > 1 and chosen in (rates[0], rates[-1]),
        "steps": steps,
        "seconds": [
            n * (statistics.median(step_ms) if step_ms else run["step_ms"]) / 1e3
            for n, run in zip(steps, reported, strict=True)
        ],
        "loss": [lowest(run) for run in reported],
    }


def compare(ours: list[float], theirs: list[float]) -> str:
    """Our median over theirs, and whether the difference is more than noise."""
    a, b = statistics.median(ours), statistics.median(theirs)
    word = "noise" if noise.rank_test(ours, theirs) > SURE else "less" if a < b else "more"
    return word if math.isinf(a) or math.isinf(b) else f"{a / b:.2f} {word}"


def table(
    runs: list[Run], problems: dict[str, dict[str, Any]], times: dict[tuple[str, str], list[float]] | None = None
) -> str:
    """Markdown: how it was measured, a table over all problems, and one for each.

    An optimizer appears in a problem when its rate is chosen and a reported seed has run with it.

    Args:
        runs: of one setting for each optimizer and problem.
        problems: for each name its `title`, `target` and `steps`.
        times: of a step, as `read_times` gives them.
    """
    times = times or {}
    found = {
        problem: {
            name: whole
            for name in dict.fromkeys(run["optimizer"] for run in runs if run["problem"] == problem)
            if (whole := _summary_if_complete(runs, problem, name, known["target"], times)) is not None
        }
        for problem, known in problems.items()
    }
    found = {problem: rows for problem, rows in found.items() if rows}
    parts = [_method(found), _settings(runs), _overview(found, problems)]
    parts += [_one(problems[problem], rows) for problem, rows in found.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary_if_complete(
    runs: list[Run], problem: str, name: str, target: float, times: dict[tuple[str, str], list[float]]
) -> dict[str, Any] | None:
    mine = [run for run in runs if run["problem"] == problem and run["optimizer"] == name]
    if not tried(mine):
        return None
    whole = summary(mine, target, times.get((problem, name)))
    if (problem, name) not in times and any(timed == problem for timed, _ in times):
        # What its runs counted, whenever they were made, does not compare with what was measured in turn.
        whole["seconds"] = None
    return whole if whole["steps"] else None


def _method(found: dict[str, dict[str, Any]]) -> str:
    rows = [row for problem in found.values() for row in problem.values()]
    if not rows:
        return "No runs."
    seeds = sorted({len(row["steps"]) for row in rows})
    rates = sorted({row["rates_tried"] for row in rows})
    comparisons = sum(
        name != reference for problem in found.values() for reference in REFERENCES if reference in problem
        for name in problem
    )  # fmt: skip
    return (
        f"Each optimizer had {_several(rates)} learning rates to choose from, by the same rule: its default, 3 times "
        "and a third of it, then one beyond the best if that was the outermost, or half-way to its better neighbour. "
        "The best had the fewest steps to the target, with a seed that is not reported. All else stayed at its "
        f"defaults, but for what is listed below. Then {_several(seeds)} seeds with that rate; the number is their "
        "median, in brackets the lowest and the highest. A † says that the best rate was the highest or lowest tried: "
        "a larger budget might do better. Steps are counted to the first evaluation at or below the target, seconds "
        "are steps times the median time of a step, which was measured in turn, without compiling and evaluating; who "
        "was not measured so is not timed.\n\n"
        f"`less` and `more` stand where Wilcoxon's rank-sum test, two-sided and exact, gives p <= {SURE}; `noise` "
        f"where it does not. Steps were compared {comparisons} times, and seconds at most as often: by chance alone "
        f"about {SURE * comparisons:.0f} of each would not be called noise."
    )


def _settings(runs: list[Run]) -> str:
    """The arguments that are not defaults, and who had no schedule."""
    if not runs:
        return ""
    constant = sorted({run["optimizer"] for run in runs if run["settings"]["constant_rate"]})
    given: dict[str, dict[str, set[Any]]] = {}
    for run in runs:
        for key, value in run["settings"]["arguments"].items():
            given.setdefault(run["optimizer"], {}).setdefault(key, set()).add(value)
    lines = [
        f"- `{name}`: " + ", ".join(f"`{key}` {_several(sorted(values))}" for key, values in arguments.items())
        for name, arguments in sorted(given.items())
    ]
    if constant:
        lines.append(f"- constant rate: {', '.join(f'`{name}`' for name in constant)}")
    schedule = "The learning rate rises for a tenth of the steps, then falls to 0 as a cosine."
    return "\n".join([schedule, *(["", *lines] if lines else [])])


def _overview(found: dict[str, dict[str, Any]], problems: dict[str, dict[str, Any]]) -> str:
    reference = REFERENCES[-1]
    columns = [problem for problem in found if reference in found[problem]]
    if not columns:
        return ""
    names = list(dict.fromkeys(name for problem in columns for name in found[problem] if name != reference))
    lines = []
    for name in names:
        cells = [
            compare(found[problem][name]["steps"], found[problem][reference]["steps"])
            if name in found[problem]
            else "not run"
            for problem in columns
        ]
        lines.append([f"`{name}`", *cells])
    head = ["optimizer", *(problems[problem]["title"] for problem in columns)]
    return f"Steps to the target over those of `{reference}`:\n\n{_markdown(head, lines)}"


def _one(problem: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    references = [name for name in REFERENCES if name in rows]
    head = ["optimizer", "rate", "steps to target", "seconds", "lowest loss"]
    head += [f"{what} over `{name}`" for name in references for what in ("steps", "seconds")]
    lines = []
    for name in sorted(rows, key=lambda name: (statistics.median(rows[name]["steps"]), min(rows[name]["loss"]))):
        row = rows[name]
        cells = [f"`{name}`", f"{row['rate']:g}{' †' if row['at_edge'] else ''}"]
        seconds = NOT_TIMED if row["seconds"] is None else _spread(row["seconds"], "{:.2f}")
        cells += [_spread(row["steps"], "{:.0f}"), seconds, _spread(row["loss"], "{:.4f}")]
        for reference in references:
            for what in ("steps", "seconds"):
                theirs = rows[reference][what]
                untimed = row[what] is None or theirs is None
                cells.append("" if name == reference else NOT_TIMED if untimed else compare(row[what], theirs))
        lines.append(cells)
    return (
        f"### {problem['title'][0].upper()}{problem['title'][1:]}\n\n"
        f"Target: validation loss {problem['target']:g}, within {problem['steps']} steps.\n\n{_markdown(head, lines)}"
    )


def _spread(values: list[float], form: str) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "never"
    middle, low, high = statistics.median(values), min(values), max(values)
    shown = [form.format(value) if math.isfinite(value) else "never" for value in (middle, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _several(counts: list[Any]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
