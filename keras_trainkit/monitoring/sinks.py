"""Where else a monitor's lines may go: a small protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Sink:
    """Takes what a `TrainingMonitor` writes; subclasses override what they have use for.

    A sink is opened when `fit` begins and closed when it ends, possibly several times. All methods are called in the
    training thread: what takes long should wait for `flush`. For `ResumableTraining` a sink may have a state.

    Serialization asks for `get_config`, and for registration with Keras, as every part of a callback does.

    Example:

    >>> class Printed(Sink):
    ...     def write(self, kind, step, epoch, values):
    ...         print(kind, step, sorted(name for name, value in values.items() if value is not None))
    >>> Printed().write("step", 20, 1, {"loss": 0.5, "loss_scale": None})
    step 20 ['loss']
    """

    def open(self, directory: Path, recipe: Mapping[str, Any]) -> None:
        """`fit` begins; `recipe` holds plain values, nested perhaps, that say what the run does."""

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """One line: `kind` is "step" or "epoch". None stands for what was not measured; NaN and infinity may come."""

    def write_layers(self, step: int, epoch: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """The statistics of each layer, by the layer's path and the statistic's name."""

    def write_weights(self, step: int, weights: Mapping[str, np.ndarray]) -> None:
        """The trained variables by path, to be drawn as histograms."""

    def rewind(self, step: int) -> None:
        """A resumed run goes on from before `step`: what was written from there on comes again."""

    def flush(self) -> None:
        """An epoch has ended."""

    def close(self) -> None:
        """`fit` ends."""

    def get_state(self) -> dict[str, Any]:
        """What a new process needs to go on writing to the same place, as plain values."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_state`; it is called after `open` and before anything is written."""

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sink:
        """The inverse of `get_config`."""
        return cls(**config)


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested values under names with dots; None is left out, and lists become text.

    >>> flat({"optimizer": {"name": "adam", "rate": 0.1, "decay": None}, "sizes": [1, 2]})
    {'optimizer.name': 'adam', 'optimizer.rate': 0.1, 'sizes': '[1, 2]'}
    """
    found: dict[str, bool | int | float | str] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
