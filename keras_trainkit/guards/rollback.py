"""The last good states of a model in training, in memory."""

from __future__ import annotations

from typing import Any

from keras_trainkit.core import backend
from keras_trainkit.resuming import snapshot


class GoodStates:
    """The last two states of a model and its optimizer, statistics, seeds and accumulation windows included.

    The values are held as they were read: on TensorFlow nothing is copied before the next step writes. Metrics and the
    place in the data are none of it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._states: list[tuple[int, list[tuple[Any, Any]]]] = []

    def __len__(self) -> int:
        return len(self._states)

    def take(self, iterations: int) -> None:
        """Keeps the state of this moment, and forgets the one before the last."""
        groups = snapshot.variables(self._model)
        strategy = self._model.distribute_strategy
        copies = [c for name in ("model", "optimizer") for v in groups[name] for c in backend.copies(v, strategy)]
        self._states = [*self._states[-1:], (iterations, [(copy, backend.held(copy)) for copy in copies])]

    def put_back(self) -> int:
        """Goes back to the older of the states, which alone stays, and returns its number of updates."""
        iterations, values = self._states[0]
        for copy, value in values:
            copy.assign(value)
        del self._states[1:]
        return iterations
