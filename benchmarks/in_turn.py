"""Timing things against each other: in one process, in turn, so that both meet the same state of the machine."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def milliseconds(
    functions: dict[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 3,
    of_processors: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """The times of each function, called in turn `rounds` times; every call must end when its work is done.

    Each round has another order: what one function leaves behind, in caches or to threads, meets all others.
    `of_processors` is given the time that all cores together worked for each call: a busy machine lengthens it less.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order, shuffled = list(functions), random.Random(0)
    for turn in range(warm_up + rounds):
        shuffled.shuffle(order)
        for name in order:
            began, work = time.perf_counter(), time.process_time()
            functions[name]()
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - began))
                if of_processors is not None:
                    of_processors.setdefault(name, []).append(1e3 * (time.process_time() - work))
    return times


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Our time over theirs, turn by turn: the median and the quartiles; below 1 we are faster."""
    quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(quotients, n=4)
    return {"median": round(middle, 3), "quartile_1": round(low, 3), "quartile_3": round(high, 3)}


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median": round(middle, 2), "quartile_1": round(low, 2), "quartile_3": round(high, 2)}


def large_copy(megabytes: int = 256) -> tuple[Callable[[], None], int]:
    """A function that copies memory with two threads, and how many bytes it moves (read and written)."""
    source = np.ones(megabytes * 2**20 // 4, "float32")
    target = np.empty_like(source)
    half = len(source) // 2

    def copy() -> None:
        other = threading.Thread(target=np.copyto, args=(target[:half], source[:half]))
        other.start()
        np.copyto(target[half:], source[half:])
        other.join()

    return copy, 2 * source.nbytes


def circumstances(packages: list[str]) -> dict[str, Any]:
    """Date, machine, and the versions of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    machine = {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**machine, "processor": _processor(), "load_at_start": load},
        "versions": versions,
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Writes figures to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
