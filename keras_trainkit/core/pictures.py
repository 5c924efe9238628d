"""How the kit's pictures look: the same colours and calm axes in all of them."""

from __future__ import annotations

from typing import Any

BLUE, ORANGE = "#2563a8", "#d9601a"
COLORS = (BLUE, ORANGE, "#3f8f4f", "#8a4fa3", "#b3872a", "#c2437b", "#2a9d9d", "#4a5361")
"""Of lines that are drawn together, in their order."""

TITLE, WORDS, FRAME, GRID = "#333a45", "#4a5361", "#b9c0ca", "#e6e9ee"
"""Colours of titles and legends, of labels, of what frames the axes, and of the lines behind the curves."""


def calm(axes: Any, size: float | None = None) -> None:
    """Level lines behind the curves, a frame below and to the left alone, and grey numbers.

    Args:
        axes: of matplotlib.
        size: of the numbers, in points; matplotlib's own when left out.
    """
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FRAME)
    axes.tick_params(which="both", color=FRAME, labelcolor=WORDS, **({} if size is None else {"labelsize": size}))
