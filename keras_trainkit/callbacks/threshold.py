"""Ends training, or says something, when a metric reaches a value."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras

from keras_trainkit.callbacks.plateau import is_higher_better
from keras_trainkit.core import checks
from keras_trainkit.monitoring.counting import to_float

MODES = ("auto", "min", "max")
ACTIONS = ("stop", "warn", "raise")
OCCASIONS = ("epoch", "batch")


class ThresholdCrossed(RuntimeError):
    """A metric crossed the value at which `callbacks.Threshold` was to raise."""


@keras.saving.register_keras_serializable("keras_trainkit")
class Threshold(keras.callbacks.Callback):
    """Stops training when a metric reaches a value; or warns, or raises an error, when it crosses a bad one.

    A metric that is not finite reaches nothing: `TerminateOnNaN` and guards are for that.

    Args:
        monitor: the metric, a key of `logs`, such as `"val_accuracy"` or `"loss"`.
        value: a finite number.
        mode: `"max"`: the value is reached from below; `"min"`: from above; `"auto"`: the way the metric gets better
            where the action is to stop, the way it gets worse for the other two.
        action: `"stop"` ends `fit` after the epoch or batch; `"warn"` warns, once for each crossing; `"raise"` raises
            `ThresholdCrossed`.
        times: so many times in a row the metric must be there, at least 1.
        each: look at the end of each `"epoch"` or each `"batch"`. With the latter Keras reads all metrics after each
            step, which are means over the epoch so far.

    Attributes:
        reached: the epoch, counted from 1, in which the value was first reached; None before.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.
        ThresholdCrossed: in training, where the action is `"raise"`.

    >>> Threshold("val_accuracy", 0.99).get_config()["action"]
    'stop'
    """

    def __init__(
        self,
        monitor: str,
        value: float,
        mode: str = "auto",
        action: str = "stop",
        times: int = 1,
        each: str = "epoch",
    ) -> None:
        super().__init__()
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"`monitor` must be the name of a metric. Received: monitor={monitor!r}")
        self.monitor = monitor
        self.value = checks.number("value", value)
        self.mode = checks.one_of("mode", mode, MODES)
        self.action = checks.one_of("action", action, ACTIONS)
        self.times = checks.integer("times", times, at_least=1)
        self.each = checks.one_of("each", each, OCCASIONS)
        self.reached: int | None = None
        self._row = self._epoch = 0
        self._missing = False
        if each == "batch":
            # Only then: with such a method Keras reads the metrics from the device at each step.
            self.on_train_batch_end = self._after_batch

    def on_train_begin(self, logs: Any = None) -> None:
        self.reached, self._row = None, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.each == "epoch":
            self._look(logs)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {name: getattr(self, name) for name in ("monitor", "value", "mode", "action", "times", "each")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Threshold:
        """The inverse of `get_config`."""
        return cls(**config)

    def get_state(self) -> dict[str, Any]:
        """How often in a row the value was reached, and when first, for `ResumableTraining`."""
        return {"row": self._row, "reached": self.reached}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._row, self.reached = state["row"], state["reached"]

    def _after_batch(self, batch: int, logs: Any = None) -> None:
        self._look(logs)

    def _look(self, logs: Any) -> None:
        value = to_float((logs or {}).get(self.monitor))
        if value is None:
            if not self._missing:
                self._missing = True
                warnings.warn(
                    f"`Threshold` has nothing to go by: there is no metric {self.monitor!r}. "
                    f"There are {', '.join(logs or {}) or 'none'}",
                    stacklevel=2,
                )
            return
        self._row = self._row + 1 if math.isfinite(value) and self._is_there(value) else 0
        if self._row < self.times:
            return
        self.reached = self._epoch + 1 if self.reached is None else self.reached
        text = f"{self.monitor} is {value:.6g} in epoch {self._epoch + 1}, past the threshold of {self.value:.6g}"
        if self.action == "stop":
            self.model.stop_training = True
        elif self.action == "raise":
            raise ThresholdCrossed(text)
        elif self._row == self.times:
            warnings.warn(text, stacklevel=2)

    def _is_there(self, value: float) -> bool:
        upwards = self.mode == "max"
        if self.mode == "auto":
            upwards = is_higher_better(self.monitor) == (self.action == "stop")
        return value >= self.value if upwards else value <= self.value
