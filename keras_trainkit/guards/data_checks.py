"""What arrays alone show: values that are not finite, labels that do not go with the loss and the output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_trainkit.guards.autopsy import is_bad
from keras_trainkit.guards.figures import bad_samples, figures, is_floating
from keras_trainkit.guards.findings import Finding

SPARSE, ONE_HOT, BINARY = "SparseCategoricalCrossentropy", "CategoricalCrossentropy", "BinaryCrossentropy"


def values(arrays: dict[str, Any]) -> Iterator[Finding]:
    """NaN and infinity, by the names of the arrays."""
    for name, array in arrays.items():
        about = figures(array)
        if is_bad(about):
            rows = ", ".join(map(str, bad_samples(array)[:5]))
            yield Finding(
                "error", "data-not-finite",
                f"`{name}` holds {about['nan']} NaN and {about['inf']} infinite values, first in samples {rows}: fill, "
                "mask or drop them",
            )  # fmt: skip


def labels(name: str, loss: str, from_logits: bool, y: Any, prediction: Any) -> Iterator[Finding]:
    """Labels against the loss and what the model gives.

    Args:
        name: of the labels.
        loss: the class name of the loss.
        from_logits: what the loss believes.
        y: all labels.
        prediction: the model's outputs for some samples, of shape (samples, ..., classes).
    """
    y, prediction = np.asarray(y), np.asarray(prediction)
    if loss == SPARSE:
        yield from _sparse(name, y, prediction)
    elif loss == ONE_HOT:
        yield from _one_hot(name, y, prediction)
    elif loss == BINARY:
        yield from _binary(name, y)
    else:
        yield from _shapes(name, y, prediction)
    yield from _logits(loss, from_logits, prediction)


def _sparse(name: str, y: Any, prediction: Any) -> Iterator[Finding]:
    classes = prediction.shape[-1]
    if y.shape[1:] == prediction.shape[1:] and classes > 1:
        yield Finding(
            "error", "labels-one-hot",
            f"`{name}` has the shape of the output, {y.shape[1:]}, as one-hot labels have: the loss must be "
            f"{ONE_HOT}, or the labels their argmax",
        )  # fmt: skip
        return
    good = y[np.isfinite(y.astype("float64"))] if is_floating(y) else y
    if is_floating(y) and np.any(good != np.round(good)):
        yield Finding(
            "error", "labels-fractional",
            f"`{name}` holds fractions such as {_first(good, good != np.round(good))}, which {SPARSE} cuts to whole "
            "numbers: give class numbers, or take a loss for regression",
        )  # fmt: skip
    if np.any(good < 0):
        yield Finding(
            "error", "labels-negative",
            f"`{name}` holds {good.min():g}; classes count from 0. Mark what is to be ignored with `ignore_class` or a "
            "sample weight of 0",
        )  # fmt: skip
    if np.any(good >= classes):
        yield Finding(
            "error", "labels-out-of-range",
            f"`{name}` goes up to {good.max():g}, and the output has {classes} classes, 0 to {classes - 1}: on a "
            "GPU the loss becomes NaN. Count labels from 0, or make the output wider",
        )  # fmt: skip


def _one_hot(name: str, y: Any, prediction: Any) -> Iterator[Finding]:
    if y.shape[1:] != prediction.shape[1:]:
        yield Finding(
            "error", "labels-sparse",
            f"`{name}` has shape {y.shape[1:]} and the output {prediction.shape[1:]}: with class numbers the loss must "
            f"be {SPARSE}",
        )  # fmt: skip
        return
    sums = y.astype("float64").sum(axis=-1)
    if np.any(y < 0) or np.any(np.abs(sums - 1) > 1e-3):
        yield Finding(
            "warning", "labels-no-distribution",
            f"rows of `{name}` do not add up to 1 (they do to {sums.min():.3g} to {sums.max():.3g}): {ONE_HOT} takes "
            f"them for probabilities of one class; for several at once take {BINARY}",
        )  # fmt: skip


def _binary(name: str, y: Any) -> Iterator[Finding]:
    good = y[np.isfinite(y.astype("float64"))] if is_floating(y) else y
    if good.size and (good.min() < 0 or good.max() > 1):
        yield Finding(
            "error", "labels-out-of-range",
            f"`{name}` goes from {good.min():g} to {good.max():g}, and {BINARY} needs 0 to 1",
        )  # fmt: skip


def _shapes(name: str, y: Any, prediction: Any) -> Iterator[Finding]:
    given, made = y.shape[1:], prediction.shape[1:]
    squeezed = [tuple(n for n in shape if n != 1) for shape in (given, made)]
    if squeezed[0] != squeezed[1]:
        yield Finding(
            "warning", "targets-shape",
            f"`{name}` has shape {given} for a sample and the output {made}: the loss may broadcast them silently",
        )  # fmt: skip


def _logits(loss: str, from_logits: bool, prediction: Any) -> Iterator[Finding]:
    if loss not in (SPARSE, ONE_HOT, BINARY) or not np.isfinite(prediction).all():
        return
    inside = prediction.min() >= 0 and prediction.max() <= 1
    sums_to_one = np.abs(prediction.astype("float64").sum(axis=-1) - 1).max() < 1e-3
    probabilities = inside and (sums_to_one or (loss == BINARY and prediction.std() > 0 and prediction.min() > 0))
    if not from_logits and (not inside or (loss != BINARY and not sums_to_one)):
        yield Finding(
            "error", "logits-taken-for-probabilities",
            f"the output goes from {prediction.min():.3g} to {prediction.max():.3g} and is no probability, but the "
            "loss has from_logits=False: set from_logits=True, or end the model with softmax or sigmoid",
        )  # fmt: skip
    elif from_logits and probabilities:
        yield Finding(
            "error" if sums_to_one and loss != BINARY else "warning", "probabilities-taken-for-logits",
            "the output looks like probabilities, but the loss has from_logits=True: take softmax or sigmoid off the "
            "model, or set from_logits=False",
        )  # fmt: skip


def _first(values: Any, where: Any) -> str:
    return f"{values[where].flat[0]:g}"


def inputs(x: Any, expected: Any, shapes: dict[str, tuple[Any, ...]]) -> Iterator[Finding]:
    """Names and order of a functional model's inputs against what it is given.

    Args:
        x: arrays: one, a list or a dictionary.
        expected: the structure in which the model was made: one name, a list, or a dictionary of names.
        shapes: of each input by name, without the samples.
    """
    names = list(shapes)
    if isinstance(x, dict):
        known = list(expected) if isinstance(expected, dict) else names
        missing, unknown = [n for n in known if n not in x], [n for n in x if n not in known]
        if missing:
            also = f", and `x` has {', '.join(map(repr, unknown))} instead" if unknown else ""
            yield Finding(
                "error", "inputs-names", f"the model's inputs {', '.join(map(repr, missing))} are not among `x`{also}"
            )  # fmt: skip
        elif [n for n in x if n in known] != known:
            yield Finding(
                "note", "inputs-order",
                f"the dictionary `x` is in the order {list(x)} and the model in the order {known}: Keras goes by name, "
                "but code of your own that goes by position would mix them up",
            )  # fmt: skip
    elif isinstance(x, (list, tuple)):
        if len(x) != len(names):
            yield Finding("error", "inputs-count", f"the model has {len(names)} inputs, and `x` is a list of {len(x)}")
            return
        given = [tuple(np.shape(part)[1:]) for part in x]
        wrong = [n for n, shape in zip(names, given, strict=True) if not _fits(shape, shapes[n])]
        if wrong:
            yield Finding(
                "error", "inputs-order",
                f"the arrays of `x` have shapes {given}, and the model's inputs {names} need {list(shapes.values())}: "
                "give them in that order, or a dictionary by name",
            )  # fmt: skip


def _fits(shape: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    if len(shape) != len(wanted):
        return {len(shape), len(wanted)} == {0, 1}  # Keras adds or takes off an axis of 1
    return all(w is None or s == w for s, w in zip(shape, wanted, strict=True))
