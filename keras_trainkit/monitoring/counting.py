"""Counting what a `fit` does, from outside: batches without a read, samples and loss with one, and the speed."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras

from keras_trainkit.core import backend


def accumulation_steps(optimizer: Any) -> int:
    """Batches per update."""
    inner = inner_optimizer(optimizer)
    return int(getattr(inner, "gradient_accumulation_steps", None) or 1)


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside any loss scaling."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def synchronize(model: Any) -> None:
    """Brings the variables up to date where `fit` keeps the state elsewhere (JAX)."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def to_float(value: Any) -> float | None:
    """A number, a scalar array or a scalar variable as a float; None for anything else."""
    if value is None or isinstance(value, str):
        return None
    try:
        return backend.number(value) if isinstance(value, keras.Variable) else float(value)
    except (TypeError, ValueError):
        return None


@dataclasses.dataclass(frozen=True)
class Total:
    """Samples, and the sum of their losses, since counting began."""

    samples: float
    loss: float


class SampleCounter:
    """Samples and losses that the model's own loss metric has added up, over the epochs.

    The metric counts what arrives, whatever the batch size, the accumulation and the number of replicas. Reading it
    waits for the device. `fit` resets it as an epoch begins, `evaluate` too; `begin_epoch` and `end_epoch` tell.

    Attributes:
        last: the total when it was last read.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        means = [m for m in model.metrics if isinstance(m, keras.metrics.Mean) and m.name == "loss"]
        self._metric = means[0] if means else None
        # A train step of the user's own may count batches instead of samples.
        self._trusted = type(model).train_step is keras.Model.train_step
        self.last = self._before = Total(0.0, 0.0)
        self._counting = False

    @property
    def able(self) -> bool:
        """Whether the model has a loss metric that counts samples."""
        return self._metric is not None and self._trusted

    def begin_epoch(self) -> None:
        """`fit` has set the metric to 0."""
        self._before, self._counting = self.last, True

    def end_epoch(self) -> None:
        """Reads the epoch's last batches; until the next epoch begins the total stays."""
        self.read()
        self._counting = False

    def read(self) -> Total:
        """The total now; nothing if the model is not `able`."""
        if self._counting and self._metric is not None and self._trusted:
            synchronize(self.model)
            count, loss = to_float(self._metric.count), to_float(self._metric.total)
            total = Total(self._before.samples + (count or 0.0), self._before.loss + (loss or 0.0))
            # Somebody reset the metric within the epoch if it counts less than before: keep what we have.
            if total.samples >= self.last.samples:
                self.last = total
        return self.last

    def get_state(self) -> dict[str, Any]:
        """The totals as plain values."""
        last, before = dataclasses.astuple(self.last), dataclasses.astuple(self._before)
        return {"last": list(last), "before": list(before), "counting": self._counting}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.last, self._before = Total(*state["last"]), Total(*state["before"])
        self._counting = state["counting"]


class Speed:
    """Samples per second over stretches of training; time between stretches does not count."""

    def __init__(self) -> None:
        self.samples = 0.0
        self.seconds = 0.0
        self._start: tuple[float, float] | None = None

    def start(self, samples: float) -> None:
        """A stretch begins; `samples` were counted so far."""
        self._start = (samples, time.perf_counter())

    @property
    def running(self) -> bool:
        """Whether a stretch has begun."""
        return self._start is not None

    def stop(self, samples: float) -> None:
        """The stretch ends and is added, if it trained on anything."""
        if self._start is not None and samples > self._start[0]:
            self.samples += samples - self._start[0]
            self.seconds += time.perf_counter() - self._start[1]
        self._start = None

    def so_far(self, samples: float) -> float | None:
        """Samples per second with the stretch that is running."""
        if self._start is None:
            return self.samples_per_second
        seconds = self.seconds + time.perf_counter() - self._start[1]
        done = self.samples + samples - self._start[0]
        return done / seconds if done > 0 and seconds > 0 else None

    @property
    def samples_per_second(self) -> float | None:
        """None as long as nothing was timed."""
        return self.samples / self.seconds if self.samples > 0 and self.seconds > 0 else None


class Meter:
    """Follows one `fit` from the calls that a callback gets: batches, samples, and the speed of training alone.

    It works from `on_train_batch_begin`: with a callback that has `on_train_batch_end` Keras reads all metrics from the
    device at each step. What other callbacks do at an epoch's end, validation, and the first step, which is mostly
    tracing, do not count as training time.

    Attributes:
        batches: begun and finished in this `fit`, an upper bound at the end of an epoch that was cut short.
        batch: the same, in this epoch.
        counter: the samples.
        window, epoch: speed since `take_window`, and in this epoch.
    """

    def __init__(self, model: Any, steps: int | None, traced: bool) -> None:
        self.counter = SampleCounter(model)
        self.batches = self.batch = 0
        self.window, self.epoch = Speed(), Speed()
        self._steps, self._traced = steps, traced
        self._resumed_at: int | None = None
        self._batches_before = 0
        self._in_epoch = False
        self._at_once = int(getattr(model, "steps_per_execution", None) or 1)

    @property
    def timed(self) -> bool:
        """Whether what comes next is a step that is traced already."""
        return self._traced

    def begin_epoch(self) -> None:
        """`on_epoch_begin`."""
        self._batches_before, self.batch = self.batches, 0
        self.counter.begin_epoch()
        self.epoch = Speed()
        self._in_epoch = True
        if self._traced:
            self._start()

    def begin_batch(self, batch: int) -> None:
        """`on_train_batch_begin`."""
        self.batch, self.batches = batch, self._batches_before + batch
        if batch == 0 or batch == self._resumed_at:
            return
        self._resumed_at = None
        if not self._traced:
            self._traced = True
            self.counter.read()
            self._start()
        if self._steps and batch + self._at_once >= self._steps:
            self.counter.read()
            self._stop()

    def end_epoch(self) -> bool:
        """`on_test_begin` and `on_epoch_end`, whichever comes first; says whether there was an epoch to end."""
        if not self._in_epoch:
            return False
        self.counter.end_epoch()
        self._stop()
        self._in_epoch, self._traced = False, True
        self.batch = self._steps or self.batch + self._at_once
        self.batches = self._batches_before + self.batch
        return True

    def get_state(self) -> dict[str, Any]:
        """The counts as plain values; no times."""
        counts = {"batches": self.batches, "batch": self.batch, "before": self._batches_before}
        return {**counts, "in_epoch": self._in_epoch, "counter": self.counter.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`; the clocks begin with the next batch but one, which traces no more."""
        self.batches, self.batch, self._batches_before = state["batches"], state["batch"], state["before"]
        self._in_epoch = state["in_epoch"]
        self.counter.set_state(state["counter"])
        self._traced, self.window, self.epoch = False, Speed(), Speed()
        self._resumed_at = self.batch

    def take_window(self) -> float | None:
        """Samples per second since the last call, as of the counter's last reading."""
        running, window = self.window.running, self.window
        window.stop(self.counter.last.samples)
        self.window = Speed()
        if running:
            self.window.start(self.counter.last.samples)
        return window.samples_per_second

    def _start(self) -> None:
        for speed in (self.window, self.epoch):
            speed.start(self.counter.last.samples)

    def _stop(self) -> None:
        for speed in (self.window, self.epoch):
            speed.stop(self.counter.last.samples)
