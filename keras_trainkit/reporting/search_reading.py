"""Reading a search from its database, whatever became of it, as plain values; Keras and TensorFlow are not loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATABASE = "search.db"
COMPLETED, PRUNED, FAILED, RUNNING = "completed", "pruned", "failed", "running"
STATUSES = (COMPLETED, PRUNED, FAILED, RUNNING)
# What `tuning.database` writes beside a trial, and for an entry that a killed search left behind.
_PROPOSAL, _RECORD, _REASON, _LEFT = "proposal", "record", "reason", "the search was ended while it ran"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A hyperparameter that was searched; of one name in several branches, all of them together.

    Attributes:
        name: as the hypermodel calls it.
        low, high: the range of numbers; None for words.
        scale: `"linear"`, `"log"` or `"reverse_log"`.
        choices: the values of a choice; None for a range.
        integer: whether only whole numbers are drawn.
        conditions: what must hold for it to be there, in words; empty if nothing must.
    """

    name: str
    low: float | None = None
    high: float | None = None
    scale: str = "linear"
    choices: tuple[Any, ...] | None = None
    integer: bool = False
    conditions: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, or choices in the order of numbers."""
        return self.low is not None

    def place(self, value: Any) -> float:
        """Where a value lies between the ends, 0 to 1 under its scale; choices evenly; NaN for what is no value of it.

        >>> Parameter("rate", 1e-4, 1.0, "log").place(1e-2), Parameter("kind", choices=("a", "b", "c")).place("b")
        (0.5, 0.5)
        """
        if self.choices is not None:
            return self.choices.index(value) / max(1, len(self.choices) - 1) if value in self.choices else math.nan
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low is None or self.high is None:
            return math.nan
        if self.low == self.high:
            return 0.5
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else math.nan
        if self.scale == "reverse_log":
            mirrored = self.low + self.high - value
            return 1 - math.log(mirrored / self.low) / math.log(self.high / self.low) if mirrored > 0 else math.nan
        return (value - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class SearchTrial:
    """What is known of one trial.

    Attributes:
        number: in the order of the proposals, from 0.
        trial_id: KerasTuner's.
        values: of the hyperparameters that are active, and KerasTuner's own (`"tuner/epochs"`).
        status: `"completed"`, `"pruned"`, `"failed"` or `"running"`.
        scores: one number for each objective, NaN where there is none.
        curve: epochs, from 1, and values of the objective.
        reason: why it failed or ended early; may have several lines.
        spans: begin and end of each run of it, in seconds of Unix time, as far as it has ended.
        order: its place among those that ended; None while it runs.
        epochs: reported in all of its runs.
        runs: how often it was begun.
    """

    number: int
    trial_id: str
    values: dict[str, Any]
    status: str
    scores: tuple[float, ...]
    curve: tuple[tuple[int, float], ...]
    reason: str
    spans: tuple[tuple[float, float], ...]
    order: int | None
    epochs: int
    runs: int

    @property
    def score(self) -> float:
        """The first objective's."""
        return self.scores[0] if self.scores else math.nan

    @property
    def seconds(self) -> float:
        """Of all of its runs."""
        return sum(end - begin for begin, end in self.spans)


@dataclasses.dataclass(frozen=True)
class SearchResults:
    """What a search's database holds.

    Attributes:
        name: of the project.
        directory: of the project; None where only a storage is known.
        objectives: name and `"min"` or `"max"` of each.
        parameters: what was searched, in order.
        trials: in the order of the proposals.
        seconds: that the search took, all of its runs together.
        settings: sampler, pruner, seed and so on.
    """

    name: str
    directory: Path | None
    objectives: tuple[tuple[str, str], ...]
    parameters: tuple[Parameter, ...]
    trials: tuple[SearchTrial, ...]
    seconds: float
    settings: dict[str, Any]

    @property
    def ended(self) -> list[SearchTrial]:
        """Those that ended, in that order."""
        return sorted((trial for trial in self.trials if trial.order is not None), key=lambda trial: trial.order or 0)

    def scored(self, objective: int = 0) -> list[SearchTrial]:
        """Those with a finite score, best first."""
        known = [t for t in self.trials if t.status in (COMPLETED, PRUNED) and math.isfinite(t.scores[objective])]
        return sorted(known, key=lambda trial: self.sign(objective) * trial.scores[objective])

    def sign(self, objective: int = 0) -> int:
        """1 where lower is better, -1 where higher is."""
        return -1 if self.objectives[objective][1] == "max" else 1

    def best(self) -> SearchTrial | None:
        """The trial with the best score; with several objectives nothing is."""
        scored = self.scored() if len(self.objectives) == 1 else []
        return scored[0] if scored else None

    def front(self) -> list[SearchTrial]:
        """The trials that no other beats in every objective, by the first one."""
        known = [t for t in self.scored() if all(math.isfinite(score) for score in t.scores)]
        points = [tuple(self.sign(i) * score for i, score in enumerate(trial.scores)) for trial in known]
        return [
            trial
            for trial, point in zip(known, points, strict=True)
            if not any(other != point and all(map(_at_most, other, point)) for other in points)
        ]

    def counts(self) -> dict[str, int]:
        """How many trials there are of each status, of those that there are."""
        found = {status: sum(trial.status == status for trial in self.trials) for status in STATUSES}
        return {status: count for status, count in found.items() if count}

    def to_dict(self) -> dict[str, Any]:
        """What sums it up, for JSON: no NaN, no infinity."""

        def plain(trial: SearchTrial) -> dict[str, Any]:
            names = [name for name, _ in self.objectives]
            scores = {name: _finite(score) for name, score in zip(names, trial.scores, strict=True)}
            return {"trial": trial.trial_id, "scores": scores, "values": trial.values}

        best = self.best()
        return {
            "name": self.name,
            "objectives": dict(self.objectives),
            "trials": self.counts(),
            "epochs": sum(trial.epochs for trial in self.trials),
            "seconds": self.seconds,
            "best": None if best is None else plain(best),
            **({"front": [plain(trial) for trial in self.front()]} if len(self.objectives) > 1 else {}),
        }


