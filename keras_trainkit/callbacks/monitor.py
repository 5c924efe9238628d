"""TrainingMonitor: what happens inside training, step by step, for TensorBoard and for programs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_trainkit.callbacks.counting import (
    Meter,
    accumulation_steps,
    inner_optimizer,
    synchronize,
    to_float,
)
from keras_trainkit.callbacks.event_log import EventFiles, JsonLines, record
from keras_trainkit.core import checks

STATISTICS = ("gradient_norm", "clipped_gradient_norm", "update_norm", "weight_norm", "update_to_weight_ratio")


@keras.saving.register_keras_serializable("keras_trainkit")
class TrainingMonitor(keras.callbacks.Callback):
    """Writes learning rate, norms, speed, loss scale and loss during training, and all metrics after each epoch.

    Every `every` updates one line goes to `directory/metrics.jsonl`, flushed at once, and the same values to
    TensorBoard events under `directory/tensorboard`:

    - `loss`: mean over the samples since the last line (Keras's own log is the mean since the epoch's start);
    - `learning_rate`: that of the next update, also with a schedule;
    - `gradient_norm`: of the whole gradient, after the sum over replicas and before clipping; `clipped_gradient_norm`;
    - `update_norm`, `weight_norm`, and `update_to_weight_ratio`: their quotient, about 1e-3 in healthy training;
    - `estimated_rate`, with an optimizer that estimates its own, such as Prodigy;
    - `samples_per_second`: training alone, without validation and without the first step, which is mostly tracing;
    - `loss_scale` with a `LossScaleOptimizer`, and `skipped_steps` with the kit's.

    After each epoch another line holds all logs, `val_*` included, with the epoch's `samples_per_second`. The axis is
    `optimizer.iterations`, the number of updates, and goes on over several calls of `fit`; epochs count from 1. A run
    that continues in another process appends. NaN and infinity are written as null, with their names in `nonfinite`.

    The norms come out of the optimizer's own update inside the compiled step, and only the updates that are written
    compute them. Between lines the callback reads nothing from the device.

    With a plain Keras optimizer there are no norms, and a warning says so once; `optimizers.wrap` adds them. With a
    `train_step` of your own `samples_per_second` and the steps' `loss` are left out.

    Args:
        directory: where to write; made if missing.
        every: updates between two lines, at least 1.
        tensorboard: whether to write TensorBoard events.

    Raises:
        ValueError: `every` is below 1.

    Example:

    >>> monitor = TrainingMonitor("runs/first", every=20)
    >>> # model.fit(x, y, callbacks=[monitor]), then: tensorboard --logdir runs
    """

    def __init__(self, directory: str | os.PathLike[str], every: int = 10, tensorboard: bool = True) -> None:
        super().__init__()
        self.directory = os.fspath(directory)
        self.every = checks.integer("every", every, at_least=1)
        self.tensorboard = checks.boolean("tensorboard", tensorboard)
        self._watched: Any = None
        self._warned = False
        self._lines: JsonLines | None = None
        self._events: EventFiles | None = None
        self._last_step = 0
        self._epochs_done = 0
        self._traced = False
        self._meter: Any = None

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"directory": self.directory, "every": self.every, "tensorboard": self.tensorboard}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainingMonitor:
        """The inverse of `get_config`."""
        return cls(**config)

    # ------------------------------------------------------------------------------------------------- set-up and end

    def set_model(self, model: Any) -> None:
        """Has the optimizer compute the norms; `fit` calls it before the train step is traced."""
        super().set_model(model)
        optimizer = inner_optimizer(getattr(model, "optimizer", None))
        if optimizer is not None and optimizer is not self._watched:
            self._watched = optimizer
            if hasattr(optimizer, "watch"):
                optimizer.watch(self.every)
                # A step that was traced before does not compute the norms.
                model.train_function = None
            elif not self._warned:
                self._warned = True
                warnings.warn(
                    f"{type(optimizer).__name__} reports no {', '.join(STATISTICS)}; TrainingMonitor writes the rest. "
                    "Compile with keras_trainkit.optimizers.wrap(optimizer) to have them.",
                    stacklevel=2,
                )
        self._traced = self._traced and getattr(model, "train_function", None) is not None

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the files, to append."""
        self._close()
        directory = Path(self.directory)
        self._lines = JsonLines(directory / "metrics.jsonl")
        self._events = EventFiles(directory / "tensorboard") if self.tensorboard else None
        self._meter = Meter(self.model, (self.params or {}).get("steps"), self._traced)
        self._traced = True
        self._written = self._meter.counter.last
        self._epoch_offset: int | None = None
        iterations = self._iterations()
        # After a new `compile` the optimizer counts from 0 again; the axis goes on.
        self._offset = max(0, self._last_step - iterations)
        self._plan_next(iterations)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the files."""
        self._close()
        self._meter = None

    def _close(self) -> None:
        for log in (self._lines, self._events):
            if log is not None:
                log.close()
        self._lines = self._events = None

    # --------------------------------------------------------------------------------------------------------- steps

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to count anew: Keras resets its metrics here."""
        if self._epoch_offset is None:
            # A second `fit` counts epochs from 0 again unless it has an `initial_epoch`.
            self._epoch_offset = max(0, self._epochs_done - epoch)
        self._epoch = epoch + 1 + self._epoch_offset
        self._meter.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Writes a line if the batches so far have brought the next one."""
        self._meter.begin_batch(batch)
        if batch > 0 and self._meter.batches >= self._next_look:
            self._look()

    def on_test_begin(self, logs: Any = None) -> None:
        """Ends the epoch's counting before validation resets the metrics."""
        self._end_counting()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the epoch's line."""
        self._end_counting()
        iterations = self._iterations()
        values = {name: to_float(value) for name, value in (logs or {}).items()}
        values["samples_per_second"] = self._meter.epoch.samples_per_second
        values.setdefault("learning_rate", to_float(self.model.optimizer.learning_rate))
        self._write("epoch", iterations, values)
        self._epochs_done = self._epoch
        if self._events is not None:
            self._events.flush()

    def _end_counting(self) -> None:
        if self._meter is not None and self._meter.end_epoch() and self._meter.batches >= self._next_look:
            self._look()

    def _look(self) -> None:
        """Reads how many updates were done, and writes a line if it is time: skipped steps and flushes shift it."""
        iterations = self._iterations()
        if iterations >= self._target:
            self._write("step", iterations, self._measure())
        self._plan_next(iterations)

    def _plan_next(self, iterations: int) -> None:
        self._target = (iterations // self.every + 1) * self.every
        window = accumulation_steps(self.model.optimizer)
        filled = self._meter.batches % window
        self._next_look = self._meter.batches + (self._target - iterations) * window - filled

    def _measure(self) -> dict[str, float | None]:
        optimizer = self.model.optimizer
        inner = inner_optimizer(optimizer)
        values: dict[str, float | None] = {}
        total = self._meter.counter.read()
        samples = total.samples - self._written.samples
        values["loss"] = (total.loss - self._written.loss) / samples if samples > 0 else None
        self._written = total
        values["learning_rate"] = to_float(optimizer.learning_rate)
        statistics = inner.statistics() if hasattr(inner, "statistics") else {}
        values |= dict.fromkeys(STATISTICS) | statistics
        values["samples_per_second"] = self._meter.take_window()
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            values["loss_scale"] = to_float(getattr(optimizer, "dynamic_scale", None))
            skipped = to_float(getattr(optimizer, "skipped_steps", None))
            values["skipped_steps"] = None if skipped is None else int(skipped)
        return values

    def _iterations(self) -> int:
        synchronize(self.model)
        return int(to_float(self.model.optimizer.iterations) or 0)

    def _write(self, kind: str, iterations: int, values: dict[str, float | None]) -> None:
        step = iterations + self._offset
        self._last_step = max(self._last_step, step)
        if self._lines is not None:
            self._lines.write(record(kind, step, self._epoch, values))
        if self._events is not None:
            self._events.write(kind, step, values)
