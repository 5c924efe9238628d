"""What happens around each epoch of a run: measuring time, validation, keeping the best model, noticing divergence."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit.recipes.evaluation import Evaluator


class Stopwatch(keras.callbacks.Callback):
    """Counts steps and the time that they take. Put it first, so that what others do after an epoch does not count.

    The first step is left out of `samples_per_second`: most of it is tracing. Steps are counted where the next one
    begins, because `on_train_batch_end` would make Keras read all metrics from the device at each step.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.steps = 0
        self._before_epoch = 0
        self._untimed = 0  # steps of an earlier process
        self._seconds = 0.0
        self._timed_since: float | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock, but for the very first step."""
        self._before_epoch = self.steps
        self._timed_since = time.perf_counter() if self.steps > self._untimed else None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Counts the steps before this one."""
        self.steps = self._before_epoch + batch
        if self._timed_since is None and self.steps > self._untimed:
            self._timed_since = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts the epoch's last step and stops the clock."""
        self.steps = self._before_epoch + self.params["steps"]
        self._seconds, self._timed_since = self.seconds, None

    def get_state(self) -> dict[str, Any]:
        """The steps, for `ResumableTraining`; time counts from the start of the process."""
        return {"steps": self.steps, "before_epoch": self._before_epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.steps, self._before_epoch = state["steps"], state["before_epoch"]
        self._untimed = self.steps

    @property
    def seconds(self) -> float:
        """Time in training steps, without the first one."""
        running = 0.0 if self._timed_since is None else time.perf_counter() - self._timed_since
        return self._seconds + running

    @property
    def samples_per_second(self) -> float | None:
        """Examples trained on per second of training; None before the second step of this process."""
        timed = self.steps - self._untimed - 1
        return timed * self.batch_size / self.seconds if timed > 0 else None


class Validation(keras.callbacks.Callback):
    """Adds exact validation metrics, as `val_*`, to the logs that the callbacks after it see.

    Args:
        measured: the model to measure, with the weights of the one in training.
        evaluator: measures it.
    """

    def __init__(self, measured: keras.Model, evaluator: Evaluator) -> None:
        super().__init__()
        self.measured, self.evaluator = measured, evaluator

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes over the weights, and measures."""
        self.measured.set_weights(self.model.get_weights())
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in self.evaluator("validation").items()})


class KeepBest(keras.callbacks.Callback):
    """Saves a model after each epoch that was better than all before, and keeps the weights of the best one.

    Args:
        weights_of: the model that `Validation` measured.
        saved: the model to save, around the same weights.
        path: the file; a whole one is there from the first epoch on, at every moment.
        metric, larger_is_better: which of the logs decides. Equal values are decided by `val_loss`.
    """

    def __init__(
        self, weights_of: keras.Model, saved: keras.Model, path: Path, metric: str, larger_is_better: bool
    ) -> None:
        super().__init__()
        self.weights_of, self.saved, self.path = weights_of, saved, path
        self.metric, self.larger_is_better = metric, larger_is_better
        self.best: dict[str, Any] | None = None
        self.epochs_completed = 0
        self._score = (-math.inf, -math.inf)
        self._weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compares, and saves if better."""
        self.epochs_completed = epoch + 1
        value, loss = float((logs or {})[self.metric]), float((logs or {})["val_loss"])
        score = (value if self.larger_is_better else -value, -loss)
        if not all(math.isfinite(part) for part in score) or score <= self._score:
            return
        save(self.saved, self.path)
        self._score, self._weights = score, self.weights_of.get_weights()
        self.best = {"metric": self.metric, "value": value, "epoch": epoch + 1}

    def get_state(self) -> dict[str, Any]:
        """The best epoch so far and its weights, for `ResumableTraining`."""
        found = {"best": self.best, "epochs_completed": self.epochs_completed}
        return {**found, "score": self._score, "weights": self._weights}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`; also the file is that of the best epoch so far."""
        self.best, self.epochs_completed = state["best"], state["epochs_completed"]
        self._score, self._weights = state["score"], state["weights"]
        if self._weights:
            self.restore()
            save(self.saved, self.path)

    def restore(self) -> None:
        """Puts the best weights back into the measured model."""
        self.weights_of.set_weights(self._weights)


class StopIfDiverged(keras.callbacks.Callback):
    """Ends training after an epoch whose training and validation loss are both not finite.

    One of them alone says little: a skipped step of mixed precision makes an epoch's mean infinite and harms nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: str | None = None

    def get_state(self) -> dict[str, Any]:
        """What was wrong, for `ResumableTraining`."""
        return {"error": self.error}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.error = state["error"]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the losses."""
        losses = [float((logs or {})[name]) for name in ("loss", "val_loss")]
        if not any(math.isfinite(loss) for loss in losses):
            self.error = (
                f"training diverged: in epoch {epoch + 1} the training loss is {losses[0]}, the validation loss "
                f"{losses[1]}; try a lower learning_rate, a longer warmup or a global_clipnorm"
            )
            self.model.stop_training = True


def save(model: keras.Model, path: Path) -> None:
    """Saves a model under another name first, so that whoever opens `path` finds a whole file."""
    partial = path.with_name(f"{path.stem}.partial.keras")
    model.save(partial)
    os.replace(partial, path)
