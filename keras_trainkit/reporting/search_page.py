"""The report of a search: one HTML file with what was tried, what came of it and what to try next."""

from __future__ import annotations

import base64
import math
import os
from pathlib import Path
from typing import Any

from keras_trainkit.reporting import search_charts, search_insight
from keras_trainkit.reporting.page import REPORT, duration, flatten, number, rendered, shown, write
from keras_trainkit.reporting.search_reading import (
    COMPLETED,
    FAILED,
    RUNNING,
    Parameter,
    SearchResults,
    SearchTrial,
    read_search,
)

TEMPLATE = "search.html"
_MOST_REASONS = 30
_MOST_DETAILS = 4000
_MOST_WORDS = 40


def report_search(search: Any, file: str | os.PathLike[str] | None = None, *, storage: Any = None) -> Path:
    """Writes the report of a search, one HTML file to be opened offline; also of one that goes on or was killed.

    It shows the best trial; the best score so far along trials, epochs and seconds; learning curves with marks where
    trials were pruned; parallel coordinates; which hyperparameters matter (functional ANOVA, Hutter et al. 2014, of the
    ranks of the scores, from 20 trials on); the score against each hyperparameter; the Pareto front of several
    objectives; why trials failed; ranges at whose edge the best trials lie; and all trials in a table.

    Args:
        search: the project's directory, in which `search.db` is; a tuner; or, with `storage`, the project's name.
        file: where the page goes; `report.html` in the project's directory, or in the working directory if only a
            storage is known, when left out.
        storage: URL of the database that the search was given, or a storage of Optuna.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: there is no search.
        ImportError: Optuna, of the extra `tuning`, is not installed.
        ValueError: the database cannot be read, or holds several searches and none of this name.
    """
    results = search if isinstance(search, SearchResults) else read_search(search, storage=storage)
    path = (results.directory or Path()) / REPORT if file is None else Path(file)
    write(path, render_search(results))
    return path


def render_search(results: SearchResults) -> str:
    """The report as HTML text."""
    failures = failure_rows(results)
    best = results.best()
    return rendered(
        TEMPLATE,
        name=results.name,
        subtitle=subtitle(results),
        notices=notices(results),
        tiles=tiles(results),
        edges=search_insight.edge_warnings(results),
        sections=[(head, [_with_address(p) for p in items], remark) for head, items, remark in sections(results)],
        failures=failures[:_MOST_REASONS],
        more_failures=max(0, len(failures) - _MOST_REASONS),
        table=trial_table(results),
        best_title="the best trial" if best else "no other trial beats it in every objective",
        tables=[
            (f"Best trial, {best.trial_id}" if best else "", list(best.values.items()) if best else []),
            ("Space", [(parameter.name, describe(parameter)) for parameter in results.parameters]),
            ("Search", flatten({name: value for name, value in results.settings.items() if value is not None})),
        ],
    )


def sections(results: SearchResults) -> list[tuple[str, list[search_charts.Picture], str]]:
    """Headings with their pictures, and what is to be said where there are none."""
    several = len(results.objectives) > 1
    scored = results.scored()
    courses = [search_insight.progress(results, index) for index in range(len(results.objectives))]
    along = ["trials"] if several else ["trials", "epochs", "seconds"]
    course = [
        picture
        for index, found in enumerate(courses)
        for axis in along
        if (picture := search_charts.best_so_far(results, found, axis, index)) is not None
    ]
    curves = search_charts.learning_curves(results)
    together = search_charts.parallel(results, [t for t in scored if all(math.isfinite(s) for s in t.scores)])
    bars, reasons = [], []
    for index, (name, _) in enumerate(results.objectives if scored else ()):
        found = search_insight.importance(results, index)
        if isinstance(found, str):
            reasons.append(found)
        else:
            bars.append(search_charts.importances(name, found, wide=not several))
    how = (
        "By functional ANOVA (fANOVA, Optuna's) of the ranks of the scores: what each hyperparameter explains by "
        "itself, averaged over all others. What lies below the line of chance, the share of made-up hyperparameters, "
        "says nothing."
    )
    return [
        ("Course", course, "No trial has a score." if results.trials and not course else ""),
        ("Pareto front", search_charts.fronts(results) if several else [], ""),
        ("Learning curves", [curves] if curves else [], ""),
        ("Hyperparameters together", [together] if together else [], ""),
        ("Importance", bars, how if bars else reasons[0] if reasons else ""),
        ("Each hyperparameter", [
            picture for index in range(len(results.objectives))
            for picture in search_charts.slices(results, results.scored(index), index)
        ], ""),
    ]  # fmt: skip


def _with_address(picture: search_charts.Picture) -> dict[str, Any]:
    text = base64.b64encode(picture.svg.encode()).decode()
    address = f"data:image/svg+xml;base64,{text}"
    return {"title": picture.title, "note": picture.note, "wide": picture.wide, "address": address}


