"""What the searches of search.jsonl came to: medians and quartiles, by problem and method. Needs no searching."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
HYPERBAND = "KerasTuner, Hyperband"


def read(path: Path) -> list[Record]:
    """The searches of a file; a line that was cut off is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "problem" in record:
            found.append(record)
    return found


def of(records: Iterable[Record], kind: str) -> dict[str, dict[str, list[Record]]]:
    """The searches of a kind, by problem and method, in the order of the file."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record["kind"] == kind:
            found.setdefault(record["problem"], {}).setdefault(record["method"], []).append(record)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def last(records: list[Record]) -> list[float]:
    """The regret at the end of each search."""
    return [record["regrets"][-1] for record in records]


def geometric_mean(values: Iterable[float]) -> float:
    """Of ratios, such as the true losses over the best ones of several tables."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def over_tables(records: list[Record], prefix: str = "fcnet ") -> dict[str, float]:
    """For each method the geometric mean over all tables and seeds."""
    values: dict[str, list[float]] = {}
    for problem, methods in of(records, "quality").items():
        for method, found in methods.items():
            if problem.startswith(prefix):
                values.setdefault(method, []).extend(last(found))
    return {method: geometric_mean(found) for method, found in values.items()}


def over_medians(records: list[Record], prefix: str = "fcnet ") -> dict[str, float]:
    """For each method the geometric mean over the tables of its median search: one bad search moves it little."""
    medians: dict[str, list[float]] = {}
    for problem, methods in of(records, "quality").items():
        for method, found in methods.items():
            if problem.startswith(prefix):
                medians.setdefault(method, []).append(statistics.median(last(found)))
    return {method: geometric_mean(found) for method, found in medians.items()}


def regret_at(record: Record, share: float) -> float:
    """The regret of a search over curves when it had spent a share of the budget."""
    regrets = record["regrets"]
    return regrets[min(len(regrets), max(1, round(share * record["budget"]))) - 1]


def epochs_to(record: Record, regret: float) -> float:
    """After how many epochs a search over curves was as good; infinite if it never was."""
    return next((count + 1 for count, value in enumerate(record["regrets"]) if value <= regret), math.inf)


def share_of_hyperband(records: list[Record], method: str) -> list[float]:
    """Seed by seed, the epochs until a search is as good as KerasTuner's Hyperband in the end, over its epochs."""
    found = []
    for methods in of(records, "curves").values():
        theirs = {record["seed"]: record for record in methods.get(HYPERBAND, [])}
        for record in methods.get(method, []):
            if record["seed"] in theirs:
                other = theirs[record["seed"]]
                found.append(epochs_to(record, other["regrets"][-1]) / other["epochs"])
    return found
