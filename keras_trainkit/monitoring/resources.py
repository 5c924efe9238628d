"""What training costs: the times of its steps, memory and tokens."""

from __future__ import annotations

import array
import math
import os
import time
from collections import deque
from typing import Any

import keras
import psutil

from keras_trainkit.core import backend

PERCENTILES = (50, 90, 99)
_RECENT = 200
_LONGEST = 1_000_000


class StepTimes:
    """The times of steps, from the end of one call of `on_train_batch_begin` to the next.

    They hold the step, the waiting for its data, and the callbacks before this one, but neither this one's work nor
    validation. Where a device computes beside the program a step may seem short, and a later one long: their sum is
    right.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._epoch = array.array("d")
        self._began: float | None = None
        self._seconds, self._steps = 0.0, 0

    @property
    def running(self) -> bool:
        """Whether a step has begun."""
        return self._began is not None

    def begin_epoch(self) -> None:
        """Forgets the steps of the epoch before; what came since the last of them was no step."""
        self._epoch, self._began = array.array("d"), None

    def stop(self, steps: int) -> None:
        """A call has come: `steps` have been done since the last, at equal times."""
        if self._began is None or steps < 1:
            return
        seconds = (time.perf_counter() - self._began) / steps
        self._seconds, self._steps = self._seconds + seconds * steps, self._steps + steps
        for _ in range(steps):
            self._recent.append(seconds)
            if len(self._epoch) < _LONGEST:
                self._epoch.append(seconds)

    def start(self) -> None:
        """The call ends; a step begins."""
        self._began = time.perf_counter()

    def take_mean(self) -> float | None:
        """The mean since the last call; None if there was no step."""
        mean = self._seconds / self._steps if self._steps else None
        self._seconds, self._steps = 0.0, 0
        return mean

    def recent(self) -> dict[str, float]:
        """Percentiles of the last 200 steps."""
        return percentiles(self._recent)

    def epoch(self) -> dict[str, float]:
        """Percentiles of the epoch's steps."""
        return percentiles(self._epoch)


def percentiles(seconds: Any) -> dict[str, float]:
    """Step times by name: the smallest that so many percent of the steps did not exceed.

    >>> percentiles([0.1, 0.2, 0.3, 0.4])
    {'step_seconds_p50': 0.2, 'step_seconds_p90': 0.4, 'step_seconds_p99': 0.4}
    >>> percentiles([])
    {}
    """
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {f"step_seconds_p{p}": ordered[max(-(-len(ordered) * p // 100) - 1, 0)] for p in PERCENTILES}


class Memory:
    """`memory()`, asked for at most once a second."""

    def __init__(self) -> None:
        self._read = -math.inf
        self._found: dict[str, float] = {}

    def __call__(self) -> dict[str, float]:
        now = time.monotonic()
        if now - self._read >= 1:
            self._read, self._found = now, memory()
        return self._found


def memory() -> dict[str, float]:
    """MiB in use: by this process in `host_memory`, on the first GPU now in `device_memory`, at most in its `_peak`."""
    found = {"host_memory": _process().memory_info().rss / 2**20}
    device = backend.device_memory()
    if device is not None:
        found |= {"device_memory": device["current"] / 2**20, "device_memory_peak": device["peak"] / 2**20}
    return found


_processes: dict[int, psutil.Process] = {}


def _process() -> psutil.Process:
    # Made once: that takes as long as ten readings. A forked process is another one.
    number = os.getpid()
    if number not in _processes:
        _processes[number] = psutil.Process(number)
    return _processes[number]


def tokens_per_sample(model: Any) -> int | None:
    """The length of the sequences, if the model has one input of token ids, of shape (batch, length); else None."""
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 2:
        return None
    embeds = any(isinstance(layer, keras.layers.Embedding) for layer in backend.flat_layers(model))
    return inputs[0].shape[1] if embeds else None