def tiles(results: SearchResults) -> list[tuple[str, str, str]]:
    """The few numbers that sum up the search: label, value, remark."""
    found = []
    best = results.best()
    if len(results.objectives) > 1:
        found.append(("Pareto front", str(len(results.front())), "trials that no other beats in every objective"))
        for index, (name, _) in enumerate(results.objectives):
            scored = results.scored(index)
            if scored:
                remark = f"trial {scored[0].trial_id}"
                found.append((f"best {name}", number(name, scored[0].scores[index]), remark))
    else:
        name = results.objectives[0][0]
        found.append((f"best {name}", number(name, best.score) if best else "none", _summary(best)))
    by_status = ", ".join(f"{count} {status}" for status, count in results.counts().items())
    found.append(("trials", f"{len(results.trials):,}", by_status))
    again = sum(trial.runs - 1 for trial in results.trials)
    runs = f"{again} {'run was' if again == 1 else 'runs were'} begun again" if again else ""
    found.append(("epochs", f"{sum(trial.epochs for trial in results.trials):,}", runs))
    found.append(("time", duration(results.seconds), "of all starts of the search together"))
    return found


def _summary(best: SearchTrial | None) -> str:
    if best is None:
        return ""
    values = ", ".join(f"{name} {shown(value)}" for name, value in best.values.items() if not name.startswith("tuner/"))
    return f"trial {best.trial_id}: {values}" if len(values) <= 160 else f"trial {best.trial_id}"


def subtitle(results: SearchResults) -> str:
    """Objective and settings in one line."""
    ways = [f"{name} ({'lower' if way == 'min' else 'higher'} is better)" for name, way in results.objectives]
    count = len(results.parameters)
    named = [f"{count} hyperparameter{'' if count == 1 else 's'}"]
    sampler = results.settings.get("sampler")
    return " · ".join([" and ".join(ways), *named, *([f"sampler {sampler}"] if sampler else [])])


def notices(results: SearchResults) -> list[str]:
    """What is not as one would wish."""
    by_status = results.counts()
    found = []
    if by_status.get(RUNNING):
        count = by_status[RUNNING]
        have = "s have" if count > 1 else " has"
        found.append(f"{count} trial{have} not ended: the search goes on, or was ended from outside.")
    failed = by_status.get(FAILED, 0)
    if failed and failed == len(results.trials):
        found.append("All trials failed." if failed > 1 else "The only trial failed.")
    elif failed > len(results.trials) / 4:
        found.append(f"{failed} of {len(results.trials)} trials failed: see why below.")
    lost = [t for t in results.trials if t.status == COMPLETED and not any(map(math.isfinite, t.scores))]
    if lost:
        found.append(f"{len(lost)} completed trials have no finite score.")
    return found


def failure_rows(results: SearchResults) -> list[dict[str, Any]]:
    """Failed trials by their reasons, the most frequent first; the whole message of one of each."""
    groups: dict[str, list[SearchTrial]] = {}
    for trial in results.trials:
        if trial.status == FAILED:
            groups.setdefault(_first_line(trial.reason) or "no reason was given", []).append(trial)
    rows = []
    for reason, trials in sorted(groups.items(), key=lambda item: -len(item[1])):
        details = trials[0].reason.partition("\n")[2].strip("\n")
        names = ", ".join(trial.trial_id for trial in trials[:_MOST_WORDS])
        rows.append(
            {
                "reason": reason,
                "count": len(trials),
                "trials": names + (" ..." if len(trials) > _MOST_WORDS else ""),
                # The end of a traceback says where it was.
                "details": details if len(details) <= _MOST_DETAILS else "...\n" + details[-_MOST_DETAILS:],
            }
        )
    return rows


def trial_table(results: SearchResults) -> dict[str, Any]:
    """Header and rows of the table of all trials: those with a score first, best first."""
    names: dict[str, None] = dict.fromkeys(parameter.name for parameter in results.parameters)
    for trial in results.trials:
        names |= dict.fromkeys(trial.values)
    several = len(results.objectives) > 1
    ranked = results.scored()
    marked = {trial.number for trial in (results.front() if several else ranked[:1])}
    places = {trial.number: place for place, trial in enumerate(ranked)}
    rows = []
    for trial in sorted(results.trials, key=lambda trial: (places.get(trial.number, len(ranked)), trial.number)):
        scores = [number(name, score) if math.isfinite(score) else "" for (name, _), score in
                  zip(results.objectives, trial.scores, strict=True)]  # fmt: skip
        cells = [
            trial.trial_id, *scores, trial.status, f"{trial.epochs}",
            f"{trial.seconds:.1f}" if trial.spans else "",
            *(shown(trial.values[name]) if name in trial.values else "" for name in names),
            _first_line(trial.reason)[:90],
        ]  # fmt: skip
        rows.append({"cells": cells, "best": trial.number in marked})
    heads = ["trial", *(name for name, _ in results.objectives), "status", "epochs", "seconds", *names, "remark"]
    return {"heads": heads, "rows": rows}


def describe(parameter: Parameter) -> str:
    """A range in words.

    >>> describe(Parameter("rate", 1e-4, 0.1, "log"))
    '0.0001 to 0.1, log'
    """
    if parameter.choices is not None:
        text = shown(parameter.choices)
    else:
        text = f"{shown(parameter.low)} to {shown(parameter.high)}"
        text += f", {parameter.scale}" if parameter.scale != "linear" else ""
    return text + (f"; if {' and '.join(parameter.conditions)}" if parameter.conditions else "")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
