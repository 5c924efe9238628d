"""Data parallelism on one machine, chosen by a number."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_trainkit.core import checks

_mirrored: dict[int, Any] = {}
"""The MirroredStrategy that this process holds, by its number of replicas; never more than one."""


class SingleDevice:
    """What `strategy` gives for one replica where there is no tf.distribute: a scope that does nothing.

    >>> with SingleDevice().scope():
    ...     SingleDevice().num_replicas_in_sync
    1
    """

    num_replicas_in_sync = 1

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """A context manager that changes nothing."""
        return contextlib.nullcontext()


def strategy(replicas: int | None = None) -> Any:
    """A `tf.distribute.Strategy` for `replicas` copies of the model on this machine.

    Make and compile the model inside `strategy(...).scope()`; `fit` needs nothing else. With one replica it is
    TensorFlow's default strategy, whose scope changes nothing. With several it is a MirroredStrategy over the first
    GPUs or, where no GPU is visible, over as many logical CPUs: the same computation, for tests and for finding out
    what replicas change, but no faster than one, because the cores are the same.

    TensorFlow fixes its devices when it makes the first tensor, which a Dropout layer, an optimizer or a dataset does.
    Ask for several CPU replicas before that, best at the start of the program. And make no second MirroredStrategy in a
    process: the collectives of two mix their keys up and fail for good when they meet, with two sizes always and with
    one size as soon as the models differ (TensorFlow 2.18 to 2.21). Asking here for the same number again gives the
    same strategy, and another number is an error.

    Args:
        replicas: how many, at least 1; None means as many as there are visible GPUs, and 1 without one.

    Returns:
        An object with `scope()` and `num_replicas_in_sync`. On another backend than TensorFlow it is a `SingleDevice`
        for one replica.

    Raises:
        TypeError, ValueError: for a number out of its range, more replicas than GPUs (where there is one), or several
            replicas on another backend (there, use `keras.distribution`).
        RuntimeError: where TensorFlow has already started with fewer devices, where this process holds a strategy of
            another size, or inside the scope of a strategy.

    >>> strategy(1).num_replicas_in_sync
    1
    """
    if replicas is not None:
        replicas = checks.integer("replicas", replicas, at_least=1)
    if keras.backend.backend() != "tensorflow":
        if replicas is None or replicas == 1:
            return SingleDevice()
        raise ValueError(
            "`replicas` above 1 needs Keras on TensorFlow; use keras.distribution.DataParallel on JAX. "
            f"Received: replicas={replicas}, backend={keras.backend.backend()}"
        )
    import tensorflow as tf

    if tf.distribute.has_strategy():
        raise RuntimeError("`strategy` cannot be called inside the scope of another strategy: leave that scope first.")
    gpus = tf.config.list_logical_devices("GPU") if tf.config.get_visible_devices("GPU") else []
    count = replicas or max(len(gpus), 1)
    if count == 1:
        return tf.distribute.get_strategy()
    if gpus and count > len(gpus):
        raise ValueError(f"`replicas` must be at most {len(gpus)}, the visible GPUs. Received: replicas={count}")
    if any(size != count for size in _mirrored):
        raise RuntimeError(
            f"This process already holds a strategy of {next(iter(_mirrored))} replicas, and TensorFlow's collectives "
            f"allow one size in a process. Start a new process for another. Received: replicas={count}"
        )
    if count not in _mirrored:
        names = [device.name for device in gpus[:count]] if gpus else _logical_cpus(tf, count)
        _mirrored[count] = tf.distribute.MirroredStrategy(names)
    return _mirrored[count]


def _logical_cpus(tf: Any, count: int) -> list[str]:
    """Names of `count` logical CPUs, made if TensorFlow has not started yet."""
    cpu = tf.config.get_visible_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or [None]) < count:
        with contextlib.suppress(RuntimeError):  # raised when TensorFlow has started; then what there is must do
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    there = tf.config.list_logical_devices("CPU")
    if len(there) < count:
        raise RuntimeError(
            f"TensorFlow has already started with {len(there)} CPU device(s), and {count} replicas need {count}. It "
            "fixes its devices at the first tensor, layer or dataset: call "
            f"`keras_trainkit.distribution.strategy({count})` at the start of the program. Received: replicas={count}"
        )
    return [device.name for device in there[:count]]
