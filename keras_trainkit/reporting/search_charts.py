"""The pictures of a search's report, drawn with matplotlib into SVG text; many points are pixels in it."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_trainkit.core import pictures
from keras_trainkit.reporting.curves import wants_log_scale
from keras_trainkit.reporting.search_insight import Importance, Progress
from keras_trainkit.reporting.search_reading import COMPLETED, FAILED, PRUNED, Parameter, SearchResults, SearchTrial

MOST_VECTORS = 250
MOST_CURVES = 150
MOST_LINES = 250
MOST_AXES = 14
MOST_SLICES = 20
PALE = "#b8cbe2"
COLORS = {COMPLETED: pictures.BLUE, PRUNED: pictures.ORANGE, FAILED: "#a1261b"}
_WIDTH, _HEIGHT = 5.3, 2.75


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing with what stands above it.

    Attributes:
        title, note: above the picture; the note says what is drawn.
        svg: the drawing.
        wide: it takes the whole width of the page.
    """

    title: str
    note: str
    svg: str
    wide: bool = False


def drawn(
    title: str, note: str, paint: Callable[[Any], None], size: tuple[float, float], wide: bool = False
) -> Picture:
    """What `paint` puts into a figure of matplotlib, the same for the same values."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Names come from the user: dollars in them are no formulas.
    style: Any = {"svg.hashsalt": title, "font.size": 9.5, "text.parse_math": False}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained", dpi=110)
        FigureCanvasSVG(figure)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(title, note, buffer.getvalue(), wide)


def axis_of_scores(scores: Sequence[float], sign: int) -> tuple[str, tuple[float, float] | None, int]:
    """Scale and limits for scores, and how many lie outside: one diverged trial must not flatten all others.

    Args:
        scores: any numbers.
        sign: 1 where lower is better, -1 where higher is.

    >>> axis_of_scores([0.1, 0.2, 0.3, 50.0], 1)
    ('log', None, 0)
    >>> axis_of_scores([-900.0, 0.7, 0.8, 0.9], -1)[2]
    1
    """
    known = np.asarray([score for score in scores if math.isfinite(score)], float)
    if len(known) < 3:
        return "linear", None, 0
    if wants_log_scale(known, 5) and sign > 0:
        return "log", None, 0
    best, median = (sign * known).min(), np.median(sign * known)
    limit = median + 8 * max(median - best, 1e-12 * max(1.0, abs(median)))
    worst = (sign * known).max()
    if worst <= limit:
        return "linear", None, 0
    inside = sign * known[sign * known <= limit]
    room = 0.06 * (inside.max() - best) or 1e-9
    ends = sorted((sign * (best - room), sign * (inside.max() + room)))
    return "linear", (float(ends[0]), float(ends[1])), int((sign * known > limit).sum())


def set_scores(axes: Any, scores: Sequence[float], sign: int, *, horizontal: bool = False) -> int:
    """Gives an axis its scale for scores; returns how many it leaves out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    scale, limits, outside = axis_of_scores(scores, sign)
    axis = axes.xaxis if horizontal else axes.yaxis
    if scale == "log":
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
        known = [score for score in scores if math.isfinite(score)]
        ratio = max(known) / min(known)
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 120 else (1.0, 3.0) if ratio < 2000 else (1.0,))
        )
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    elif limits is not None:
        (axes.set_xlim if horizontal else axes.set_ylim)(*limits)
    return outside


def some(trials: Sequence[SearchTrial], most: int = MOST_LINES) -> list[SearchTrial]:
    """At most so many of trials that are in order: the first ones, and of the others some from everywhere."""
    first = most // 3
    if len(trials) <= most:
        return list(trials)
    rest = np.linspace(first, len(trials) - 1, most - first).astype(int)
    return [*trials[:first], *(trials[index] for index in rest)]


