"""Pictures of schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import checks, pictures
from keras_trainkit.schedules.spans import LARGEST_STEP, is_resolved, resolve

_ALL_STEPS, _FEW_STEPS, _POINTS = 1_000_000, 1_000, 1_200


def plot(
    schedule: Any,
    steps: int,
    *,
    epochs: int = 1,
    together: bool = False,
    log: bool = False,
    file: str | Path | None = None,
) -> Any:
    """Draws schedules over the first `steps` updates; several side by side, or `together` in one frame.

    Args:
        schedule: a schedule (the kit's, Keras's or your own), a list of them, or a dictionary from titles to them.
            Lengths such as "0.9run" are taken of a run of `steps` updates.
        steps: updates, at least 1.
        epochs: into which they are cut, at least 1: for lengths such as "2ep".
        together: one frame for all.
        log: a logarithmic axis of rates.
        file: where to write the picture: `.svg`, `.png` or `.pdf`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        TypeError, ValueError: for what is no schedule, or an argument out of its range.

    >>> from keras_trainkit import schedules
    >>> figure = plot({"cosine": schedules.Cosine(0.1, "1run"), "REX": schedules.REX(0.1, "1run")}, steps=100)
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['cosine', 'REX']
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    steps = checks.integer("steps", steps, at_least=1, at_most=LARGEST_STEP)
    epochs = checks.integer("epochs", epochs, at_least=1)
    named = _named(schedule)
    lines = {title: _line(one, steps, epochs) for title, one in named.items()}
    columns = 1 if together else min(len(lines), 3)
    rows = 1 if together else math.ceil(len(lines) / columns)
    size = (6.4, 3.4) if together or len(lines) == 1 else (3.3 * columns, 2.3 * rows)
    figure = Figure(figsize=size, layout="constrained")
    frames = [axes for row in figure.subplots(rows, columns, squeeze=False, sharex=True) for axes in row]
    for spare in frames[1 if together else len(lines) :]:
        spare.remove()
    for position, (title, (x, y)) in enumerate(lines.items()):
        axes = frames[0 if together else position]
        color = pictures.COLORS[position % len(pictures.COLORS)] if together else pictures.BLUE
        axes.plot(x, y, color=color, linewidth=1.6, label=title, solid_joinstyle="round")
        if not together:
            axes.set_title(title, fontsize=10, loc="left", color=pictures.TITLE)
    for axes in figure.axes:
        _style(axes, log)
        if steps >= 20_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("update", color=pictures.WORDS, fontsize=9)
        axes.tick_params(labelbottom=True)  # shared axes hide the numbers above a place that is empty
    if together and len(lines) > 1:
        figure.axes[0].legend(framealpha=0.9, edgecolor="none", fontsize=9, labelcolor=pictures.TITLE)
    if file is not None:
        figure.savefig(file, dpi=150)
    return figure


def _named(schedule: Any) -> dict[str, Any]:
    if isinstance(schedule, Mapping):
        found = {str(title): one for title, one in schedule.items()}
    else:
        listed = schedule if isinstance(schedule, (list, tuple)) else [schedule]
        names = [type(one).__name__ for one in listed]
        found = {
            f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name: one
            for i, (name, one) in enumerate(zip(names, listed, strict=True))
        }
    if not found or not all(callable(one) for one in found.values()):
        raise TypeError(f"`schedule` must be a schedule, or several of them. Received: schedule={schedule!r}")
    return found


def _line(schedule: Any, steps: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve: all where they are few, the lowest and the highest of each stretch where they are many."""
    if not is_resolved(schedule):
        schedule = resolve(schedule, steps / epochs, epochs)
    x = np.arange(steps) if steps <= _ALL_STEPS else np.unique(np.linspace(0, steps - 1, _ALL_STEPS).astype("int64"))
    try:
        y = np.asarray(ops.convert_to_numpy(schedule(ops.convert_to_tensor(x.astype("int32")))), "float64")
    except Exception:
        y = np.empty(())  # a foreign schedule that takes one step at a time, such as Keras's `PiecewiseConstantDecay`
    if y.shape != x.shape:
        x = np.unique(np.linspace(0, steps - 1, min(steps, _FEW_STEPS)).astype("int64"))
        y = np.array([float(ops.convert_to_numpy(schedule(int(step)))) for step in x])
    if len(x) <= _POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), _POINTS // 2)
    kept = sorted({int(at) for part in stretches for at in (part[np.argmin(y[part])], part[np.argmax(y[part])])})
    ends = sorted({0, *kept, len(x) - 1})
    return x[ends], y[ends]


def _style(axes: Any, log: bool) -> None:
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=True)
    axes.margins(x=0.02)
    pictures.calm(axes, size=8.5)
