"""A lower learning rate where a metric stands still, under any schedule."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
from keras import ops

from keras_trainkit.callbacks.steering import SteeredRate, steer
from keras_trainkit.core import checks
from keras_trainkit.core.better import is_higher_better
from keras_trainkit.training import train_functions

MODES = ("auto", "min", "max")


@keras.saving.register_keras_serializable("keras_trainkit")
class PlateauRate(SteeredRate):
    """A learning rate times a multiplier that `ReduceOnPlateau` lowers.

    The numbers are the multiplier, the best value of the metric, whether there is one (0 or 1), the epochs without a
    better one, the epochs of cooldown to come, and the epochs seen.
    """

    place = "plateau_memory"
    initial = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def __call__(self, step: Any) -> Any:
        """The rate at `step`."""
        rate = self.rate_at(ops.convert_to_tensor(step))
        return rate * ops.cast(ops.convert_to_tensor(self.memory.numbers)[0], rate.dtype)


@keras.saving.register_keras_serializable("keras_trainkit")
class ReduceOnPlateau(keras.callbacks.Callback):
    """Multiplies the learning rate by `factor` whenever a metric has not improved for `patience` epochs.

    The rate may be a number, a function or any schedule, of the kit or not; the schedule goes on, and what it says is
    multiplied. Keras's `ReduceLROnPlateau` raises a TypeError with any schedule, and only when it first has something
    to reduce. The multiplier is a variable that the compiled step reads: on TensorFlow nothing is traced anew when it
    falls (on JAX the step is, once each time).

    The multiplier and the counts are saved with the optimizer, in `.keras` files and in BackupAndRestore's. Put this
    before callbacks that save. They go on in a later `fit`; the multiplier stays with the optimizer also without the
    callback. A number as learning rate becomes a schedule by this, and can no longer be assigned.

    An epoch counts as better if the metric beats the best one by more than `min_delta`; a NaN does not.

    Args:
        monitor: the metric, a key of `logs`, such as `"val_loss"`.
        factor: above 0 and below 1.
        patience: epochs without improvement before a reduction, at least 1.
        min_delta: at least 0.
        mode: `"min"`, `"max"`, or `"auto"`: by the name, as Keras does.
        warmup: epochs at the beginning of training that are not counted (the metric's best value is), at least 0: for
            schedules that begin with a low rate.
        cooldown: epochs after a reduction that are not counted, at least 0.
        minimum: the multiplier does not fall below it, at least 0.
        verbose: 1 prints a line for each reduction.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> callback = ReduceOnPlateau("val_loss", factor=0.5, patience=3, warmup=5, cooldown=2)
    >>> callback.get_config()["cooldown"]
    2
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        mode: str = "auto",
        warmup: int = 0,
        cooldown: int = 0,
        minimum: float = 0.0,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.factor = checks.number("factor", factor, above=0, below=1)
        self.patience = checks.integer("patience", patience, at_least=1)
        self.min_delta = checks.number("min_delta", min_delta, at_least=0)
        self.mode = checks.one_of("mode", mode, MODES)
        self.warmup = checks.integer("warmup", warmup, at_least=0)
        self.cooldown = checks.integer("cooldown", cooldown, at_least=0)
        self.minimum = checks.number("minimum", minimum, at_least=0, below=1)
        self.verbose = checks.integer("verbose", verbose, at_least=0, at_most=1)
        self._rate: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._steer()

    def set_params(self, params: Any) -> None:
        # Before any callback's `on_train_begin`: what BackupAndRestore reads there finds its place.
        super().set_params(params)
        if params and params.get("epochs") is not None and self.model is not None:
            self._steer()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = {} if logs is None else logs
        value = logs.get(self.monitor)
        if value is None:
            warnings.warn(
                f"`ReduceOnPlateau` has nothing to go by: there is no metric {self.monitor!r}. "
                f"There are {', '.join(logs) or 'none'}",
                stacklevel=2,
            )
            return
        multiplier, best, known, wait, resting, seen = self._rate.numbers()
        seen += 1
        if not known or self._is_better(float(value), best):
            if math.isfinite(float(value)):
                best, known = float(value), 1.0
            wait = 0.0
        elif resting == 0 and seen > self.warmup:
            wait += 1
        resting = max(resting - 1, 0)
        lower = max(multiplier * self.factor, self.minimum)
        if wait >= self.patience:
            wait, resting = 0.0, float(self.cooldown)
            if lower < multiplier:
                multiplier = lower
                if self.verbose:
                    print(f"Epoch {epoch + 1}: {self.monitor} stands still; learning rate times {multiplier:.3g}")
        changed = multiplier != self._rate.numbers()[0]
        self._rate.change([multiplier, best, known, wait, resting, seen])
        logs["rate_multiplier"] = multiplier
        if changed and keras.backend.backend() != "tensorflow":
            train_functions.trace_anew(self.model)  # the other backends compile the multiplier in

    @property
    def multiplier(self) -> float:
        """What the schedule's rate is multiplied with now; 1 before training."""
        return 1.0 if self._rate is None else self._rate.numbers()[0]

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("monitor", "factor", "patience", "min_delta", "mode", "warmup", "cooldown", "minimum", "verbose")
        return {name: getattr(self, name) for name in names}

    def _steer(self) -> None:
        self._rate = steer(self.model, PlateauRate)

    def get_state(self) -> dict[str, Any]:
        """The multiplier and the counts, for `ResumableTraining`."""
        return {"numbers": self._rate.numbers()}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._rate.change(state["numbers"])
        if keras.backend.backend() != "tensorflow":
            train_functions.trace_anew(self.model)

    def _is_better(self, value: float, best: float) -> bool:
        if is_higher_better(self.monitor, self.mode):
            return value > best + self.min_delta
        return value < best - self.min_delta
