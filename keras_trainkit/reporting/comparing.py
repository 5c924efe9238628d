"""Several runs side by side: final and best metrics, time, curves over each other, and what their recipes differ in."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainkit.core import tables
from keras_trainkit.core.better import is_higher_better
from keras_trainkit.reporting.charts import column, metric_names, title
from keras_trainkit.reporting.curves import RUNS, Chart, Series, wants_log_scale
from keras_trainkit.reporting.page import duration, flatten, image, not_finite, number, rendered, shown, write
from keras_trainkit.reporting.reading import Run, run_of

_ABSENT = "not there"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of one run over its epochs.

    Attributes:
        final: its last value; None if that was not finite.
        best: its best value, by the name of the metric: the highest accuracy, the lowest loss.
        epoch: where the best was, from 1.
    """

    final: float | None
    best: float | None
    epoch: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several runs side by side; printing it shows the table.

    Attributes:
        names: of the runs, each another.
        runs: as `read_run` reads them.
        metrics: for each run, from the names of losses and metrics (`val_*` and `test_*` among them) to `Metric`.
        differences: from the keys of recipes that differ to the value of each run.
    """

    names: list[str]
    runs: list[Run]
    metrics: list[dict[str, Metric]]
    differences: dict[str, list[Any]]

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Final and best metrics, epochs and time as text, a line for each run."""
        heads, rows = ["run", *self._heads()], []
        for name, cells in zip(self.names, self._cells(), strict=True):
            rows.append([name, *(f"{text} ({remark})" if remark else text for text, remark in cells)])
        lines = tables.aligned([heads, *rows])
        if self.differences:
            lines += ["", "differences of the recipes"]
            body = [[key, *map(_in_words, values)] for key, values in self.differences.items()]
            lines += tables.aligned([["", *self.names], *body])
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON: nothing in it is NaN or infinite."""
        runs = [
            {
                "name": name,
                "directory": str(run.directory) if run.axis == "update" else None,
                "status": run.status,
                "epochs": len(run.epochs),
                "updates": _updates(run),
                "seconds": _seconds(run),
                "samples_per_second": _speed(run),
                "metrics": {key: dataclasses.asdict(metric) for key, metric in metrics.items()},
                "problems": run.problems,
            }
            for name, run, metrics in zip(self.names, self.runs, self.metrics, strict=True)
        ]
        return {"runs": runs, "differences": self.differences}

    def write(self, file: str | os.PathLike[str]) -> Path:
        """Writes one HTML file that works offline, and returns its path."""
        path = Path(file)
        write(path, self.html())
        return path

    def html(self) -> str:
        """The comparison as HTML text."""
        names, cells = self._metric_names(), self._cells()
        winners = [self._winner(name) for name in names]
        rows = []
        for index, (name, row) in enumerate(zip(self.names, cells, strict=True)):
            marked = [
                {"text": text, "remark": remark, "winner": at < len(names) and winners[at] == index}
                for at, (text, remark) in enumerate(row)
            ]
            rows.append({"name": name, "color": RUNS[index % len(RUNS)], "cells": marked})
        notices = [
            f"{name}: {text}" for name, run in zip(self.names, self.runs, strict=True)
            for text in (not_finite(run), " ".join(run.problems)) if text
        ]  # fmt: skip
        return rendered(
            "compare.html",
            runs=rows,
            heads=self._heads(),
            notices=notices,
            charts=[{"chart": chart, "image": image(chart)} for chart in self.charts()],
            differences=[(key, list(map(_in_words, values))) for key, values in self.differences.items()],
        )

    def charts(self) -> list[Chart]:
        """One chart for each metric, learning rate and speed, with a line for each run."""
        shared = {run.axis for run in self.runs}
        by, axis = ("step", "update") if shared == {"update"} else ("epoch", "epoch")
        wanted = [name for name in self._metric_names() if not name.startswith("test_")]
        found = [self._chart(name, by, axis) for name in wanted]
        found += [self._chart(name, by, axis) for name in ("learning_rate", "samples_per_second")]
        return [chart for chart in found if chart.lines]

    # ---------------------------------------------------------------------------------------------------------- parts

    def _chart(self, name: str, by: str, axis: str) -> Chart:
        lines, values = [], []
        for index, (run_name, run) in enumerate(zip(self.names, self.runs, strict=True)):
            y = column(run.epochs, name)
            if np.isfinite(y).any():
                color = RUNS[index % len(RUNS)]
                lines.append(Series(run_name, column(run.epochs, by), y, color, marks=True))
                values.append(y)
        plain = name.removeprefix("val_")
        note = "validation" if name.startswith("val_") else "training"
        note = {"learning_rate": "", "samples_per_second": "training alone"}.get(name, note)
        flat = np.concatenate(values) if values else np.zeros(0)
        scale = "log" if plain == "loss" and wants_log_scale(flat, ratio=4) else "linear"
        zero = name in ("learning_rate", "samples_per_second")
        return Chart("Loss" if plain == "loss" else title(plain), note, lines, scale, from_zero=zero, axis=axis)

    def _metric_names(self) -> list[str]:
        """Test metrics first, then validation's, then training's; the losses at the head of each."""
        names = dict.fromkeys(name for metrics in self.metrics for name in metrics)
        return sorted(
            names, key=lambda n: (not n.startswith("test_"), not n.startswith("val_"), not n.endswith("loss"))
        )

    def _heads(self) -> list[str]:
        heads = [name.replace("val_", "val. ").replace("_", " ") for name in self._metric_names()]
        return [*heads, "epochs", "time", "samples/s"]

    def _cells(self) -> list[list[tuple[str, str]]]:
        rows = []
        for run, metrics in zip(self.runs, self.metrics, strict=True):
            row = []
            for name in self._metric_names():
                metric = metrics.get(name)
                if metric is None:
                    row.append(("", ""))
                    continue
                final = "not finite" if metric.final is None else number(name, metric.final)
                same = metric.best is None or metric.best == metric.final or metric.epoch is None
                row.append((final, "" if same else f"best {number(name, metric.best)}, epoch {metric.epoch}"))
            seconds, speed = _seconds(run), _speed(run)
            remark = "" if run.status in ("completed", "history") else run.status
            row.append((str(len(run.epochs)), remark))
            row.append((duration(seconds) if seconds is not None else "", ""))
            row.append((f"{speed:,.0f}" if speed else "", ""))
            rows.append(row)
        return rows

    def _winner(self, name: str) -> int | None:
        """The run whose best value is the best of all, if it is the only one."""
        known = {i: m[name].best for i, m in enumerate(self.metrics) if name in m and m[name].best is not None}
        if len(known) < 2:
            return None
        best = (max if is_higher_better(name.removeprefix("test_")) else min)(known.values())  # type: ignore[type-var]
        winners = [i for i, value in known.items() if value == best]
        return winners[0] if len(winners) == 1 else None


def compare(
    runs: Iterable[Any] | Mapping[str, Any], file: str | os.PathLike[str] | None = None, names: list[str] | None = None
) -> Comparison:
    """Puts several runs side by side.

    Args:
        runs: a list of run directories, of `metrics.jsonl` files, or of what calls of `fit` returned, in any mixture;
            or a dictionary of them by name.
        file: where to write an HTML file with the table, the curves over each other, and what the recipes differ in;
            it works offline. None writes nothing.
        names: of the runs, for a list; their directories' names when left out.

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        FileNotFoundError: a run is not there.
        TypeError, ValueError: for what is no run, for none at all, and for another number of names than of runs.

    >>> print(compare({"slow": {"loss": [0.9, 0.8]}, "fast": {"loss": [0.5, 0.2]}}))
    run   loss  epochs  time  samples/s
    slow  0.8   2
    fast  0.2   2
    """
    if isinstance(runs, (str, os.PathLike)):
        raise TypeError(f"`runs` must be a list of runs. Received: runs={runs!r}")
    given = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    if isinstance(runs, Mapping):
        names = list(runs)
    found = [run_of(source) for source in given]
    if not found:
        raise ValueError("`runs` must hold at least one run. Received: none")
    if names is not None and len(names) != len(found):
        raise ValueError(f"`names` must name each of {len(found)} runs. Received: names={names!r}")
    comparison = Comparison(
        _distinct([_name(run) for run in found] if names is None else list(map(str, names))),
        found,
        [_metrics(run) for run in found],
        _differences(found),
    )
    if file is not None:
        comparison.write(file)
    return comparison


def _name(run: Run) -> str:
    return "history" if run.axis == "epoch" else run.directory.resolve().name


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number behind those that occur twice."""
    taken: set[str] = set()
    found = []
    for name in names:
        number, new = 2, name
        while new in taken:
            new, number = f"{name} ({number})", number + 1
        taken.add(new)
        found.append(new)
    return found


