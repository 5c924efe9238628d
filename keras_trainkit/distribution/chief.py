"""One worker writes: on the others, callbacks that write are put aside, or write where nobody looks."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

import keras

from keras_trainkit.distribution.joining import cluster_of

_folders: list[str] = []


def is_chief(strategy: Any = None) -> bool:
    """Whether this process is the one that writes: worker 0, or the only one.

    Args:
        strategy: a `tf.distribute` strategy; the one of the scope at hand, or of `workers()`, when left out.

    >>> is_chief()
    True
    """
    from keras_trainkit.distribution.joining import _held

    cluster = cluster_of(strategy) if strategy is not None else _held.get("cluster")
    if cluster is None and strategy is None and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cluster = cluster_of(tf.distribute.get_strategy())
    return cluster is None or cluster.is_chief


def chief_path(path: str | os.PathLike[str]) -> str:
    """`path` on the chief; on another worker the same name in a temporary folder, removed when the process ends.

    For code that every worker must run, because it computes with all of them, but that should leave its file once.

    >>> chief_path("runs/best.keras")
    'runs/best.keras'
    """
    path = os.fspath(path)
    if is_chief():
        return path
    return os.path.join(aside(), os.path.basename(os.path.normpath(path)))


def chief_only(callback: Any) -> Any:
    """The callback itself on the chief, and one that does nothing on the other workers.

    For callbacks that write and compute with this worker alone. One that calls `fit`, `evaluate` or `predict`, or reads
    metrics, waits there for the other workers for ever: give it a `chief_path` instead.

    >>> callback = keras.callbacks.CSVLogger("log.csv")
    >>> chief_only(callback) is callback
    True
    """
    return callback if is_chief() else keras.callbacks.Callback()


def aside() -> str:
    """A new temporary folder, removed when the process ends."""
    if not _folders:
        atexit.register(_remove_folders)
    _folders.append(tempfile.mkdtemp(prefix="keras-trainkit-"))
    return _folders[-1]


class RestoreOnly(keras.callbacks.Callback):
    """Restores what a `BackupAndRestore` on the chief has saved, and saves nothing."""

    def __init__(self, backup: Any) -> None:
        super().__init__()
        self.backup = backup

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.backup.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self.backup.on_train_begin(logs)


def without_writing(callback: Any) -> Any:
    """What stands for a callback on a worker that is not the chief."""
    from keras_trainkit.callbacks import TrainingMonitor

    if isinstance(callback, keras.callbacks.BackupAndRestore):
        return RestoreOnly(callback)
    if isinstance(callback, WRITERS):
        return None
    if isinstance(callback, TrainingMonitor):
        # It reads the metrics, which are summed over all workers: it must run on all.
        callback.directory = aside()
    return callback


def _remove_folders() -> None:
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


WRITERS = (
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
)
"""Callbacks of Keras that write, and need no other worker for it: weights lie whole on each."""
