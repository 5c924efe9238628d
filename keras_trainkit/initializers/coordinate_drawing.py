"""Pictures of coordinate checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainkit.core import pictures

_WORDS = {"sizes": "mean size of outputs", "changes": "mean size of their change"}


def plot_coordinate_checks(checks: Mapping[str, Any], file: str | Path | None = None) -> Any:
    """Draws coordinate checks, one beside the other: below what training changed, above how large outputs are.

    Both axes are logarithmic; one line for each layer, after the last step. Level lines are what is wanted.

    Args:
        checks: dictionary from titles to what `coordinate_check` returned.
        file: where to write the picture: `.svg`, `.png` or `.pdf`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        TypeError: for what is no dictionary of checks, or an empty one.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    if not isinstance(checks, Mapping) or not checks or not all(hasattr(one, "changes") for one in checks.values()):
        raise TypeError(f"`checks` must be a dictionary from titles to coordinate checks. Received: checks={checks!r}")
    figure = Figure(figsize=(max(4.6, 2.9 * len(checks)), 5.0), layout="constrained")
    frames = figure.subplots(2, len(checks), squeeze=False, sharex="col", sharey="row")
    for column, (title, check) in enumerate(checks.items()):
        for row, of in enumerate(("sizes", "changes")):
            axes = frames[row][column]
            for i, name in enumerate(check.layers):
                values = getattr(check, of)[i, :, -1]
                color = pictures.COLORS[i % len(pictures.COLORS)]
                kept = np.isfinite(values) & (values > 0)
                axes.plot(
                    np.array(check.widths)[kept],
                    values[kept],
                    "o-",
                    color=color,
                    markersize=3,
                    linewidth=1.4,
                    label=name,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(check.widths)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            if not column:
                axes.set_ylabel(_WORDS[of], color=pictures.WORDS, fontsize=9)
            pictures.calm(axes, size=8.5)
        frames[0][column].set_title(title, fontsize=10, loc="left", color=pictures.TITLE)
        frames[1][column].set_xlabel("width", color=pictures.WORDS, fontsize=9)
    lines, names = frames[0][0].get_legend_handles_labels()
    words = {"frameon": False, "fontsize": 8.5, "labelcolor": pictures.TITLE}
    figure.legend(lines, names, loc="outside lower center", ncols=min(4, len(names)), **words)
    if file is not None:
        figure.savefig(file, dpi=150)
    return figure
