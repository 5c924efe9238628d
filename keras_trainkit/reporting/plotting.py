"""The curves of a run as one picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.reporting.charts import charts
from keras_trainkit.reporting.curves import draw_together
from keras_trainkit.reporting.reading import run_of

ENDINGS = (".svg", ".png", ".pdf")


def plot(run: Any, file: str | os.PathLike[str] | None = None, columns: int = 2) -> Any:
    """Draws loss, metrics and whatever else is known of a run: `reporting.plot(model.fit(...))`.

    It is a function, because what `fit` returns is an object of Keras's, which cannot be given methods.

    Args:
        run: what `fit` returned; a run directory; or a `metrics.jsonl`.
        file: where to write the picture: `.svg`, `.png` or `.pdf`. None writes none.
        columns: charts side by side, at least 1.

    Returns:
        A `matplotlib.figure.Figure`; a notebook shows it with `display(figure)`.

    Raises:
        FileNotFoundError: there is no run.
        TypeError, ValueError: for what is no run, or an argument out of its range.

    >>> figure = plot({"loss": [0.9, 0.5], "val_loss": [0.8, 0.6], "accuracy": [0.7, 0.8]})
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['Loss', 'Accuracy']
    """
    columns = checks.integer("columns", columns, at_least=1)
    path = None if file is None else Path(file)
    if path is not None and path.suffix not in ENDINGS:
        raise ValueError(f"`file` must end in {', '.join(ENDINGS)}. Received: file={str(file)!r}")
    figure = draw_together(charts(run_of(run)), columns)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
