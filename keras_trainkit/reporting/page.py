"""The report: one HTML file about a run, with everything inside it."""

from __future__ import annotations

import base64
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from keras_trainkit._version import __version__
from keras_trainkit.reporting.charts import charts, metric_names, title
from keras_trainkit.reporting.curves import Chart, draw
from keras_trainkit.reporting.reading import Run, run_of

REPORT = "report.html"
VERDICTS = {
    "completed": "",
    "interrupted": "The run was interrupted. Everything up to then is here.",
    "failed": "The run failed.",
    "unfinished": "There is no result: the run goes on, or was ended from outside. This is what it wrote so far.",
}


def report(run: Any, file: str | os.PathLike[str] | None = None) -> Path:
    """Writes the report of a run, one HTML file: curves, tables, recipe and environment, to be opened offline.

    Files that are missing or cut short leave gaps, and the report says so.

    Args:
        run: the directory that `recipes.run`, `keras-trainkit train` or a `TrainingMonitor` wrote to; a
            `metrics.jsonl`; or what `fit` returned.
        file: where the page goes; `report.html` in the run's directory, or in the working directory for what `fit`
            returned, when left out.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: there is no run.
        TypeError, ValueError: for what is no run.

    >>> import tempfile
    >>> path = report({"loss": [0.9, 0.5, 0.4]}, tempfile.mkdtemp() + "/first.html")
    >>> path.name, path.read_text(encoding="utf-8")[:15]
    ('first.html', '<!doctype html>')
    """
    found = run_of(run)
    path = (Path() if found.axis == "epoch" else found.directory) / REPORT if file is None else Path(file)
    write(path, render(found))
    return path


