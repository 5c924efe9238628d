"""Curves: figures of a run, drawn with matplotlib into SVG text."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np

from keras_trainkit.core import pictures

MOST_POINTS = 1200
TRAIN, VALIDATION, MUTED = pictures.BLUE, pictures.ORANGE, "#86abd2"
RUNS = pictures.COLORS
"""Colours of runs that are drawn together."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart; NaN leaves a gap.

    Attributes:
        label: its name in the legend.
        x, y: the points.
        color: of the line.
        faint: drawn thin and pale, behind the others.
        marks: with a dot at each point.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    color: str = TRAIN
    faint: bool = False
    marks: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A titled set of lines over the same axis.

    Attributes:
        title, note: above the chart; the note says what is drawn.
        lines: the lines.
        scale: of the vertical axis, "linear", "log" or "powers of 2".
        best: x of the epoch that was kept, marked with a line.
        from_zero: a linear axis begins at 0.
        axis: what is counted along the horizontal axis.
    """

    title: str
    note: str
    lines: list[Series]
    scale: str = "linear"
    best: float | None = None
    from_zero: bool = False
    axis: str = "update"


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points of a line that look the same: the lowest and the highest of each stretch.

    >>> x, y = thin(np.arange(10000), np.eye(1, 10000, 5000)[0], most=100)
    >>> len(x) <= 100, float(y.max())
    (True, 1.0)
    """
    if len(x) <= most:
        return x, y
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(x)), most // 2):
        values = y[stretch]
        if np.isnan(values).all():
            kept.append(stretch[0])
            continue
        kept += sorted({int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])})
    return x[kept], y[kept]


def smooth(y: np.ndarray, width: int) -> np.ndarray:
    """Mean over about `width` neighbours, gaps left out.

    >>> smooth(np.array([0.0, 3.0, np.nan, 3.0]), 3).tolist()
    [1.5, 1.5, 3.0, 3.0]
    """
    known = ~np.isnan(y)
    half = width // 2
    sums, counts = (np.concatenate([[0.0], np.cumsum(v)]) for v in (np.where(known, y, 0.0), known))
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def wants_log_scale(values: np.ndarray, ratio: float = 10) -> bool:
    """Whether positive values span so much that a linear axis would show a corner and a flat line.

    `ratio` is the highest value over the median from which on they do.
    """
    known = values[np.isfinite(values)]
    return bool(len(known) > 1 and known.min() > 0 and known.max() > ratio * np.median(known))


def draw(chart: Chart) -> str:
    """The chart as SVG text, the same for the same values."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": chart.title, "font.size": 9.5}
    with rc_context(style):
        figure = Figure(figsize=(5.3, 2.75), layout="constrained")
        FigureCanvasSVG(figure)
        draw_into(figure.add_subplot(), chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def draw_together(charts: list[Chart], columns: int = 2) -> Any:
    """All charts in one `matplotlib.figure.Figure`, with their titles."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(charts)))
    rows = max(1, -(-len(charts) // columns))
    style: Any = {"font.size": 9.5}
    with rc_context(style):
        figure = Figure(figsize=(5.3 * columns, 3.0 * rows), layout="constrained")
        for number, chart in enumerate(charts, 1):
            axes = figure.add_subplot(rows, columns, number)
            draw_into(axes, chart)
            axes.set_title(chart.title, loc="left", fontsize=11, fontweight="bold")
    return figure


def draw_into(axes: Any, chart: Chart) -> None:
    """Draws the chart, without its title, into axes of matplotlib's."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogFormatterMathtext, LogLocator, NullLocator

    for line in chart.lines:
        x, y = thin(line.x, line.y)
        few = line.marks and len(x) <= 60
        axes.plot(
            x, y,
            color=line.color,
            linewidth=0.8 if line.faint else 1.7,
            alpha=0.55 if line.faint else 1.0,
            marker="o" if few else None,
            markersize=3.2,
            label=line.label,
            zorder=1 if line.faint else 3,
            solid_joinstyle="round",
        )  # fmt: skip
    if chart.best is not None:
        axes.axvline(chart.best, color="#5b8c3a", linewidth=1, linestyle=(0, (4, 3)), label="kept model", zorder=2)
    if chart.scale == "powers of 2":
        axes.set_yscale("log", base=2)
    elif chart.scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 2000:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 120 else (1.0, 3.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_formatter(LogFormatterMathtext())
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=True)
        if chart.from_zero:
            axes.set_ylim(bottom=0)
    if axes.get_xlim()[1] >= 20000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(chart.axis)
    axes.margins(x=0.015)
    pictures.calm(axes)
    axes.xaxis.label.set_color(pictures.WORDS)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=pictures.TITLE, handlelength=1.6)
