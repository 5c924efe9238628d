"""LivePlot: curves that grow in a notebook while a model trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import keras

from keras_trainkit.callbacks.notebook import Place, in_notebook
from keras_trainkit.core import checks
from keras_trainkit.monitoring.counting import to_float


@keras.saving.register_keras_serializable("keras_trainkit")
class LivePlot(keras.callbacks.Callback):
    """Draws loss and metrics of training and validation in a notebook after each epoch, in one place that is renewed.

    Outside of a notebook it does nothing, so it may stay in a program. It reads nothing from the device: it draws what
    the epoch's logs hold, those that other callbacks before it have added included.

    Args:
        metrics: which, without `val_`, such as `["loss", "accuracy"]`; all numbers in the logs when left out.
        every: seconds between two drawings, at least 0; the last epoch is always drawn.
        columns: charts side by side, at least 1.

    Raises:
        TypeError, ValueError: for an argument out of its range.

    >>> plot = LivePlot(metrics=["loss"], every=2)
    >>> # model.fit(x, y, validation_split=0.2, epochs=10, callbacks=[plot])
    """

    def __init__(self, metrics: list[str] | None = None, every: float = 1.0, columns: int = 2) -> None:
        super().__init__()
        if metrics is not None and (isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics)):
            raise TypeError(f"`metrics` must be a list of names. Received: metrics={metrics!r}")
        self.metrics = None if metrics is None else list(metrics)
        self.every = checks.number("every", every, at_least=0)
        self.columns = checks.integer("columns", columns, at_least=1)
        self._lines: dict[str, dict[int, float]] = {}
        self._place: Place | None = None
        self._drawn = -math.inf
        self._fresh = True

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"metrics": self.metrics, "every": self.every, "columns": self.columns}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LivePlot:
        """The inverse of `get_config`."""
        return cls(**config)

    def get_state(self) -> dict[str, Any]:
        """The curves so far, for `ResumableTraining`."""
        return {"lines": self._lines}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._lines = state["lines"]

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes a place in the cell at hand."""
        self._lines, self._drawn, self._fresh = {}, -math.inf, True
        self._place = Place() if in_notebook() else None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Draws, if the last drawing is old enough."""
        if self._place is None:
            return
        for name, given in (logs or {}).items():
            value = to_float(given)
            if value is not None and (self.metrics is None or name.removeprefix("val_") in self.metrics):
                self._lines.setdefault(name, {})[epoch + 1] = value
        self._fresh = False
        if time.perf_counter() - self._drawn >= self.every:
            self._draw()

    def on_train_end(self, logs: Any = None) -> None:
        """Draws what has come since the last drawing."""
        if self._place is not None and not self._fresh:
            self._draw()
        self._place = None

    def _draw(self) -> None:
        from keras_trainkit.reporting.charts import charts
        from keras_trainkit.reporting.page import image
        from keras_trainkit.reporting.reading import run_of_lines

        epochs = sorted({epoch for line in self._lines.values() for epoch in line})
        run = run_of_lines(
            [{"epoch": e, **{name: line[e] for name, line in self._lines.items() if e in line}} for e in epochs]
        )
        width = 100 // self.columns
        pictures = [
            f'<figure style="display: inline-block; width: {width - 1}%; min-width: 300px; margin: 0">'
            f'<figcaption><b>{chart.title}</b></figcaption><img style="width: 100%" src="{image(chart)}"></figure>'
            for chart in charts(run)
        ]
        latest = ", ".join(f"{name} {line[max(line)]:.4g}" for name, line in self._lines.items())
        if self._place is not None:
            self._place.show("".join(pictures), f"epoch {epochs[-1]}: {latest}" if epochs else "no epoch yet")
        self._drawn, self._fresh = time.perf_counter(), True
