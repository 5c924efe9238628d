"""Training steps on batches of any size, made of a few samples, that are not to be kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass
class Rehearsal:
    """A model and some samples to make batches of.

    Attributes:
        model: a compiled model; its training leaves traces in it.
        samples: x, y and the weights of samples: arrays or structures of them, or None.
        steps: training steps of a trial.
    """

    model: Any
    samples: tuple[Any, Any, Any]
    steps: int

    def run(self, size: int) -> None:
        """Trains on batches of so many samples; those there are come again and again."""
        x, y, weights = (keras.tree.map_structure(lambda v: _repeated(v, size), part) for part in self.samples)
        for _ in range(self.steps):
            self.model.train_on_batch(x, y, sample_weight=weights)

    def renew(self, accumulates: bool) -> None:
        """Gives the model a new optimizer of the same settings, and lets it sum gradients if `accumulates`."""
        serialized = keras.optimizers.serialize(self.model.optimizer)
        inner = serialized["config"]
        while "inner_optimizer" in inner:
            inner = inner["inner_optimizer"]["config"]
        if accumulates:
            inner["gradient_accumulation_steps"] = max(2, inner.get("gradient_accumulation_steps") or 2)
        self.model.optimizer = keras.optimizers.deserialize(serialized)
        self.model.train_function = None


def few(part: Any, most: int = 64) -> Any:
    """The first samples of a structure of arrays, as NumPy's."""
    return keras.tree.map_structure(lambda v: None if v is None else np.asarray(v[:most]), part)


def _repeated(values: Any, size: int) -> Any:
    return None if values is None else np.take(values, np.arange(size) % len(values), axis=0)
