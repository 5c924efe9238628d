"""Which charts a run gets: loss, each metric, learning rate, norms, speed and loss scale, as far as it has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_trainkit.reporting.curves import MUTED, TRAIN, VALIDATION, Chart, Series, smooth, wants_log_scale
from keras_trainkit.reporting.reading import Run

NOT_METRICS = {"kind", "step", "epoch", "time", "nonfinite", "loss", "learning_rate", "samples_per_second"}


def column(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    """One value of each line, NaN where it is missing, null or no number."""
    values = [line.get(name) for line in lines]
    return np.array([float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else np.nan for v in values])


def metric_names(run: Run) -> list[str]:
    """Metrics besides the loss, training's and validation's under one name, in the order of their first appearance."""
    names: dict[str, None] = {}
    for line in run.epochs:
        for name, value in line.items():
            plain = name.removeprefix("val_")
            if plain not in NOT_METRICS and (value is None or isinstance(value, (int, float))):
                names[plain] = None
    return list(names)


def charts(run: Run) -> list[Chart]:
    """The charts, in the order to show them; those without a single value are left out."""
    steps, epochs = column(run.steps, "step"), column(run.epochs, "step")
    best = _best_step(run)
    found = [_loss(run, steps, epochs, best)]
    found += [_metric(run, name, epochs, best) for name in metric_names(run)]
    rate = column(run.steps, "learning_rate")
    found.append(Chart("Learning rate", "of the next update", [Series("learning rate", steps, rate)], from_zero=True))
    norm, clipped = column(run.steps, "gradient_norm"), column(run.steps, "clipped_gradient_norm")
    lines = [Series("gradient norm", steps, norm, MUTED, faint=True), Series("smoothed", steps, _smooth(norm))]
    if np.nansum(clipped < norm * (1 - 1e-6)):
        lines.append(Series("after clipping, smoothed", steps, _smooth(clipped), VALIDATION))
    found.append(Chart("Gradient norm", "over all weights, before clipping", lines, _scale(norm)))
    ratio = column(run.steps, "update_to_weight_ratio")
    lines = [Series("ratio", steps, ratio, MUTED, faint=True), Series("smoothed", steps, _smooth(ratio))]
    found.append(Chart("Update to weight ratio", "norm of the update / norm of the weights", lines, _scale(ratio)))
    found.append(_speed(run, steps, epochs))
    scale = column(run.steps, "loss_scale")
    lines = [Series("loss scale", steps, scale)]
    found.append(Chart("Loss scale", "of float16 gradients", lines, "powers of 2"))
    known = [chart for chart in found if any(np.isfinite(line.y).any() for line in chart.lines)]
    return [dataclasses.replace(chart, axis=run.axis) for chart in known]


def _loss(run: Run, steps: np.ndarray, epochs: np.ndarray, best: float | None) -> Chart:
    each, train, held = column(run.steps, "loss"), column(run.epochs, "loss"), column(run.epochs, "val_loss")
    lines = [
        Series("training, by step", steps, each, MUTED, faint=True),
        Series("training", epochs, train, TRAIN, marks=True),
        Series("validation", epochs, held, VALIDATION, marks=True),
    ]
    kept = [line for line in lines if np.isfinite(line.y).any()]
    scale = "log" if wants_log_scale(np.concatenate([each, train, held]), ratio=4) else "linear"
    return Chart("Loss", " and ".join(sorted({line.label.split(",")[0] for line in kept})), kept, scale, best)


def _metric(run: Run, name: str, epochs: np.ndarray, best: float | None) -> Chart:
    train, held = column(run.epochs, name), column(run.epochs, f"val_{name}")
    lines = [
        Series("training", epochs, train, TRAIN, marks=True),
        Series("validation", epochs, held, VALIDATION, marks=True),
    ]
    kept = [line for line in lines if np.isfinite(line.y).any()]
    note = " and ".join(line.label for line in kept)
    return Chart(title(name), note, kept, _scale(np.concatenate([train, held])), best)


def _speed(run: Run, steps: np.ndarray, epochs: np.ndarray) -> Chart:
    each, mean = column(run.steps, "samples_per_second"), column(run.epochs, "samples_per_second")
    lines = [
        Series("by step", steps, each, MUTED, faint=True),
        Series("by epoch", epochs, mean, TRAIN, marks=True),
    ]
    return Chart("Samples per second", "training alone, without validation", lines, from_zero=True)


def _best_step(run: Run) -> float | None:
    best = run.result.get("best")
    epoch = best.get("epoch") if isinstance(best, dict) else None
    return next((float(line["step"]) for line in run.epochs if epoch is not None and line.get("epoch") == epoch), None)


def _smooth(values: np.ndarray) -> np.ndarray:
    return smooth(values, max(3, len(values) // 40))


def _scale(values: np.ndarray) -> str:
    return "log" if wants_log_scale(values) else "linear"


def title(name: str) -> str:
    """A metric's name for people.

    >>> title("top_k_accuracy"), title("mae"), title("r2")
    ('Top k accuracy', 'MAE', 'R2')
    """
    return name.upper() if len(name) <= 4 else name.replace("_", " ").capitalize()
