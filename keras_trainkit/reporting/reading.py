"""Reading a run directory, whole or not: a killed run leaves missing files and half a line."""

from __future__ import annotations

import dataclasses
import json
import os
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
    """

    directory: Path
    recipe: dict[str, Any]
    resolved: dict[str, Any]
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    result: dict[str, Any]
    problems: list[str]

    @property
    def status(self) -> str:
        """ "completed", "interrupted", "failed", or "unfinished" if there is no result."""
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
