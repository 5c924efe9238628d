"""The range test itself: learning rates that rise from update to update inside `fit`, and the losses they give."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import TransformOptimizer, backend, checks
from keras_trainkit.finders.kept import Kept
from keras_trainkit.finders.learning_rate_rules import smoothed

_SKIPS = 4  # batches that loss scaling may skip, as a multiple of those that the sweep needs


@dataclasses.dataclass(frozen=True)
class Range:
    """Which rates a sweep tries, and when it ends.

    Attributes:
        minimum, maximum: the first and the last rate.
        steps: how many, at equal ratios.
        smoothing: share of the past in the moving average of the losses, below 1.
        divergence: the sweep ends where the smoothed loss exceeds its best by so many times the size of that.
    """

    minimum: float = 1e-7
    maximum: float = 10.0
    steps: int = 100
    smoothing: float = 0.9
    divergence: float = 4.0

    def checked(self) -> Range:
        """The same.

        Raises:
            ValueError, TypeError: for a value out of its range.
        """
        minimum = checks.number("minimum", self.minimum, above=0)
        return Range(
            minimum,
            checks.number("maximum", self.maximum, above=minimum),
            checks.integer("steps", self.steps, at_least=10),
            checks.number("smoothing", self.smoothing, at_least=0, below=1),
            checks.number("divergence", self.divergence, above=1),
        )

    def rates(self) -> np.ndarray:
        """All of them, the last one exactly the maximum."""
        return np.geomspace(self.minimum, self.maximum, self.steps)


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one sweep saw.

    Attributes:
        rates: the learning rate of each update.
        losses: the training loss of its batches, before it.
        smoothed: the moving average of the losses, without the bias of its beginning.
        ended: why the sweep ended: `"range"` (all rates were tried), `"diverged"`, `"not finite"`, `"skipped"` (loss
            scaling refused nearly every update) or `"data"` (there were no more).
        seed: of the order of the data; None where the sweep was a part of your own `fit`.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    ended: str
    seed: int | None = None


@keras.saving.register_keras_serializable("keras_trainkit")
class SweptRate(LearningRateSchedule):
    """The rates of a list, one for each update from a given one on; the last one for all that follow.

    Args:
        rates: a list of numbers.
        first: the count of updates at which the list begins.
        each: counts for which a rate stays: a Keras optimizer that accumulates counts batches.
    """

    def __init__(self, rates: list[float], first: int = 0, each: int = 1) -> None:
        self.rates, self.first, self.each = list(rates), first, each

    def __call__(self, step: Any) -> Any:
        """The rate at `step`."""
        count = ops.maximum(ops.cast(step, "int32") - self.first, 0) // self.each
        table = ops.convert_to_tensor(np.array(self.rates, "float32"))
        return ops.take(table, ops.minimum(count, len(self.rates) - 1))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"rates": self.rates, "first": self.first, "each": self.each}


class Sweep(keras.callbacks.Callback):
    """Makes of a `fit` a range test, ends it, and puts everything back that is in variables.

    One `fit` after the other may be swept; each begins with the state that the first one found. `restore` ends it.

    Args:
        swept: what to try.
    """

    def __init__(self, swept: Range) -> None:
        super().__init__()
        self._range = swept
        self._rates = swept.rates()
        self._kept: Kept | None = None
        self._replaced: list[tuple[Any, Any]] = []
        self._own: Any = None
        self.ended = ""

    def on_train_begin(self, logs: Any = None) -> None:
        if self._kept is None:
            self._build()
            self._kept = Kept(self.model)
            self._install()
        else:
            self._kept.put_back()
        self.model.train_function = self._own
        self._points: list[tuple[float, float]] = []
        self._pending: list[float] = []
        self._done = self._batches = self._before_epoch = 0
        self.ended = ""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._before_epoch = self._batches

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # What `fit` reports is the mean since the last reset; on JAX the metrics lie outside of the model.
        _synchronize(self.model)
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            raise ValueError(
                "A range test needs a `train_step` that returns the `loss` among its logs. "
                f"Received: {', '.join(logs or {}) or 'no logs'}"
            )
        _synchronize(self.model)
        self._batches += int(getattr(self.model, "steps_per_execution", None) or 1)
        self._pending.append(float(ops.convert_to_numpy(loss)))
        done = self._updates() - self._first
        if not all(map(math.isfinite, self._pending)):
            self.ended = "not finite"
        elif done > self._done:
            used = self._rates[np.minimum(np.arange(self._done, done), self._range.steps - 1)]
            self._points.append((float(np.exp(np.log(used).mean())), float(np.mean(self._pending))))
            self._pending, self._done = [], done
            if self._has_diverged():
                self.ended = "diverged"
            elif done >= self._range.steps:
                self.ended = "range"
        elif self._batches > _SKIPS * self._range.steps * self._accumulation + 100:
            self.ended = "skipped"
        if self.ended:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._batches == self._before_epoch and not self.ended:
            self.ended, self.model.stop_training = "data", True

    def on_train_end(self, logs: Any = None) -> None:
        self.ended = self.ended or "data"

    def curve(self, seed: int | None = None) -> Curve:
        """What the last `fit` saw."""
        rates, losses = np.array(self._points, "float64").reshape(-1, 2).T
        return Curve(rates, losses, smoothed(losses, self._range.smoothing), self.ended, seed)

    def restore(self) -> None:
        """Puts variables, schedules and the train function back; nothing happens where nothing was changed."""
        if self._kept is None:
            return
        for optimizer, rate in self._replaced:
            backend.replace_schedule(optimizer, rate)
        self._kept.put_back()
        self._kept, self._replaced, self._own = None, [], None
        self.model.train_function = self._train_function

    def _build(self) -> None:
        """Makes the variables that the first step would make, so that they can be kept."""
        backend.build_metrics(self.model, backend.epoch_iterator_of_fit())
        optimizer = self.model.optimizer
        if not optimizer.built:
            with _scope(self.model):
                optimizer.build(self.model.trainable_variables)

    def _install(self) -> None:
        optimizers = _leaves(self.model.optimizer)
        self._counter = optimizers[0]
        accumulation = getattr(optimizers[0], "gradient_accumulation_steps", None) or 1
        each = 1 if isinstance(optimizers[0], TransformOptimizer) else int(accumulation)
        self._accumulation = int(accumulation)
        self._first = self._updates()
        self._train_function = self.model.train_function
        now = [float(ops.convert_to_numpy(optimizer.learning_rate)) for optimizer in optimizers]
        for optimizer, rate in zip(optimizers, now, strict=True):
            ratio = rate / max(now) if max(now) > 0 else 1.0
            count = int(ops.convert_to_numpy(backend.iterations_variable(optimizer)))
            swept = SweptRate((self._rates * ratio).tolist(), count, each)
            self._replaced.append((optimizer, backend.rate_object(optimizer)))
            backend.replace_schedule(optimizer, swept)
        self.model.make_train_function(force=True)
        self._own = self.model.train_function

    def _updates(self) -> int:
        # Keras's own optimizers, too, count windows here, though their schedules are asked by batches.
        return int(ops.convert_to_numpy(self._counter.iterations))

    def _has_diverged(self) -> bool:
        losses = smoothed(np.array([loss for _, loss in self._points]), self._range.smoothing)
        best = losses.min()
        # A loss near zero has large ratios and has not diverged for that.
        return bool(losses[-1] > losses[0] and losses[-1] - best > (self._range.divergence - 1) * abs(best))


def _leaves(optimizer: Any) -> list[Any]:
    """The built optimizers that move weights: inside of loss scaling, and of Keras's `MultiOptimizer`."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    # Those that no variable went to are not built, and count nothing.
    return [inner for inner in getattr(optimizer, "optimizers", []) if inner.built] or [optimizer]


def _synchronize(model: Any) -> None:
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def _scope(model: Any) -> contextlib.AbstractContextManager:
    return model.distribute_strategy.scope() if backend.ON_TENSORFLOW else contextlib.nullcontext()
