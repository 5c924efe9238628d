"""Ends a training at a chosen moment: between two calls of callbacks, or in the middle of a write.

Moments are counted: every call of a callback is one, and so are some of the pieces that the writer writes, and what
comes before and after it gives a file its name.
"""

import os
import random

import keras
import numpy as np

from keras_trainkit.resuming import bundle


class Cut(BaseException):
    """What a simulated kill raises."""


class Moments:
    """Counts moments, and calls `end` at the chosen one."""

    def __init__(self, end):
        self.end, self.left = end, None

    def start(self, left):
        self.left = left

    def pass_one(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                self.end()


class Witness(keras.callbacks.Callback):
    """A callback to whom every call is a moment, that draws random numbers, and that keeps what it has seen."""

    def __init__(self, moments):
        super().__init__()
        self.moments, self.calls = moments, []

    def _seen(self, *call):
        self.moments.pass_one()
        self.calls.append(list(call))

    def on_epoch_begin(self, epoch, logs=None):
        self._seen("epoch begins", epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self._seen("batch begins", batch)

    def on_train_batch_end(self, batch, logs=None):
        drawn = [random.random(), float(np.random.random()), float(keras.random.uniform(()))]
        self._seen("batch ends", batch, float(logs["loss"]), *drawn)

    def on_test_end(self, logs=None):
        self._seen("validated", float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self._seen("epoch ends", epoch)

    def get_state(self):
        return {"calls": self.calls}

    def set_state(self, state):
        self.calls = state["calls"]


class CutFile:
    """A file of which each fiftieth write is a moment; at the last one half of the bytes arrive."""

    def __init__(self, file, moments):
        self._file, self._moments, self._writes = file, moments, 0

    def write(self, content):
        self._writes += 1
        if self._writes % 50 != 1:
            return self._file.write(content)
        half = len(content) // 2
        self._file.write(content[:half])
        if self._moments.left == 0:
            self._file.flush()
        self._moments.pass_one()
        self._file.write(content[half:])
        return len(content)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._file.close()


def watch_writing(moments, replace=setattr):
    """Makes moments of what the writer does."""
    opened, renamed = bundle.open_to_write, os.replace

    def rename(old, new):
        moments.pass_one()
        renamed(old, new)
        moments.pass_one()

    replace(bundle, "open_to_write", lambda path: CutFile(opened(path), moments))
    replace(bundle.os, "replace", rename)
