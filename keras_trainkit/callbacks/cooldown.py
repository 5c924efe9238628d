"""The cooldown of a run that nobody knew the length of beforehand: it begins now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.resolve_spans import resolved_for
from keras_trainkit.callbacks.steering import SteeredRate, steer
from keras_trainkit.core import TransformOptimizer, checks
from keras_trainkit.schedules.base import LARGEST_STEP, rate_dtype
from keras_trainkit.schedules.wsd import SHAPES, Cooldown, cooldown
from keras_trainkit.training import train_functions


@keras.saving.register_keras_serializable("keras_trainkit")
class CooldownRate(SteeredRate):
    """A learning rate that `StartCooldown` ends. The numbers are the first step of the cooldown and its length."""

    place = "cooldown_memory"
    dtype = "int32"
    initial = (LARGEST_STEP, 1)

    def __init__(self, schedule: Any, numbers: Any = None, shape: str = "1-sqrt", alpha: float = 0.0) -> None:
        super().__init__(schedule, numbers)
        self.shape, self.alpha = shape, alpha

    def __call__(self, step: Any) -> Any:
        """The rate at `step`."""
        step, numbers = ops.convert_to_tensor(step), ops.convert_to_tensor(self.memory.numbers)
        start, length = ops.cast(numbers[0], step.dtype), ops.cast(numbers[1], step.dtype)
        gone = ops.minimum(ops.maximum(step, start) - start, length)
        dtype = rate_dtype()
        done, left = (ops.cast(part, dtype) / ops.cast(length, dtype) for part in (gone, length - gone))
        share = self.alpha + (1 - self.alpha) * cooldown(self.shape, done, left)
        return self.rate_at(ops.minimum(step, start)) * share

    def get_config(self) -> dict[str, Any]:
        """The schedule, the numbers and the shape."""
        return {**super().get_config(), "shape": self.shape, "alpha": self.alpha}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The rate from what `get_config` gave."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["numbers"], config["shape"], config["alpha"])


@keras.saving.register_keras_serializable("keras_trainkit")
class StartCooldown(keras.callbacks.Callback):
    """Lets the learning rate fall to its end from now on, in a `fit` that is running; then stops training.

    For schedules without an end, such as `schedules.WSD(rate, warmup_steps)`: train until you have seen enough, then
    `begin()`, from another callback, another thread, or by creating `file`. The rate of that moment then falls over
    `decay_steps` updates. Nothing is traced anew on TensorFlow; on JAX the step is, once. The same rates come from
    `schedules.Cooldown`, for which the step must be known beforehand.

    The start is saved with the optimizer, in `.keras` files and in BackupAndRestore's: a run that is resumed during its
    cooldown goes on with it.

    Args:
        decay_steps: updates of the cooldown, at least 1; or "3ep".
        shape: `"1-sqrt"`, `"linear"`, `"cosine"` or `"1-square"`, see `schedules.WSD`.
        alpha: the last rate as a fraction of that at the start, from 0 to 1.
        file: a path; the cooldown begins after the first epoch at whose end there is something.
        stop: whether to end `fit` when the cooldown is over.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> callback = StartCooldown(decay_steps=1000, file="enough")
    >>> callback.started is None
    True
    """

    def __init__(
        self,
        decay_steps: int | str,
        shape: str = "1-sqrt",
        alpha: float = 0.0,
        file: str | Path | None = None,
        stop: bool = True,
    ) -> None:
        super().__init__()
        # The schedule checks the arguments, and says what a span is in updates.
        self._lengths = Cooldown(1.0, 0, decay_steps, alpha, shape)
        self.shape = checks.one_of("shape", shape, SHAPES)
        self.file = None if file is None else Path(file)
        self.stop = checks.boolean("stop", stop)
        self._rate: Any = None
        self._wanted = False

    def set_params(self, params: Any) -> None:
        # Before any callback's `on_train_begin`: what BackupAndRestore reads there finds its place.
        super().set_params(params)
        if params and params.get("epochs") is not None and self.model is not None:
            self._rate = steer(self.model, CooldownRate)
            self._rate.shape, self._rate.alpha = self._lengths.shape, self._lengths.alpha

    def begin(self) -> None:
        """Begins the cooldown with the next batch; does nothing if it has begun."""
        self._wanted = True

    @property
    def started(self) -> int | None:
        """The step at which the cooldown began, or None."""
        start = LARGEST_STEP if self._rate is None else self._rate.numbers()[0]
        return None if start == LARGEST_STEP else int(start)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._wanted:
            self._begin_now()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.file is not None and self.file.exists():
            self._begin_now()
        if self._wanted:
            self._begin_now()
        start, length = self._rate.numbers()
        if self.stop and start != LARGEST_STEP and self._updates() >= start + length:
            self.model.stop_training = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.stop and self.started is not None:
            start, length = self._rate.numbers()
            if self._updates() >= start + length:
                self.model.stop_training = True

    def get_state(self) -> dict[str, Any]:
        """Where the cooldown began, and whether it is about to, for `ResumableTraining`."""
        return {"numbers": self._rate.numbers(), "wanted": self._wanted}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._rate.change(state["numbers"])
        self._wanted = state["wanted"]
        if keras.backend.backend() != "tensorflow":
            train_functions.trace_anew(self.model)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        lengths, file = self._lengths, None if self.file is None else str(self.file)
        return {
            "decay_steps": lengths.decay_steps,
            "shape": lengths.shape,
            "alpha": lengths.alpha,
            "file": file,
            "stop": self.stop,
        }

    def _updates(self) -> int:
        return int(ops.convert_to_numpy(optimizers.innermost(self.model.optimizer).iterations))

    def _begin_now(self) -> None:
        self._wanted = False
        if self.started is None:
            # From now on, so by the batches that make an update now, whatever a plan said of the first epochs.
            optimizer = optimizers.innermost(self.model.optimizer)
            window = optimizer.gradient_accumulation_steps if isinstance(optimizer, TransformOptimizer) else None
            length = resolved_for(self, self._lengths, accumulation=window or 1).decay_steps
            self._rate.change([self._updates(), length])
            if keras.backend.backend() != "tensorflow":
                train_functions.trace_anew(self.model)  # the other backends compile the numbers in
