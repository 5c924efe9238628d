"""Reading a run, mostly from its directory, whole or not: a killed run leaves missing files and half a line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RUN_FILES = ("recipe.json", "environment.json", "metrics.jsonl", "result.json")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds, as plain values.

    Attributes:
        directory: where it is.
        recipe: what was asked for (the "recipe" of recipe.json).
        resolved: what followed from it (the "resolved" of recipe.json).
        environment: versions, machine, devices, command, started, ended.
        steps: the lines of kind "step" of metrics.jsonl, in order of `step`.
        epochs: the lines of kind "epoch", in order of `step`.
        result: status, test metrics, best epoch, times; empty as long as the run is not over.
        problems: one sentence for each file that is missing or cannot be read whole.
        axis: what `step` counts: "update", or "epoch" where updates are not known.
    """

    directory: Path
    recipe: dict[str, Any]
    resolved: dict[str, Any]
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    result: dict[str, Any]
    problems: list[str]
    axis: str = "update"

    @property
    def status(self) -> str:
        """ "completed", "interrupted", "failed", or "unfinished" if there is no result; "history" for one of `fit`."""
        if self.axis == "epoch":
            return "history"
        return str(self.result.get("status") or "unfinished")

    @property
    def name(self) -> str:
        """The run's name, or its directory's."""
        return str(self.result.get("name") or self.directory.resolve().name)


def read_run(run_directory: str | os.PathLike[str]) -> Run:
    """Reads the files that a training run writes, as far as they are there.

    Lines of metrics.jsonl that a resumed run wrote again replace the earlier ones; a torn line is left out.

    Args:
        run_directory: the directory that `recipes.run` or a `TrainingMonitor` wrote to.

    Raises:
        FileNotFoundError: there is no such directory, or no file of a run in it.
    """
    directory = Path(run_directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no run directory {directory}")
    if not any((directory / name).exists() for name in RUN_FILES):
        raise FileNotFoundError(f"no run in {directory}: it holds none of {', '.join(RUN_FILES)}")
    problems: list[str] = []
    recipe = _read_object(directory / "recipe.json", problems)
    lines = _read_lines(directory / "metrics.jsonl", problems)
    wrapped = "recipe" in recipe
    return Run(
        directory=directory,
        recipe=_mapping(recipe.get("recipe")) if wrapped else recipe,
        resolved=_mapping(recipe.get("resolved")),
        environment=_read_object(directory / "environment.json", problems),
        steps=_latest([line for line in lines if line.get("kind") == "step"]),
        epochs=_latest([line for line in lines if line.get("kind") == "epoch"]),
        result=_read_object(directory / "result.json", problems),
        problems=problems,
    )


def run_of(source: Any) -> Run:
    """The run that something tells of.

    Args:
        source: a run directory; a `metrics.jsonl`; what `fit` returned, or its `history`, a dictionary from names to
            one value for each epoch; or a run that was read already.

    Raises:
        FileNotFoundError: there is no such run.
        TypeError: for anything else.
        ValueError: for a history without an epoch, or one that holds no lists of numbers.
    """
    if isinstance(source, Run):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _of_lines(path) if path.is_file() else read_run(path)
    values = source if isinstance(source, Mapping) else getattr(source, "history", None)
    if not isinstance(values, Mapping):
        raise TypeError(
            "a run is given by its directory, its `metrics.jsonl`, or what `fit` returned. "
            f"Received: {type(source).__name__}"
        )
    return _of_history(values, getattr(source, "epoch", None))


def _of_lines(path: Path) -> Run:
    problems: list[str] = []
    lines = _read_lines(path, problems)
    if not lines:
        raise FileNotFoundError(f"no run in {path}: it holds no line of a `metrics.jsonl`")
    return Run(
        path.parent, {}, {}, {}, _latest([line for line in lines if line.get("kind") == "step"]),
        _latest([line for line in lines if line.get("kind") == "epoch"]), {}, problems,
    )  # fmt: skip


def _of_history(values: Mapping[str, Any], epochs: Any) -> Run:
    columns = {}
    for name, column in values.items():
        try:
            columns[str(name)] = [float(value) for value in column]
        except (TypeError, ValueError):
            raise ValueError(f"a history holds one number for each epoch. Received: {name}={column!r}") from None
    count = max(map(len, columns.values()), default=0)
    if not count:
        raise ValueError("the history holds no epoch.")
    numbers = [epoch + 1 for epoch in epochs] if epochs and len(epochs) == count else range(1, count + 1)
    # Where a metric belongs that came now and then, as with `validation_freq`, is not told: only whole columns.
    lines = [
        {"epoch": number, **{name: column[index] for name, column in columns.items() if len(column) == count}}
        for index, number in enumerate(numbers)
    ]
    left = [name for name, column in columns.items() if len(column) != count]
    return run_of_lines(lines, [f"{', '.join(left)}: not one value for each epoch, so left out."] if left else [])


def run_of_lines(epochs: list[dict[str, Any]], problems: Sequence[str] = ()) -> Run:
    """A run of which only the logs of epochs are known: dictionaries with `epoch`, from 1, and numbers."""
    lines = []
    for logs in epochs:
        bad = [name for name, value in logs.items() if not math.isfinite(value)]
        line: dict[str, Any] = {"kind": "epoch", "step": logs["epoch"]}
        line |= {name: None if name in bad else value for name, value in logs.items()}
        lines.append(line | ({"nonfinite": bad} if bad else {}))
    return Run(Path("history"), {}, {}, {}, [], _latest(lines), {}, list(problems), axis="epoch")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no object.")
        return {}
    return value


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        problems.append(f"{path.name} is missing.")
        return []
    lines, bad = [], 0
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            bad += bool(line.strip())
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
        else:
            bad += 1
    if bad:
        problems.append(f"{bad} line{'s' * (bad > 1)} of {path.name} cannot be read.")
    return lines


def _latest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A resumed run starts again at an earlier step: what it writes takes the place of what was there."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept
