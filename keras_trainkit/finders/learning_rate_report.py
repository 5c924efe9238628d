"""What a range test found: curves, suggestions, a table and a picture."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from keras_trainkit.core import checks, pictures
from keras_trainkit.finders.learning_rate_rules import COMBINED, RULES, geometric_mean, suggestions
from keras_trainkit.finders.sweep import Curve

_COLORS = {COMBINED: "#b3261e", "minimum/10": "#d9601a", "valley": "#3f8f4f", "steepest": "#8a4fa3", "slide": "#b3872a"}
_ENDINGS = {
    "range": "every rate was tried",
    "diverged": "the loss diverged",
    "not finite": "the loss became infinite or NaN",
    "skipped": "loss scaling skipped nearly every update",
    "data": "the data ended",
}


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The learning rate that a rule suggests.

    Attributes:
        rate: the geometric mean over the sweeps; None where no sweep shows what the rule looks for.
        low, high: the lowest and the highest of the sweeps.
        each: that of each sweep.
    """

    rate: float | None
    low: float | None
    high: float | None
    each: list[float | None]

    @property
    def spread(self) -> float | None:
        """The factor from the lowest to the highest."""
        return None if self.low is None or self.high is None else self.high / self.low


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """The learning rates that a range test speaks for. Print it to see the table.

    Attributes:
        curves: one for each sweep.
        rule: the name of the rule that `suggestion` goes by.
    """

    curves: list[Curve]
    rule: str = COMBINED

    def __post_init__(self) -> None:
        checks.one_of("rule", self.rule, [COMBINED, *RULES])

    @property
    def by_rule(self) -> dict[str, Suggestion]:
        """What each rule says, with its spread over the sweeps."""
        said = [suggestions(curve.rates, curve.smoothed) for curve in self.curves]
        found = {}
        for name in (COMBINED, *RULES):
            each = [one[name] for one in said]
            known = [rate for rate in each if rate is not None]
            low, high = (min(known), max(known)) if known else (None, None)
            found[name] = Suggestion(geometric_mean(each), low, high, each)
        # Of the rules, not of the sweeps: in one of those a rule may find nothing, and must not count less for it.
        combined = geometric_mean([found[name].rate for name in RULES])
        found[COMBINED] = dataclasses.replace(found[COMBINED], rate=combined)
        return found

    @property
    def suggestions(self) -> dict[str, float | None]:
        """The learning rate by the name of the rule, `"combined"` among them."""
        return {name: suggestion.rate for name, suggestion in self.by_rule.items()}

    @property
    def suggestion(self) -> float | None:
        """The learning rate by `rule`; None where the loss fell nowhere."""
        return self.suggestions[self.rule]

    def table(self) -> Any:
        """The suggestions as a `rich.table.Table`."""
        from rich.table import Table

        table = Table()
        table.add_column("rule")
        for name in ("learning rate", "lowest", "highest"):
            table.add_column(name, justify="right")
        for name, one in self.by_rule.items():
            shown = [_number(value) for value in (one.rate, one.low, one.high)]
            table.add_row(name, *shown, style="bold" if name == self.rule else None)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get() + self.ending()

    def ending(self) -> str:
        """Why the sweeps ended, in words."""
        counts: dict[str, int] = {}
        for curve in self.curves:
            counts[curve.ended] = counts.get(curve.ended, 0) + 1
        several = len(self.curves) > 1
        parts = [f"{_ENDINGS[name]}{f' ({count} of {len(self.curves)})' if several else ''}" for name, count in
                 counts.items()]  # fmt: skip
        return f"{len(self.curves)} sweep{'s' if several else ''}: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
        return {
            "suggestion": self.suggestion,
            "rule": self.rule,
            "suggestions": {name: dataclasses.asdict(one) for name, one in self.by_rule.items()},
            "sweeps": [
                {
                    "seed": curve.seed,
                    "ended": curve.ended,
                    "learning_rates": curve.rates.tolist(),
                    "losses": curve.losses.tolist(),
                    "smoothed": curve.smoothed.tolist(),
                }
                for curve in self.curves
            ],
        }

    def plot(self, file: str | Path | None = None) -> Any:
        """Draws the losses over the rates, with the suggestions.

        Args:
            file: where to write the picture: `.svg`, `.png` or `.pdf`.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.6, 3.8), layout="constrained")
        axes = figure.subplots()
        for curve in self.curves:
            axes.plot(curve.rates, curve.losses, color=pictures.BLUE, alpha=0.2, linewidth=0.8)
            axes.plot(curve.rates, curve.smoothed, color=pictures.BLUE, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_ylim(*self._heights())
        for name, one in self.by_rule.items():
            if one.rate is None or one.low is None or one.high is None:
                continue
            chosen = name == self.rule
            label = f"{name}: {_number(one.rate)}"
            axes.axvline(
                one.rate, color=_COLORS[name], label=label, linewidth=2.0 if chosen else 1.1,
                linestyle="-" if chosen else (0, (4, 2)),
            )  # fmt: skip
            if chosen:
                axes.axvspan(one.low, one.high, color=_COLORS[name], alpha=0.12, linewidth=0)
        _style(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", edgecolor="none", fontsize=8.5, labelcolor=pictures.TITLE)
        if file is not None:
            figure.savefig(file, dpi=150)
        return figure

    def _heights(self) -> tuple[float, float]:
        """From the lowest loss to a little above the first ones: what has diverged would flatten all else."""
        low = min((float(curve.smoothed.min()) for curve in self.curves if len(curve.smoothed)), default=0.0)
        high = max((float(curve.smoothed[: 1 + len(curve.smoothed) // 2].max()) for curve in self.curves
                    if len(curve.smoothed)), default=1.0)  # fmt: skip
        room = max(high - low, 1e-6 * max(abs(high), 1e-6))
        return low - 0.1 * room, high + 0.35 * room


def _number(value: float | None) -> str:
    """A rate in three digits.

    >>> _number(0.00123456), _number(None)
    ('0.00123', '-')
    """
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _style(axes: Any) -> None:
    axes.set_xlabel("learning rate", color=pictures.WORDS, fontsize=9)
    axes.set_ylabel("training loss", color=pictures.WORDS, fontsize=9)
    pictures.calm(axes, size=8.5)


def joined(curves: list[Curve], rule: str = COMBINED) -> LearningRates:
    """The result of several sweeps.

    Raises:
        ValueError: if not one of them has three updates to go by.
    """
    if not any(len(curve.rates) >= 3 for curve in curves):
        reasons = sorted({_ENDINGS[curve.ended] for curve in curves})
        raise ValueError(f"The range test has too few updates to judge by: {', '.join(reasons)} at once.")
    return LearningRates(curves, rule)