def write(path: Path, text: str) -> None:
    """Writes a page whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def render(run: Run) -> str:
    """The report as HTML text."""
    return rendered(
        REPORT,
        run=run,
        verdict=verdict(run),
        notices=[text for text in (not_finite(run), " ".join(run.problems)) if text],
        tiles=tiles(run),
        charts=[{"chart": chart, "image": image(chart)} for chart in charts(run)],
        epochs=epoch_table(run),
        tables=[
            ("Test", [(name, number(name, value)) for name, value in (run.result.get("test") or {}).items()]),
            ("Recipe", flatten(run.recipe)),
            ("Data and model", flatten(run.resolved)),
            ("Environment", environment_rows(run)),
            ("Files", files(run.directory)),
        ],
        subtitle=subtitle(run),
    )


def rendered(template: str, **values: Any) -> str:
    """One of the templates as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("keras_trainkit.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment.get_template(template).render(version=__version__, **values)


def image(chart: Chart) -> str:
    """The chart as the address of an image that lies in the address itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(draw(chart).encode()).decode()


def verdict(run: Run) -> str:
    """What to say about a run that did not end as planned; nothing about one that did."""
    parts = [VERDICTS.get(run.status, "")]
    done, planned = run.result.get("epochs_completed"), run.result.get("epochs")
    if run.status in ("interrupted", "failed") and isinstance(done, int) and isinstance(planned, int):
        parts.append(f"It completed {done} of {planned} epochs.")
    if run.status != "completed" and run.result.get("best"):
        parts.append(f"The model is that of epoch {run.result['best'].get('epoch')}, the best until then.")
    if run.result.get("error"):
        parts.append(f"Reason: {run.result['error']}")
    return " ".join(part for part in parts if part)


def subtitle(run: Run) -> str:
    """Data, model, optimizer and time in one line, as far as they are known."""
    data = run.resolved.get("data")
    optimizer = run.recipe.get("optimizer")
    parts = [
        data.get("name") if isinstance(data, dict) else run.recipe.get("data"),
        data.get("task") if isinstance(data, dict) else run.result.get("task"),
        run.resolved.get("model") or run.recipe.get("model"),
        optimizer.get("name") if isinstance(optimizer, dict) else optimizer,
        run.recipe.get("precision"),
        moment(run.environment["started"]) if run.environment.get("started") else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """The few numbers that sum up the run: label, value, remark."""
    found: list[tuple[str, str, str]] = []
    result = run.result
    test = result.get("test") or {}
    main = next((name for name in ("accuracy", "mae", "rmse", "loss", *test) if name in test), None)
    if main is not None:
        examples = result.get("test_examples")
        label = title(main) if len(main) <= 4 and main != "loss" else main.replace("_", " ")
        found.append((f"test {label}", number(main, test[main]), f"on {examples:,} examples" if examples else ""))
    best = result.get("best") or {}
    if best.get("value") is not None:
        name = str(best.get("metric", ""))
        label = "best " + name.replace("val_", "val. ").replace("_", " ")
        found.append((label, number(name, best["value"]), f"epoch {best.get('epoch')}"))
    done = result.get("epochs_completed", len(run.epochs))
    planned = result.get("epochs") or run.recipe.get("epochs")
    updates = run.epochs[-1]["step"] if run.epochs else run.steps[-1]["step"] if run.steps else 0
    remark = f"{updates:,} updates" if run.axis == "update" else ""
    found.append(("epochs", f"{done}" + (f" of {planned}" if planned and planned != done else ""), remark))
    seconds = result.get("seconds")
    if seconds is not None:
        training = result.get("train_seconds")
        found.append(("time", duration(seconds), f"{duration(training)} in training" if training else ""))
    speed = result.get("samples_per_second") or next(
        (line["samples_per_second"] for line in reversed(run.epochs) if line.get("samples_per_second")), None
    )
    if speed:
        found.append(("samples per second", f"{speed:,.0f}", "training alone"))
    parameters = result.get("parameters") or run.resolved.get("parameters")
    if parameters:
        found.append(("parameters", f"{parameters:,}", str(run.resolved.get("model") or "")))
    return found


def epoch_table(run: Run) -> dict[str, Any]:
    """Header and rows of the table of epochs; the epoch that was kept is marked."""
    names = ["loss", "val_loss"]
    for name in metric_names(run):
        names += [name, f"val_{name}"]
    names += ["learning_rate", "samples_per_second"]
    names = [name for name in names if any(name in line for line in run.epochs)]
    best = (run.result.get("best") or {}).get("epoch")
    counted = run.axis == "update"
    rows = [
        {
            "cells": [
                line.get("epoch", ""),
                *([f"{line['step']:,}"] if counted else []),
                *(cell(line, name) for name in names),
            ],
            "best": line.get("epoch") == best and best is not None,
        }
        for line in run.epochs
    ]
    heads = [
        name.replace("val_", "val. ").replace("samples_per_second", "samples/s").replace("_", " ") for name in names
    ]
    return {"heads": ["epoch", *(["update"] if counted else []), *heads], "rows": rows}


def cell(line: dict[str, Any], name: str) -> str:
    """One value of an epoch, or what stood in its place."""
    if name in (line.get("nonfinite") or ()):
        return "not finite"
    return number(name, line[name]) if line.get(name) is not None else ""


def number(name: str, value: Any) -> str:
    """A metric's value: shares to four places, speeds without any.

    >>> number("val_accuracy", 1.0), number("samples_per_second", 1234.5), number("loss", 0.123456)
    ('1.0000', '1,234', '0.1235')
    """
    if isinstance(value, (int, float)) and math.isfinite(value):
        if "accuracy" in name:
            return f"{value:.4f}"
        if name == "samples_per_second":
            return f"{value:,.0f}"
    return shown(value)


def not_finite(run: Run) -> str:
    """What was NaN or infinite at logged steps, how often, and where first."""
    first: dict[str, int] = {}
    count: dict[str, int] = {}
    for line in run.steps:
        for name in line.get("nonfinite") or ():
            first.setdefault(name, line["step"])
            count[name] = count.get(name, 0) + 1
    parts = [
        f"{name.replace('_', ' ').capitalize()} was not finite at {count[name]} of {len(run.steps)} logged steps, "
        f"first at update {first[name]:,}."
        for name in first
    ]
    return " ".join(parts)


def environment_rows(run: Run) -> list[tuple[str, Any]]:
    """Times, command, machine, devices and versions, in this order, whatever else is there after them."""
    given = dict(run.environment)
    rows: list[tuple[str, Any]] = []
    for name in ("started", "ended"):
        if given.get(name):
            rows.append((name, moment(given[name])))
        given.pop(name, None)
    command = given.pop("command", None)
    if isinstance(command, list):
        words = [str(word) for word in command]
        rows.append(("command", " ".join([*(Path(word).name for word in words[:1]), *words[1:]])))
    for name in ("machine", "devices", "versions"):
        if name in given:
            rows += flatten({name: given.pop(name)})
    return rows + flatten(given)


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested objects as rows; a list is one row.

    >>> flatten({"a": 1, "data": {"name": "digits", "shape": [8, 8]}})
    [('a', 1), ('data: name', 'digits'), ('data: shape', [8, 8])]
    """
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        rows += flatten(value, f"{label}: ") if isinstance(value, dict) and value else [(label, value)]
    return rows


def files(directory: Path) -> list[tuple[str, str]]:
    """The files of a run and their sizes."""
    about = {
        "model.keras": "the best model, from raw values to predictions",
        "metrics.jsonl": "every logged step and epoch, one JSON object a line",
        "tensorboard": f"events: tensorboard --logdir {directory}",
        "recipe.json": "what to run again",
        "environment.json": "versions, machine, devices",
        "result.json": "how it ended",
    }
    return [(name, about[name]) for name in about if (directory / name).exists()]


def shown(value: Any) -> str:
    """A value for a table.

    >>> shown(0.98765432), shown(33271.17), shown(1e-05), shown(60000), shown([8, 8, 1]), shown(None), shown(True)
    ('0.9877', '33,271', '1e-05', '60,000', '8, 8, 1', 'none', 'yes')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not finite"
        if value == int(value) and abs(value) < 1e4:
            return f"{value:g}"
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value)
    return str(value)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(8.43), duration(75), duration(7384)
    ('8.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(text: Any) -> str:
    """An ISO time without its letters, in UTC."""
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return str(text)
