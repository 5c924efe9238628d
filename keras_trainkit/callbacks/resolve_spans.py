"""Schedules in epochs and shares of the run, made concrete when `fit` starts."""

from __future__ import annotations

from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.accumulation_schedule import AccumulationSchedule
from keras_trainkit.callbacks.steering import SteeredRate
from keras_trainkit.core import TransformOptimizer, backend, checks
from keras_trainkit.layers.drawing import Dropping
from keras_trainkit.schedules.spans import is_resolved, resolve


@keras.saving.register_keras_serializable("keras_trainkit")
class ResolveSpans(keras.callbacks.Callback):
    """Turns the lengths of the optimizer's learning-rate schedule into updates: "10ep", "0.9run".

    It does so when `fit` starts, before the train step is traced, so the step sees plain numbers. Lengths count
    updates: an optimizer of the kit that accumulates over k batches makes 1 / k of an epoch's steps. (A Keras
    optimizer's schedules count batches.) Where `AccumulationSchedule` changes k, "10ep" is as many updates as the run's
    first ten epochs have, and "0.9run" is 0.9 of all its updates. The run is `epochs` of `fit`, those before a
    resumption included: with `initial_epoch`, or BackupAndRestore, the values are those of the uninterrupted run.

    It does the same for the rates of the kit's layers that drop (`layers.ScheduledDropout` and others), which count
    batches.

    The optimizer is saved with the resolved schedule, which stays: another `fit`, also of a loaded model, goes on along
    it. For a run that is given to `fit` in parts, say its `epochs` here.

    Args:
        steps_per_epoch: batches in an epoch; what `fit` knows when left out.
        epochs: of the whole run; the `epochs` of `fit` when left out.

    Raises:
        ValueError: when training begins, if the length of an epoch is not known (a generator without
            `steps_per_epoch`).

    >>> from keras_trainkit import callbacks, optimizers, schedules
    >>> optimizer = optimizers.Adam(schedules.Warmup(schedules.Cosine(1e-3, "0.9run"), "0.1run"))
    >>> callbacks.ResolveSpans().epochs is None  # model.fit(x, y, epochs=10, callbacks=[callbacks.ResolveSpans()])
    True
    """

    def __init__(self, steps_per_epoch: int | None = None, epochs: int | None = None) -> None:
        super().__init__()
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        if steps_per_epoch is not None:
            self.steps_per_epoch = checks.integer("steps_per_epoch", steps_per_epoch, at_least=1)
        if epochs is not None:
            self.epochs = checks.integer("epochs", epochs, at_least=1)

    def on_train_begin(self, logs: Any = None) -> None:
        for layer in backend.flat_layers(self.model):
            if isinstance(layer, Dropping):
                layer.rate = resolved_for(self, layer.rate, self.steps_per_epoch, self.epochs, accumulation=1)
        optimizer = optimizers.innermost(self.model.optimizer)
        holder, rate = None, backend.learning_rate_argument(optimizer)
        while isinstance(rate, SteeredRate):
            holder, rate = rate, rate.schedule
        if not isinstance(rate, LearningRateSchedule) or is_resolved(rate):
            return
        resolved = resolved_for(self, rate, self.steps_per_epoch, self.epochs)
        if holder is None:
            backend.replace_schedule(optimizer, resolved)
        else:
            holder.schedule = resolved

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"steps_per_epoch": self.steps_per_epoch, "epochs": self.epochs}


def resolved_for(
    callback: keras.callbacks.Callback,
    schedule: Any,
    steps: int | None = None,
    epochs: int | None = None,
    accumulation: int | None = None,
) -> Any:
    """The schedule with its lengths in updates of the `fit` that the callback is in, or in `accumulation` batches."""
    if not isinstance(schedule, LearningRateSchedule) or is_resolved(schedule):
        return schedule
    steps = callback.params.get("steps") if steps is None else steps
    epochs = callback.params.get("epochs") if epochs is None else epochs
    if steps is None or epochs is None:
        raise ValueError(
            f"`steps_per_epoch` must be given to `fit`, or to `ResolveSpans`, for a schedule with lengths in epochs or "
            f"shares of the run: the data do not tell how long an epoch is. Received: {schedule}"
        )
    if accumulation is None:
        optimizer = optimizers.innermost(callback.model.optimizer)
        # Keras's own optimizers count batches.
        planned = planned_accumulation(optimizer) if isinstance(optimizer, TransformOptimizer) else 1
        return resolve(schedule, steps, epochs, planned)
    return resolve(schedule, steps, epochs, accumulation)


def planned_accumulation(optimizer: Any) -> dict[int, int]:
    """From which epoch on how many batches make an update in the `fit` that a callback is being called in."""
    planned = {0: getattr(optimizer, "gradient_accumulation_steps", None) or 1}
    for callback in getattr(backend.list_of_callbacks(), "callbacks", []):
        if isinstance(callback, AccumulationSchedule):
            planned |= callback.steps
    return planned