def _metrics(run: Run) -> dict[str, Metric]:
    names = [n for plain in ("loss", *metric_names(run)) for n in (f"val_{plain}", plain)]
    found = {}
    for name in names:
        values, epochs = column(run.epochs, name), [line.get("epoch") for line in run.epochs]
        there = [name in line for line in run.epochs]
        if not any(there):
            continue
        finite = np.isfinite(values)
        at = None
        if finite.any():
            at = int(np.nanargmax(values) if is_higher_better(name.removeprefix("test_")) else np.nanargmin(values))
        last = values[max(i for i, known in enumerate(there) if known)]
        final = float(last) if math.isfinite(last) else None
        found[name] = Metric(final, None if at is None else float(values[at]), None if at is None else epochs[at])
    for name, value in (run.result.get("test") or {}).items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            found[f"test_{name}"] = Metric(float(value), float(value), None)
    return found


def _differences(runs: list[Run]) -> dict[str, list[Any]]:
    rows = [dict(flatten(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key, _ABSENT) for row in rows] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def _in_words(value: Any) -> str:
    return value if value == _ABSENT else shown(value)


def _updates(run: Run) -> int | None:
    lines = run.epochs or run.steps
    return int(lines[-1]["step"]) if lines and run.axis == "update" else None


def _seconds(run: Run) -> float | None:
    """What the result says, or the time between the first line and the last."""
    if run.result.get("seconds") is not None:
        return float(run.result["seconds"])
    times = [line["time"] for line in (*run.steps, *run.epochs) if isinstance(line.get("time"), (int, float))]
    return float(max(times) - min(times)) if len(times) > 1 else None


def _speed(run: Run) -> float | None:
    value = run.result.get("samples_per_second")
    return value or next(
        (line["samples_per_second"] for line in reversed(run.epochs) if line.get("samples_per_second")), None
    )
