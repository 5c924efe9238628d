"""Layers that are frozen inside the train step alone: to everyone else the model is as it was."""

from __future__ import annotations

import threading
from typing import Any

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import first_match, require_matches


class FrozenStep:
    """A model's train step, during which some layers are not trainable.

    The flags change while the step is traced, and are put back after it. So a model that is saved in between has its
    own flags, and an optimizer that is built has state for every variable.

    Args:
        model: the model, whose train step is taken over until `remove`.

    Attributes:
        layers: those that are frozen, from the next trace on.
    """

    def __init__(self, model: Any) -> None:
        self.layers: list[Any] = []
        self._model = model
        self._before = vars(model).get("train_step")
        self._original = model.train_step
        self._inside = 0
        self._lock = threading.Lock()
        self._flags: list[tuple[Any, bool]] = []

        def train_step(data: Any) -> Any:
            self._freeze()
            try:
                return self._original(data)
            finally:
                self._thaw()

        self._step = backend.plain_python(train_step)
        # On this one object and past `__setattr__`, where Keras would track it.
        object.__setattr__(model, "train_step", self._step)

    def remove(self) -> None:
        """Gives the model its train step back; where others have put theirs around it, it does nothing from here on."""
        self.layers = []
        if vars(self._model).get("train_step") is self._step:
            del self._model.train_step
            if self._before is not None:
                object.__setattr__(self._model, "train_step", self._before)

    # Under MirroredStrategy the replicas trace in turns: the first one in freezes, the last one out thaws.

    def _freeze(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                variables = [v for layer in self.layers for v in own_variables(layer)]
                leaves = [layer for layer in self.layers if not backend.sublayers(layer)]
                self._flags = [(thing, thing.trainable) for thing in [*leaves, *variables]]
                # BatchNormalization asks its layer; a layer around others must not hide these.
                for thing, _ in self._flags:
                    thing.trainable = False

    def _thaw(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for thing, flag in self._flags:
                    thing.trainable = flag
                self._flags = []


def own_variables(layer: Any) -> list[Any]:
    """The trainable variables of a layer that belong to none of the layers inside of it."""
    inner = {id(v) for sub in backend.flat_layers(layer) if sub is not layer for v in sub.variables}
    return [v for v in layer.trainable_variables if id(v) not in inner]


def grouped(model: Any, patterns: list[str] | None) -> list[list[Any]]:
    """The layers with trainable variables of their own, in groups from the bottom of the model to its top.

    Args:
        model: a built model.
        patterns: regular expressions, looked for in the paths of the layers' variables, one for each group; None makes
            a group of each layer directly in the model.

    Raises:
        ValueError: for a layer that no pattern matches, a pattern without a layer, and fewer than two groups.
    """
    layers = {id(layer): layer for layer in backend.flat_layers(model)}.values()
    mine = [(layer, [variable_path(v) for v in own_variables(layer)]) for layer in layers if own_variables(layer)]
    if patterns is None:
        members = [{id(inner) for inner in backend.flat_layers(layer)} for layer in backend.sublayers(model)]
        groups = [[layer for layer, _ in mine if id(layer) in group] for group in members]
        groups = [group for group in groups if group]
    else:
        require_matches("groups", patterns, [path for _, paths in mine for path in paths])
        groups = [[] for _ in patterns]
        for layer, paths in mine:
            found = [match for match in (first_match(patterns, path) for path in paths) if match is not None]
            if not found:
                raise ValueError(
                    '`groups` must match every layer with weights; "" as the last pattern takes the rest. '
                    f"Unmatched: `{paths[0]}`"
                )
            groups[found[0]].append(layer)
    if len(groups) < 2:
        raise ValueError(
            f"`groups` must give at least two groups of layers that train. Received: groups={patterns!r}, which gives "
            f"{len(groups)}"
        )
    return groups
