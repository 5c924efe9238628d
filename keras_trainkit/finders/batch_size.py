"""The largest batch that fits into memory, found by training on larger and larger ones; the one that noise asks for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_trainkit.core import backend, checks
from keras_trainkit.finders import child, in_process
from keras_trainkit.finders.batch_size_report import BatchSize, Trial, byte_count, divided, near
from keras_trainkit.finders.noise_scale import NoiseScale, noise_scale
from keras_trainkit.finders.rehearsal import Rehearsal, few


def batch_size(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    memory: int | str,
    by: str | NoiseScale = "memory",
    effective: int | None = None,
    replicas: int = 1,
    largest: int = 65536,
    precision: float = 1 / 16,
    steps: int = 2,
    timeout: float = 300.0,
) -> BatchSize:
    """Finds the largest batch that a model can be trained on in so much memory.

    Real training steps are tried: sizes are doubled until one does not fit, then halved in between until the answer is
    known to `precision`. With `effective`, the batch of an update stays what you ask for: if it does not fit at once,
    the search is for the part of it that does, with the memory for accumulation counted in, and the answer says into
    how many steps to divide it. `training.micro_batches(model, result.largest)` does the same without dividing evenly.

    By the noise scale, the batch of an update is the one beyond which more samples save hardly any updates: the
    gradient noise scale of McCandlish et al., 2018, arXiv:1812.06162, at the model's present weights, as the nearest
    power of two on each replica, and no more than there are samples. Memory only says into how many steps to divide it.

    With a limit, which on CPU is the only way, the trials run in a process of their own, whose memory (resident set
    size, TensorFlow's own share included) psutil watches, and which ends when it exceeds the limit; your process and
    your model are not touched. The process is started as `multiprocessing` does: a script must have its main part
    under `if __name__ == "__main__":`. Leave some room: the limit is for training steps, without a data pipeline and
    without validation.

    Args:
        model: a compiled model, or a function without arguments that returns one, which must be importable. A model
            goes to the process through a file, so that its own classes and losses must be registered with Keras.
        x: some samples, at least one; an array or a structure of arrays whose first axis counts them. The first 64 are
            repeated to make batches, so take the largest there are, such as the longest texts. By the noise scale: all.
        y: their targets, alike; None for a model that needs none.
        sample_weight: their weights, alike, or None.
        memory: the limit, in bytes or as a text such as `"4GiB"`; or `"device"` to try in this process until the
            device has no room, which is for GPUs and the like. The model is afterwards what it was.
        by: what sets the batch of an update: `"memory"` (`effective`, or as many as fit at once); `"noise_scale"`,
            which `finders.noise_scale` measures with its defaults, on TensorFlow; or a `NoiseScale` of your own.
        effective: samples of an update, on all replicas together; None for as many as fit at once, or by the noise.
        replicas: how many devices share a batch, each with `memory` of its own.
        largest: no more samples on a device are tried.
        precision: how far below the first size that does not fit the answer may lie, as a share of it, above 0.
        steps: training steps of a trial, at least 1.
        timeout: seconds after which a trial is given up.

    Returns:
        A `BatchSize`.

    Raises:
        ValueError: for a value out of its range; if not even one sample fits; if `effective` cannot be shared evenly
            by the replicas; with `memory="device"` for a model that was made under a strategy of several; if the noise
            scale cannot be told from what was measured.
        TypeError: for a value of the wrong kind.
        RuntimeError: when a trial fails for another reason than memory; it shows the error of the process.
        TimeoutError: when a trial takes longer than `timeout`.

    Example:

    >>> import keras
    >>> from keras_trainkit import finders, optimizers
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizers.Adam(1e-3), "mse")
    >>> found = finders.batch_size(model, keras.ops.ones((4, 3)), keras.ops.ones((4, 1)), memory="device", largest=16)
    >>> found.largest, found.gradient_accumulation_steps
    (16, 1)
    """
    limit = None if memory == "device" else byte_count("memory", memory)
    replicas = checks.integer("replicas", replicas, at_least=1)
    largest = checks.integer("largest", largest, at_least=1)
    precision = checks.number("precision", precision, above=0, below=1)
    steps = checks.integer("steps", steps, at_least=1)
    timeout = checks.number("timeout", timeout, above=0)
    if effective is not None:
        effective = checks.integer("effective", effective, at_least=1)
        if effective % replicas:
            raise ValueError(
                f"`effective` must be a multiple of the {replicas} replicas. Received: effective={effective}"
            )
    _check_by(by, effective)
    _check_model(model, limit)
    samples = (few(x), few(y), few(sample_weight))
    noise = by if isinstance(by, NoiseScale) else noise_scale(model, x, y, sample_weight) if by != "memory" else None
    if noise is not None:
        effective = near(_critical(noise), replicas, len(keras.tree.flatten(x)[0]))

    def trials(accumulates: bool) -> AbstractContextManager[Callable[[int], Trial]]:
        if limit is None:
            return in_process.trials(Rehearsal(model, samples, steps * (1 + accumulates)), accumulates)
        return child.trials(child.Task(model, samples, steps * (1 + accumulates), limit, timeout), accumulates)

    tried: list[Trial] = []
    fits, idle = 0, None
    if effective is not None and effective // replicas <= largest:
        whole = effective // replicas
        with trials(accumulates=False) as attempt:
            tried.append(attempt(whole))
        idle = getattr(attempt, "idle", None)
        fits, largest = whole if tried[0].fits else 0, whole - 1
    if not fits:
        with trials(accumulates=effective is not None) as attempt:
            fits = _search(attempt, largest, precision, tried)
        idle = getattr(attempt, "idle", None)
    size, accumulated = divided(effective, replicas, fits) if effective else (fits * replicas, 1)
    return BatchSize(fits, size, accumulated, replicas, limit, idle, tried, noise)


def _search(attempt: Callable[[int], Trial], largest: int, precision: float, tried: list[Trial]) -> int:
    """The largest size that fits, to `precision`; what is tried comes to `tried`."""
    low, high, size = 0, largest + 1, min(8, largest)
    while low < largest and (high > largest or high - low > max(1, int(precision * high))):
        tried.append(attempt(size))
        if tried[-1].fits:
            low = size
        else:
            high = size
        size = (low + high) // 2 if high <= largest else min(2 * low, largest)
        if not size:
            break
    if not low:
        raise ValueError(f"Not even one sample fits. The last trial: {tried[-1] if tried else 'none'}")
    return low


def _critical(noise: NoiseScale) -> int:
    if noise.critical_batch_size is None:
        raise ValueError(
            "The noise scale is too large to tell: give `by` a `finders.noise_scale(...)` of more measurements, or of "
            f"larger batches. Received: {noise}"
        )
    return noise.critical_batch_size


def _check_by(by: Any, effective: int | None) -> None:
    if not isinstance(by, NoiseScale):
        checks.one_of("by", by, ["memory", "noise_scale"])
    if by != "memory" and effective is not None:
        raise ValueError(
            f"`effective` must be None where the noise scale sets the batch. Received: effective={effective}"
        )


def _check_model(model: Any, limit: int | None) -> None:
    if isinstance(model, keras.Model):
        if not model.compiled:
            raise ValueError(f"`model` must be compiled. Received: model={model.name!r}, which is not")
        if limit is None and backend.replicas_of(model) > 1:
            raise ValueError(
                '`model` must be made outside of a strategy for memory="device": one device is tried, and `replicas` '
                f"says how many there will be. Received: a model of {backend.replicas_of(model)} replicas"
            )
    elif limit is None or not callable(model):
        function = "" if limit is None else ", or a function that returns one"
        raise TypeError(f"`model` must be a compiled Keras model{function}. Received: model={model!r}")
