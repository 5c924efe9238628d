"""What a compiled model shows without data: what is frozen, which rules of the optimizer match nothing, seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import TransformOptimizer, backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.transform import Transform
from keras_trainkit.core.weight_mask import mask_of
from keras_trainkit.guards.findings import Finding


def frozen(model: Any) -> Iterator[Finding]:
    """Layers that do not train, and BatchNormalization among them or not."""
    layers = [layer for layer in backend.flat_layers(model) if layer is not model and layer.weights]
    leaves = [layer for layer in layers if not any(inner.weights for inner in backend.sublayers(layer))]
    still = [layer for layer in leaves if not layer.trainable_weights and getattr(layer, "trainable", True) is False]
    if not model.trainable_weights:
        yield Finding(
            "error", "nothing-trainable", "no weight is trainable: set `trainable = True`, then compile again"
        )
        return
    if not still:
        return
    names = ", ".join(layer.name for layer in still[:5]) + (f" and {len(still) - 5} more" if len(still) > 5 else "")
    yield Finding("note", "layers-frozen", f"{len(still)} of {len(leaves)} layers with weights are frozen: {names}")
    normalizing = [layer for layer in leaves if isinstance(layer, keras.layers.BatchNormalization)]
    training = [layer.name for layer in normalizing if layer.trainable]
    others = [layer for layer in still if layer not in normalizing]
    first_still = min((leaves.index(layer) for layer in others), default=None)
    behind = [n for n in training if first_still is not None and _position(leaves, n) < leaves.index(others[-1])]
    if behind:
        yield Finding(
            "warning", "batch-normalization-trains",
            f"BatchNormalization stands among frozen layers and trains ({', '.join(behind[:5])}): its statistics drift "
            "away from those of the frozen weights; freeze it, too",
        )  # fmt: skip
    held = [layer.name for layer in normalizing if not layer.trainable]
    if held:
        yield Finding(
            "note", "batch-normalization-frozen",
            f"{len(held)} of {len(normalizing)} BatchNormalization layers are frozen, and use their moving statistics "
            "in training, too, as is usual for fine-tuning",
        )  # fmt: skip


def _position(leaves: list[Any], name: str) -> int:
    return next(i for i, layer in enumerate(leaves) if layer.name == name)


def rules(model: Any) -> Iterator[Finding]:
    """Rules of the kit's optimizers that take no variable, and weights that are all held at zero."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    paths = [variable_path(v) for v in model.trainable_variables]
    for variable in model.trainable_variables:
        mask = mask_of(variable)
        if mask is not None and not bool(ops.convert_to_numpy(ops.any(backend.read(mask.mask)))):
            yield Finding(
                "warning", "weight-mask-empty",
                f"the weight mask of `{variable_path(variable)}` holds all of it at zero: `pruning.strip` takes it off",
            )  # fmt: skip
    if not isinstance(optimizer, TransformOptimizer):
        return
    found = [("weight_decay_exclude", pattern) for pattern in optimizer.weight_decay_exclude]
    found += [(f"{type(t).__name__}.exclude", p) for t in _transforms(optimizer.all_links()) for p in _excluded(t)]
    for name, pattern in found:
        if not any(re.search(pattern, path) for path in paths):
            yield Finding(
                "warning", "rule-without-variable",
                f"{pattern!r} in `{name}` is found in the path of no variable, such as {', '.join(paths[:3])}",
            )  # fmt: skip


def _transforms(value: Any) -> Iterator[Transform]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _transforms(item)
    elif isinstance(value, Transform):
        yield value
        for field in dataclasses.fields(value):
            yield from _transforms(getattr(value, field.name))


def _excluded(transform: Transform) -> list[str]:
    patterns = getattr(transform, "exclude", None)
    return [p for p in patterns if isinstance(p, str)] if isinstance(patterns, list) else []


def seeds() -> Iterator[Finding]:
    """Whether a run can be had again."""
    if not backend.seed_is_set():
        yield Finding(
            "note", "seeds-unset",
            "no seed is set, so no second run will be like this one: call keras.utils.set_random_seed(...) before the "
            "model is made",
        )  # fmt: skip
