"""What callbacks have in common that measure, save and hand on other weights than those that are trained."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.callbacks import optimizers
from keras_trainkit.core import checks, evaluation
from keras_trainkit.layers.batch_statistics import (
    batch_normalization_statistics,
    refresh_batch_statistics,
    set_batch_normalization_statistics,
)


class WeightSwap(keras.callbacks.Callback):
    """Puts evaluation weights in for `evaluate` and `predict`, also within `fit`, and refreshes their statistics.

    The values change places: there is no arithmetic. Outside of `fit` all is left as it was found.

    Args:
        refresh: inputs for `layers.refresh_batch_statistics`, or None.
        refresh_batches: how many of its batches to take; all of them when left out.
        refresh_batch_size: the size of the batches that an array is cut into.
    """

    def __init__(self, refresh: Any = None, refresh_batches: int | None = None, refresh_batch_size: int = 32) -> None:
        super().__init__()
        self.refresh = refresh
        self.refresh_batches = refresh_batches
        if refresh_batches is not None:
            self.refresh_batches = checks.integer("refresh_batches", refresh_batches, at_least=1)
        self.refresh_batch_size = checks.integer("refresh_batch_size", refresh_batch_size, at_least=1)
        self._fitting = False
        self._found: Any = None
        self._unsynced: Any = None

    def set_model(self, model: Any) -> None:
        # Called for each `fit`, and for each `evaluate` and `predict` outside of one, also after a `fit` that failed.
        super().set_model(model)
        self._fitting = False
        self._unsynced = model

    def on_test_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_test_end(self, logs: Any = None) -> None:
        self._end()

    def on_predict_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_predict_end(self, logs: Any = None) -> None:
        self._end()

    def _begin(self) -> None:
        if not self._fitting:
            holds = evaluation.held(self._optimizer())
            self._found = (holds, batch_normalization_statistics(self.model))
        self._put_in()

    def _end(self) -> None:
        """Outside of `fit`, leaves everything as it was found."""
        if self._fitting:
            return
        held, statistics = self._found
        if not held:
            evaluation.put_back(self._optimizer())
            set_batch_normalization_statistics(self.model, statistics)

    def _put_in(self) -> None:
        optimizer = self._optimizer()
        if optimizer.built and not evaluation.held(optimizer):
            evaluation.put_in(optimizer)
            if self.refresh is not None:
                refresh_batch_statistics(self.model, self.refresh, self.refresh_batches, self.refresh_batch_size)

    def _optimizer(self) -> Any:
        """The innermost optimizer, which has evaluation weights, with the variables up to date."""
        raise NotImplementedError

    def _holds(self) -> bool:
        """Whether the evaluation weights are in, without bringing JAX's state into the variables at every batch."""
        return evaluation.held(optimizers.innermost(self._unsynced.optimizer))
