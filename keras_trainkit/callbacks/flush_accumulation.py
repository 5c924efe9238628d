"""Ends accumulation windows where epochs end."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer


@keras.saving.register_keras_serializable("keras_trainkit")
class FlushAccumulation(keras.callbacks.Callback):
    """Ends a part-filled accumulation window at the end of every epoch, before validation.

    Without it a window goes on from one epoch to the next, and the optimizer's `last_window` policy takes effect at
    the end of `fit` alone. With it the policy takes effect after the last batch of each epoch, so that validation and
    checkpoints see the update. It does nothing for an optimizer that does not accumulate.

    >>> FlushAccumulation().get_config()
    {}
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # On JAX the variables are out of date until the epoch ends; then validation or the epoch's end flushes.
        steps = self.params.get("steps") if keras.backend.backend() == "tensorflow" else None
        if steps is not None and batch + 1 >= steps:
            self._flush()

    def on_test_begin(self, logs: Any = None) -> None:
        # Where the number of steps is unknown (a generator), validation is the first sign that the epoch is over.
        self._flush()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._flush()

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}

    def _flush(self) -> None:
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if isinstance(optimizer, TransformOptimizer):
            optimizer.flush()