def best_so_far(results: SearchResults, course: Progress, along: str, objective: int = 0) -> Picture | None:
    """The best score until then and each trial's own, along `"trials"`, `"epochs"` or `"seconds"`."""
    x = getattr(course, along)
    known = np.isfinite(x) & np.isfinite(course.scores)
    if not known.any() or (along != "trials" and np.nanmax(x) <= 0):
        return None
    name = results.objectives[objective][0]
    sign = results.sign(objective)
    outside = 0
    scaled, unit = (x / 60, "minutes") if along == "seconds" and np.nanmax(x) > 600 else (x, along)
    if along == "seconds" and np.nanmax(x) > 36000:
        scaled, unit = x / 3600, "hours"

    def paint(figure: Any) -> None:
        nonlocal outside
        axes = figure.add_subplot()
        for status in (COMPLETED, PRUNED):
            chosen = known & np.array([s == status for s in course.statuses])
            if chosen.any():
                axes.plot(
                    scaled[chosen], course.scores[chosen], linestyle="", marker="o", markersize=3.6,
                    color=COLORS[status], alpha=0.55, markeredgewidth=0, label=status, zorder=2,
                    rasterized=known.sum() > MOST_VECTORS,
                )  # fmt: skip
        if along == "trials":
            # Failed ones have no score: they are marked where they stand in the order.
            failed = np.array([s == FAILED for s in course.statuses])
            if failed.any():
                axes.plot(
                    scaled[failed], np.full(failed.sum(), 0.02), linestyle="", marker="|", markersize=7,
                    color=COLORS[FAILED], label="failed", transform=axes.get_xaxis_transform(), zorder=2,
                    rasterized=failed.sum() > MOST_VECTORS,
                )  # fmt: skip
        order = np.argsort(scaled[np.isfinite(scaled)], kind="stable")
        along_x, lowest = scaled[np.isfinite(scaled)][order], course.best[np.isfinite(scaled)][order]
        axes.step(along_x, lowest, where="post", color=pictures.TITLE, linewidth=1.7, label="best so far", zorder=3)
        outside = set_scores(axes, list(course.scores), sign)
        axes.set_xlabel("trials ended" if along == "trials" else f"{unit} spent")
        axes.set_ylabel(_short(name))
        axes.margins(x=0.02)
        _calm(axes)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=pictures.TITLE, handlelength=1.4)

    title = f"Best so far, by {along}"
    note = f"{name}, {'lower' if sign > 0 else 'higher'} is better"
    several, wide = len(results.objectives) > 1, along == "trials" and len(results.objectives) == 1
    size = (11.0, 3.2) if wide else (_WIDTH, _HEIGHT)
    picture = drawn(f"{name}: best so far" if several else title, note, paint, size, wide)
    return _with_outside(picture, outside)


def learning_curves(results: SearchResults) -> Picture | None:
    """Each trial's objective by epoch, the best in front, with a mark where one was pruned or failed."""
    curves = [trial for trial in results.trials if trial.curve]
    if not any(len(trial.curve) > 1 for trial in curves):
        return None
    ranked = results.scored()
    places = {trial.number: place for place, trial in enumerate(ranked)}
    curves.sort(key=lambda trial: places.get(trial.number, len(ranked)))
    shown = curves[:MOST_CURVES]
    best = ranked[0].number if ranked else None
    sign = results.sign()
    outside = 0

    def paint(figure: Any) -> None:
        nonlocal outside
        axes = figure.add_subplot()
        many = len(shown) > 60
        labels = set()
        for trial in reversed(shown):
            x, y = np.array(trial.curve, float).T
            is_best = trial.number == best
            axes.plot(
                x, y, color=pictures.BLUE if is_best else PALE, linewidth=2.0 if is_best else 0.8,
                alpha=1.0 if is_best else 0.8, zorder=4 if is_best else 2, rasterized=many and not is_best,
                label="the best trial" if is_best else None, marker="o" if len(x) == 1 else None, markersize=2.5,
            )  # fmt: skip
            if trial.status in (PRUNED, FAILED):
                label = None if trial.status in labels else trial.status
                labels.add(trial.status)
                axes.plot(
                    x[-1:], y[-1:], linestyle="", marker="x" if trial.status == FAILED else "s", markersize=4.2,
                    color=COLORS[trial.status], zorder=3, label=label, rasterized=many,
                    markerfacecolor="none", markeredgewidth=1.1,
                )  # fmt: skip
        outside = set_scores(axes, [value for trial in shown for _, value in trial.curve], sign)
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(_short(results.objectives[0][0]))
        axes.margins(x=0.015)
        _calm(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=pictures.TITLE, handlelength=1.4)

    note = f"{results.objectives[0][0]} of {'the best ' if len(shown) < len(curves) else ''}{len(shown)} trials"
    return _with_outside(drawn("Learning curves", note, paint, (11.0, 3.6), wide=True), outside, "points")