def is_search(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is that of a search, by the database in it."""
    return (Path(directory) / DATABASE).is_file()


def read_search(search: Any, *, storage: Any = None, overlook: Sequence[str] = ("tuner/",)) -> SearchResults:
    """Reads what a search wrote to its database. `oracle.json` and `trial.json` are never read.

    Args:
        search: the project's directory; a tuner; or, with `storage`, the project's name.
        storage: URL of the database that the search was given, or a storage of Optuna; None is `search.db` in the
            project's directory.
        overlook: beginnings of names that are no hyperparameters of the model.

    Raises:
        FileNotFoundError: there is no search.
        ImportError: Optuna, of the extra `tuning`, is not installed.
        ValueError: the database cannot be read, or holds several searches and none of this name.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("a report of a search needs Optuna: pip install 'keras-trainkit[tuning]'") from None
    if hasattr(search, "oracle"):
        return _results(search.study, str(search.project_name), Path(search.project_dir), overlook)
    directory = None
    name = os.fspath(search)
    if storage is None:
        directory = Path(search)
        path = _checked(directory)
        storage, name = f"sqlite:///{path}", directory.resolve().name
    try:
        names = optuna.get_all_study_names(storage)
        if directory is not None and len(names) == 1:
            name = names[0]
        if name not in names:
            where = f"in {directory or 'the storage'}"
            if directory is None or not names:
                raise FileNotFoundError(f"no search {name!r} {where}" + (f"; there are {names}" if names else ""))
            raise ValueError(f"the database {where} holds {names}: name one of them, and give `storage`")
        study = optuna.load_study(study_name=name, storage=storage)
        return _results(study, name, directory, overlook)
    except (OSError, ValueError):
        raise
    except Exception as error:
        # SQLAlchemy's own, of whatever driver, or Optuna's for a database of another version.
        raise ValueError(f"the search's database cannot be read ({type(error).__name__}: {error})") from error


def _checked(directory: Path) -> Path:
    path = directory / DATABASE
    if not path.is_file():
        raise FileNotFoundError(
            f"no search in {directory}: it holds no {DATABASE}. A search with a storage of its own is given by "
            "its name and `storage`"
            if directory.is_dir()
            else f"no directory {directory}"
        )
    # Optuna would make its tables in whatever file there is.
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    if found is None:
        raise FileNotFoundError(f"no search in {path}: it holds no study of Optuna")
    return path


def _results(study: Any, name: str, directory: Path | None, overlook: Sequence[str]) -> SearchResults:
    facts = dict(study.user_attrs)
    objectives = tuple((str(o[0]), str(o[1])) for o in facts.get("objectives") or _objectives(study))
    listed = [entry for entry in facts.get("space", {}).get("space", []) if isinstance(entry, Mapping)]
    trials = _trials(study, objectives, listed)
    return SearchResults(
        name=name,
        directory=directory,
        objectives=objectives,
        parameters=_parameters(listed, tuple(overlook)),
        trials=trials,
        seconds=float(facts.get("seconds") or 0.0),
        settings={**facts.get("settings", {}), "seed": facts.get("seed")},
    )


def _objectives(study: Any) -> list[tuple[str, str]]:
    names = {1: "min", 2: "max"}
    return [(f"objective {i + 1}", names.get(int(d), "min")) for i, d in enumerate(study.directions)]


def _parameters(listed: list[Mapping[str, Any]], overlook: tuple[str, ...]) -> tuple[Parameter, ...]:
    found: dict[str, Parameter] = {}
    for entry in listed:
        kind, config = entry["class_name"], entry["config"]
        if kind == "Fixed" or config["name"].startswith(overlook):
            continue
        made = _parameter(kind, config)
        before = found.get(made.name)
        found[made.name] = made if before is None else _together(before, made)
    return tuple(found.values())


def _parameter(kind: str, config: Mapping[str, Any]) -> Parameter:
    conditions = tuple(condition_text(condition) for condition in config.get("conditions") or ())
    if kind == "Boolean":
        return Parameter(config["name"], choices=(False, True), conditions=conditions)
    if kind == "Choice":
        values = tuple(config["values"])
        ordered = bool(config.get("ordered")) and not any(isinstance(value, str) for value in values)
        low, high = (float(min(values)), float(max(values))) if ordered else (None, None)
        return Parameter(config["name"], low, high, choices=values, conditions=conditions)
    return Parameter(
        config["name"], config["min_value"], config["max_value"], config.get("sampling") or "linear",
        integer=kind == "Int", conditions=conditions,
    )  # fmt: skip


def _together(one: Parameter, other: Parameter) -> Parameter:
    conditions = () if not (one.conditions and other.conditions) else (*one.conditions, *other.conditions)
    if one.choices is None and other.choices is None and one.scale == other.scale:
        low, high = min(one.low or 0.0, other.low or 0.0), max(one.high or 0.0, other.high or 0.0)
        return dataclasses.replace(one, low=low, high=high, conditions=conditions)
    choices = tuple(dict.fromkeys((*(one.choices or ()), *(other.choices or ()))))
    if one.choices is None or other.choices is None:
        return dataclasses.replace(one if one.choices is None else other, conditions=conditions)
    return dataclasses.replace(one, low=None, high=None, choices=choices, conditions=conditions)


def condition_text(condition: Mapping[str, Any]) -> str:
    """A condition of KerasTuner's in words."""
    config = condition.get("config", {})
    return f"{config.get('name')} = {' or '.join(str(value) for value in config.get('values', ()))}"


def _active(values: Mapping[str, Any], listed: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Values without those of branches that were not taken."""
    known = {entry["config"]["name"] for entry in listed}
    there: dict[str, Any] = {}
    for entry in listed:
        config = entry["config"]
        held = [c["config"] for c in config.get("conditions") or () if "config" in c]
        if config["name"] in values and all(c["name"] in there and there[c["name"]] in c["values"] for c in held):
            there[config["name"]] = values[config["name"]]
    return there | {name: value for name, value in values.items() if name not in known}


def _trials(study: Any, objectives: Sequence[Any], listed: list[Mapping[str, Any]]) -> tuple[SearchTrial, ...]:
    runs: dict[str, list[Any]] = {}
    for entry in study.get_trials(deepcopy=False):
        if _PROPOSAL in entry.user_attrs:
            runs.setdefault(entry.user_attrs[_PROPOSAL]["trial_id"], []).append(entry)
    found = []
    for number, (trial_id, entries) in enumerate(runs.items()):
        last = entries[-1]
        record = last.user_attrs.get(_RECORD) or {}
        state = record.get("trial") or {}
        values = (state.get("hyperparameters") or {}).get("values") or last.user_attrs[_PROPOSAL]["values"]
        curve = [(step + 1, value) for step, value in sorted(_points(entries).items())]
        found.append(
            SearchTrial(
                number=number,
                trial_id=trial_id,
                values=_active(values, listed),
                status=_status(last, record),
                scores=_scores(record, state, objectives),
                curve=tuple((step, value) for step, value in curve if math.isfinite(value)),
                reason=str(record.get("ended_early") or state.get("message") or ""),
                spans=tuple(span for entry in entries if (span := _span(entry)) is not None),
                order=record.get("order"),
                epochs=sum(len(entry.intermediate_values) for entry in entries),
                runs=len(entries),
            )
        )
    return tuple(found)


def _points(entries: list[Any]) -> dict[int, float]:
    """The learning curve of a trial's last run; one that went on from an earlier run's state has that one's epochs."""
    points: dict[int, float] = {}
    for entry in entries:
        first = min(entry.intermediate_values, default=0)
        points = {step: value for step, value in points.items() if step < first}
        points |= {step: float(value) for step, value in entry.intermediate_values.items()}
    return points


def _status(entry: Any, record: Mapping[str, Any]) -> str:
    if not record:
        return RUNNING
    if (record.get("trial") or {}).get("status") != "COMPLETED":
        return FAILED
    return PRUNED if str(record.get("ended_early") or "").startswith("pruned") else COMPLETED


def _scores(record: Mapping[str, Any], state: Mapping[str, Any], objectives: Sequence[Any]) -> tuple[float, ...]:
    values = record.get("values")
    if not values and len(objectives) == 1 and state.get("status") == "COMPLETED":
        values = [state.get("score")]
    if not values or len(values) != len(objectives):
        return (math.nan,) * len(objectives)
    return tuple(float(value) if value is not None else math.nan for value in values)


def _span(entry: Any) -> tuple[float, float] | None:
    # What a kill left behind was ended by the next start: how long it ran is not known.
    if entry.datetime_start is None or entry.datetime_complete is None or entry.user_attrs.get(_REASON) == _LEFT:
        return None
    return entry.datetime_start.timestamp(), entry.datetime_complete.timestamp()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _at_most(a: float, b: float) -> bool:
    return a <= b
