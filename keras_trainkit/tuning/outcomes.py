"""What a trial may return: a number, a mapping of metrics, the history of `fit`, or a list of these."""

from __future__ import annotations

from typing import Any

import keras
import keras_tuner
import numpy as np


def read(results: Any, objective: Any) -> tuple[dict[str, float], int]:
    """The metrics of a trial and the epoch, from 0 on, that they belong to; several runs are averaged.

    Args:
        results: what `run_trial` or `HyperModel.fit` returned.
        objective: a `keras_tuner.Objective`.

    Raises:
        keras_tuner.errors.FatalTypeError: nothing that is understood; the whole search ends, as in KerasTuner.

    >>> read({"val_loss": 0.5}, keras_tuner.Objective("val_loss", "min"))
    ({'val_loss': 0.5}, 0)
    >>> read([0.5, 1.5], keras_tuner.Objective("val_loss", "min"))
    ({'val_loss': 1.0}, 0)
    """
    if isinstance(results, list) and results:
        read_ones = [read(result, objective) for result in results]
        names = [name for name in read_ones[0][0] if all(name in metrics for metrics, _ in read_ones)]
        means = {name: float(np.mean([metrics[name] for metrics, _ in read_ones])) for name in names}
        return means, int(np.mean([step for _, step in read_ones]))
    if isinstance(results, int | float | np.number) and not isinstance(results, bool):
        return {objective.name: float(results)}, 0
    if isinstance(results, keras.callbacks.History):
        return _best_epoch(results.history, objective)
    if isinstance(results, dict):
        if not objective.has_value(results) and objective.name not in results:
            raise keras_tuner.errors.FatalValueError(
                f"a trial must return the objective {objective.name!r}. Received: {sorted(results)}"
            )
        return {name: float(value) for name, value in results.items()}, 0
    raise keras_tuner.errors.FatalTypeError(
        "a trial must return a number, a dict of metrics, the history of `fit`, or a list of these. "
        f"Received: {results!r}"
    )


def _best_epoch(history: dict[str, list[float]], objective: Any) -> tuple[dict[str, float], int]:
    epochs = [dict(zip(history, values, strict=False)) for values in zip(*history.values(), strict=False)]
    best = 0
    for epoch, metrics in enumerate(epochs):
        if objective.better_than(objective.get_value(metrics), objective.get_value(epochs[best])):
            best = epoch
    return {name: float(value) for name, value in epochs[best].items()}, best
