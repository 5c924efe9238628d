"""Writes what is known of an event into a folder, which has its name only when it is whole."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.guards import replay
from keras_trainkit.guards.autopsy import BATCH, CONFIGURATION, EVENT, FORMAT, WEIGHTS
from keras_trainkit.guards.evidence import GRADIENTS, Share
from keras_trainkit.guards.figures import bad_samples, figures
from keras_trainkit.resuming.snapshot import versions

FILES = {"batch": BATCH, "weights": WEIGHTS}


def describe(model: Any, shares: list[Share], structure: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Facts for JSON, the arrays of the batch, and those of the weights.

    Args:
        model: the model.
        shares: of each replica.
        structure: of the batch; each leaf is the number of its array in a share.
    """
    share = next((s for s in shares if s.bad), shares[0])
    batch = {name: _joined([s.batch[i] for s in shares]) for name, i in _names(structure)}
    weights = {variable_path(v): value for v, value in zip(model.variables, share.weights, strict=True)}
    facts: dict[str, Any] = {
        "kind": "loss or gradients" if share.kind == GRADIENTS else "weights",
        "iterations": share.iterations,
        "loss": sum(s.loss for s in shares),  # Keras gives each replica its share of the mean
        "loss_scale": share.scale,
        "replica": share.replica,
        "shares": [len(s.batch[0]) if s.batch and np.ndim(s.batch[0]) else 0 for s in shares],
        "weights_are": "before the step" if share.kind == GRADIENTS else "of now",
        "arrays": [{"name": n} | figures(a) | {"bad_samples": bad_samples(a)} for n, a in batch.items()],
        "variables": replay.variable_figures(model, share.weights),
        "gradients": [
            {"path": variable_path(v)} | figures(g)
            for v, g in zip(model.trainable_variables, share.gradients, strict=False)
            if g is not None
        ],
    }
    given = keras.tree.map_structure(lambda i: None if i is None else share.batch[i], structure)
    try:
        found = replay.replay(model, given, share.weights, share.scale)
        facts |= {"layers": found["layers"], "replayed_loss": found["loss"]}
    except Exception as error:  # whatever a model of the user's does, what is known so far must get to the disk
        facts["replay_failed"] = f"{type(error).__name__}: {error}"
    return facts, batch, weights


def write(directory: Path, facts: dict[str, Any], arrays: dict[str, dict[str, Any]], model: Any, recipe: Any) -> Path:
    """Writes the folder and returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"nonfinite-{facts['iterations']:08d}"
    number = sum(1 for path in directory.glob(f"{name}*"))
    final = directory / (f"{name}-{number + 1}" if number else name)
    made = directory / f".{final.name}.{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for file, members in arrays.items():
        np.savez(made / file, **{name: _plain(value) for name, value in members.items()})
    (made / CONFIGURATION).write_text(_json(configuration(model, recipe)), encoding="utf-8")
    (made / EVENT).write_text(_json({"format": FORMAT, "versions": versions()} | facts), encoding="utf-8")
    made.rename(final)
    return final


def configuration(model: Any, recipe: Any) -> dict[str, Any]:
    """What made the run what it is: the recipe if there is one, the model, the optimizer, the loss."""
    found: dict[str, Any] = {"recipe": recipe, "dtype_policy": str(getattr(model, "dtype_policy", None))}
    for name, get in (
        ("optimizer", lambda: keras.optimizers.serialize(model.optimizer)),
        ("compile", model.get_compile_config),
        ("model", lambda: keras.saving.serialize_keras_object(model)),
    ):
        try:
            found[name] = get()
        except Exception as error:  # what cannot be serialized must not lose the rest
            found[name] = f"not serializable: {type(error).__name__}: {error}"
    return found


def numbered(data: Any) -> Any:
    """The structure of a batch with the numbers of its dense leaves, None for the others."""
    count = itertools.count()
    return keras.tree.map_structure(
        lambda leaf: next(count) if leaf is not None and backend.is_dense(leaf) else None, data
    )


def named_arrays(parts: Any) -> dict[str, Any]:
    """The arrays of a batch by names such as "x", "y" and "x/age"."""
    return dict(_names(parts))


def _names(structure: Any) -> list[tuple[str, Any]]:
    """Names such as "x", "y" and "x/age" with their leaves."""
    parts = structure if isinstance(structure, (list, tuple)) else [structure]
    found = []
    for name, part in zip(("x", "y", "sample_weight"), parts, strict=False):
        for path, number in _walk(part):
            if number is not None:
                found.append(("/".join([name, *path]), number))
    return found


def _walk(part: Any) -> list[tuple[list[str], Any]]:
    if isinstance(part, dict):
        return [([str(key), *path], leaf) for key, value in part.items() for path, leaf in _walk(value)]
    if isinstance(part, (list, tuple)):
        return [([str(i), *path], leaf) for i, value in enumerate(part) for path, leaf in _walk(value)]
    return [([], part)]


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 or not np.ndim(parts[0]) else np.concatenate(parts)


def _plain(value: Any) -> Any:
    """An array that `numpy.load` reads without pickle and without other packages."""
    array = np.asarray(value)
    if array.dtype.hasobject:
        return array.astype("S")
    return array if array.dtype.kind in "biufcSU" else array.astype("float32")


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=1, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    """The value with text in the place of numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
