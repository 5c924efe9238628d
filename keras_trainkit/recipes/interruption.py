"""Ctrl-C that ends a run between two steps, when every file and weight is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import keras


class Interruption:
    """While it is entered, the first Ctrl-C only sets `requested`; a second one acts at once, as always.

    Python delivers signals to the main thread alone; in any other thread this changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        in_main_thread = threading.current_thread() is threading.main_thread()
        # A process that was started with SIGINT ignored (nohup, a shell's background job) goes on ignoring it.
        if in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *details: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class StopWhenRequested(keras.callbacks.Callback):
    """Raises KeyboardInterrupt between two steps after Ctrl-C came, so that the epoch cut short does not count as one.

    Put it before those to whom the beginning of a step means that there will be one.
    """

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self.interruption = interruption

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Ends `fit` instead of beginning a step."""
        if self.interruption.requested:
            raise KeyboardInterrupt
