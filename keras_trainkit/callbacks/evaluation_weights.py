"""Puts the evaluation weights in where a model is measured, saved and handed on."""

from __future__ import annotations

from typing import Any

from keras_trainkit.callbacks.weight_swap import WeightSwap
from keras_trainkit.core import TransformOptimizer


class EvaluationWeights(WeightSwap):
    """Evaluates, predicts, saves and ends `fit` with the optimizer's evaluation weights, and trains with the others.

    The evaluation weights are the average x of a Schedule-Free optimizer, or the moving average of any optimizer of
    the kit with `use_ema=True` (also inside a LossScaleOptimizer, or around a Keras optimizer by `optimizers.wrap`).
    They are in the variables from the last batch of an epoch to the first of the next, so validation, ModelCheckpoint,
    BackupAndRestore and EarlyStopping see them, and they stay when `fit` ends. Training weights come back bit for bit:
    a run with this callback trains as one without.

    Checkpoints of an epoch's end hold the evaluation weights, and beside the optimizer's state the training weights (4
    bytes per float32 parameter more), so that resuming is exact. Checkpoints inside an epoch (`save_freq=100`) hold the
    training weights, and resume as exactly.

    The place in the list of callbacks matters in one case: where the number of steps per epoch is unknown (a generator)
    or the epoch is cut short, and there is no validation, it must come before those that save.

    If an exception or Ctrl-C ends `fit`, the model holds the training weights, or, if that happened between two epochs
    or in validation, the evaluation weights; the optimizer's `holds_evaluation()` tells, `to_evaluation()` and
    `to_training()` change it, and another `fit` with this callback goes on from the training weights. (With
    `use_ema=True` on JAX, Keras ends by putting the average in even then.) A `fit` without this callback, behind one
    with it, would train on from the evaluation weights: it warns at its end.

    Args:
        refresh: inputs for `layers.refresh_batch_statistics`: an array, a dataset, or any iterable of batches that
            can be gone through each epoch. Given, the moving statistics of BatchNormalization are recomputed whenever
            evaluation weights go in. They stay so in training, which uses each batch's own.
        refresh_batches: how many of its batches to take; all of them when left out.
        refresh_batch_size: the size of the batches that an array is cut into.

    Raises:
        ValueError: when training or evaluation begins with an optimizer that has no evaluation weights.

    Example:

    >>> from keras_trainkit import callbacks
    >>> callback = callbacks.EvaluationWeights()
    >>> callback.refresh is None
    True
    """

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        optimizer = self._optimizer()
        if model.built and not optimizer.built:
            model.optimizer.build(model.trainable_variables)  # a loaded state waits for it
        optimizer.to_training()
        self._fitting = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Whoever put them in: a BackupAndRestore behind us in the list may just have loaded them.
        if self._holds():
            self._optimizer().to_training()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        steps = self.params.get("steps")
        if steps is not None and batch + 1 >= steps:
            self._put_in()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._put_in()

    def on_train_end(self, logs: Any = None) -> None:
        self._put_in()
        self._fitting = False

    def _optimizer(self) -> TransformOptimizer:
        # `self.model` brings JAX's state into the variables first; what is written to them then counts.
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not isinstance(optimizer, TransformOptimizer) or not optimizer.offers_evaluation():
            raise ValueError(
                "`EvaluationWeights` needs an optimizer with evaluation weights: a Schedule-Free one, or one with "
                f"`use_ema=True`, of the kit or through `optimizers.wrap`. Received: {type(optimizer).__name__}"
            )
        return optimizer