def parallel(results: SearchResults, trials: Sequence[SearchTrial]) -> Picture | None:
    """One line for each trial through its values and its scores; best last, darkest and in front."""
    parameters = list(results.parameters)[:MOST_AXES]
    if len(trials) < 2 or not parameters:
        return None
    columns = len(parameters) + len(results.objectives)
    all_of_them, trials = len(trials), some(trials)

    def paint(figure: Any) -> None:
        from matplotlib import colormaps
        from matplotlib.collections import LineCollection

        axes = figure.add_subplot()
        sides = [_score_places(results, trials, i) for i in range(len(results.objectives))]
        lines, colors = [], []
        shades = colormaps["viridis_r"]
        for rank in range(len(trials) - 1, -1, -1):
            trial = trials[rank]
            places = [p.place(trial.values.get(p.name)) for p in parameters]
            # A value that is not there goes below the axis.
            heights = [-0.12 if math.isnan(place) else min(1.0, max(0.0, place)) for place in places]
            lines.append(list(enumerate([*heights, *(side[rank] for side in sides)])))
            colors.append(shades(1 - 0.95 * rank / max(1, len(trials) - 1)))
        width = 1.1 if len(trials) <= 100 else 0.6
        axes.add_collection(LineCollection(lines, colors=colors, linewidths=width, alpha=0.7))
        axes.plot(*zip(*lines[-1], strict=True), color=pictures.ORANGE, linewidth=2.2, zorder=3)
        for x in range(columns):
            axes.axvline(x, color=pictures.FRAME, linewidth=1, zorder=1, ymin=0.14, ymax=0.98)
        for x, parameter in enumerate(parameters):
            for place, text in _axis_words(parameter):
                _word(axes, x, place, text)
        for x, (index, (_, direction)) in enumerate(enumerate(results.objectives), len(parameters)):
            scores = [trial.scores[index] for trial in trials]
            worst, best = (max(scores), min(scores)) if direction == "min" else (min(scores), max(scores))
            _word(axes, x, 1.0, f"{best:.3g}")
            _word(axes, x, 0.0, f"{worst:.3g}")
        for x, parameter in enumerate(parameters):
            if any(parameter.name not in trial.values for trial in trials):
                _word(axes, x, -0.12, "not there")
        axes.set_xlim(-0.35, columns - 0.65)
        axes.set_ylim(-0.18, 1.03)
        axes.set_yticks([])
        room = max(9, int(100 / columns))
        axes.set_xticks(
            range(columns),
            [_short(n, room) for n in [*(p.name for p in parameters), *(o for o, _ in results.objectives)]],
        )
        axes.tick_params(length=0, labelcolor=pictures.TITLE, labelsize=9)
        for side in axes.spines.values():
            side.set_visible(False)

    left = len(results.parameters) - len(parameters)
    of = f" of {all_of_them}" if all_of_them > len(trials) else ""
    note = (
        f"{len(trials)}{of} trials with a score, the best in orange, dark before pale; scores by rank, the best above"
    )
    note += f"; {left} hyperparameters are left out" if left else ""
    return drawn("Parallel coordinates", note, paint, (11.0, 3.7), wide=True)


def _score_places(results: SearchResults, trials: Sequence[SearchTrial], objective: int) -> list[float]:
    values = np.array([results.sign(objective) * trial.scores[objective] for trial in trials])
    ranks = np.searchsorted(np.unique(values), values).astype(float)
    return list(1 - ranks / max(1.0, ranks.max()))


def _axis_words(parameter: Parameter) -> list[tuple[float, str]]:
    if parameter.choices is not None:
        chosen = parameter.choices if len(parameter.choices) <= 8 else (parameter.choices[0], parameter.choices[-1])
        return [(parameter.place(choice), _short(_plain(choice), 14)) for choice in chosen]
    return [(0.0, f"{parameter.low:.4g}"), (1.0, f"{parameter.high:.4g}")]


def _word(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, color=pictures.WORDS,
        zorder=5, bbox={"boxstyle": "round,pad=0.1", "facecolor": "#ffffffc0", "edgecolor": "none"},
    )  # fmt: skip


def importances(name: str, found: Importance, wide: bool = True) -> Picture:
    """Bars of the shares, with a line where chance ends."""
    shares = dict(list(found.shares.items())[:20])

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        places = np.arange(len(shares))[::-1]
        colors = [pictures.BLUE if share > found.chance else PALE for share in shares.values()]
        axes.barh(places, list(shares.values()), color=colors, height=0.62)
        for place, share in zip(places, shares.values(), strict=True):
            axes.annotate(
                f"{share:.0%}", (share, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5,
                color=pictures.WORDS,
            )  # fmt: skip
        axes.axvline(found.chance, color=pictures.ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            "chance", (found.chance, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 1),
            textcoords="offset points", fontsize=8, color=pictures.ORANGE,
        )  # fmt: skip
        axes.set_yticks(places, [_short(n, 26) for n in shares])
        axes.set_xlim(0, max([*shares.values(), found.chance, 0.05]) * 1.15)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylim(-0.6, len(shares) - 0.4)
        _calm(axes)
        axes.grid(visible=False, axis="y")

    note = f"share of the differences of {name} among {found.trials} trials"
    size = (11.0 if wide else _WIDTH, max(1.6, 0.7 + 0.3 * len(shares)))
    return drawn("Importance", note, paint, size, wide)


def slices(results: SearchResults, trials: Sequence[SearchTrial], objective: int = 0) -> list[Picture]:
    """The score against each hyperparameter, for those trials in which it is there; later trials darker."""
    from matplotlib import colormaps

    found = []
    last = max((trial.number for trial in trials), default=0) or 1
    name = results.objectives[objective][0]
    most = min(MOST_LINES, 2000 // max(1, len(results.parameters)))
    for parameter in results.parameters[:MOST_SLICES]:
        there = [t for t in trials if not math.isnan(parameter.place(t.values.get(parameter.name)))]
        if not there:
            continue
        all_of_them, there = len(there), some(there, most)
        outside = 0

        def paint(figure: Any, parameter: Any = parameter, there: Any = there) -> None:
            nonlocal outside
            axes = figure.add_subplot()
            x = np.array([_abscissa(parameter, t.values[parameter.name]) for t in there], float)
            if parameter.choices is not None:
                x = x + np.random.default_rng(0).uniform(-0.16, 0.16, len(x))
            y = [t.scores[objective] for t in there]
            axes.scatter(
                x, y, c=[0.25 + 0.75 * t.number / last for t in there], cmap=colormaps["Blues"], vmin=0, vmax=1, s=13,
                linewidths=0, zorder=2,
            )  # fmt: skip
            axes.scatter(x[:1], y[:1], s=46, facecolors="none", edgecolors=pictures.ORANGE, linewidths=1.6, zorder=3)
            outside = set_scores(axes, y, results.sign(objective))
            _set_parameter(axes, parameter)
            axes.set_ylabel(_short(name))
            _calm(axes)

        of = f"{len(there)} of " if all_of_them > len(there) else ""
        note = f"{of}{_count(all_of_them, 'trial')}, the best circled, later ones darker"
        if parameter.conditions:
            note += f"; only if {_short(' or '.join(parameter.conditions), 60)}"
        found.append(_with_outside(drawn(parameter.name, note, paint, (_WIDTH, 2.4)), outside))
    return found


def _abscissa(parameter: Parameter, value: Any) -> float:
    return float(parameter.choices.index(value)) if parameter.choices is not None else float(value)


def _set_parameter(axes: Any, parameter: Parameter) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = parameter.low or 0.0, parameter.high or 0.0
    if parameter.choices is not None:
        count = len(parameter.choices)
        step = -(-count // 12)
        letters = max(4, 48 // max(1, count // step))
        axes.set_xticks(range(0, count, step), [_short(_plain(c), letters) for c in parameter.choices[::step]])
        axes.set_xlim(-0.5, count - 0.5)
    elif parameter.scale == "log" and high != low:
        axes.set_xscale("log")
        room = (high / low) ** 0.03
        axes.set_xlim(low / room, high * room)
        if high / low < 20:
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.03 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=parameter.integer))


def fronts(results: SearchResults) -> list[Picture]:
    """Two objectives at a time, with the trials that no other beats in every objective."""
    scored = [t for t in results.scored() if all(math.isfinite(score) for score in t.scores)]
    front = results.front()
    found = []
    for a in range(len(results.objectives)):
        for b in range(a + 1, len(results.objectives)):
            if not scored:
                continue
            outside = 0

            def paint(figure: Any, a: int = a, b: int = b) -> None:
                nonlocal outside
                axes = figure.add_subplot()
                points = np.array([[t.scores[a], t.scores[b]] for t in scored])
                best = np.array([[t.scores[a], t.scores[b]] for t in front])
                axes.plot(
                    *points.T, linestyle="", marker="o", markersize=4, color=PALE, markeredgewidth=0, zorder=2,
                    rasterized=len(scored) > MOST_VECTORS, label="dominated",
                )  # fmt: skip
                if len(results.objectives) == 2:
                    # By steps: nothing is known in between.
                    ordered = best[np.argsort(best[:, 0])]
                    where = "post" if results.sign(a) > 0 else "pre"
                    axes.step(*ordered.T, where=where, color=pictures.ORANGE, linewidth=1.2, zorder=3)
                axes.plot(
                    *best.T, linestyle="", marker="o", markersize=5.5, color=pictures.ORANGE, zorder=4, label="front"
                )
                outside = set_scores(axes, list(points[:, 1]), results.sign(b))
                outside += set_scores(axes, list(points[:, 0]), results.sign(a), horizontal=True)
                for index, write in ((a, axes.set_xlabel), (b, axes.set_ylabel)):
                    name, direction = results.objectives[index]
                    write(f"{_short(name)} ({'lower' if direction == 'min' else 'higher'} is better)")
                _calm(axes)
                axes.legend(frameon=False, fontsize=8.5, labelcolor=pictures.TITLE, handlelength=1.4)

            note = f"{_count(len(front), 'trial')} that no other beats in every objective"
            wide = len(results.objectives) == 2
            picture = drawn("Pareto front", note, paint, (11.0 if wide else _WIDTH, 3.4), wide)
            found.append(_with_outside(picture, outside))
    return found


def _with_outside(picture: Picture, outside: int, what: str = "trials") -> Picture:
    if not outside:
        return picture
    return dataclasses.replace(picture, note=f"{picture.note}; {outside} worse {what} lie outside of the picture")


def _calm(axes: Any) -> None:
    pictures.calm(axes)
    axes.xaxis.label.set_color(pictures.WORDS)
    axes.yaxis.label.set_color(pictures.WORDS)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(text: str, room: int = 24) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"
