"""Signals that ask a run to end: they wait until everything is saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any


def checked(names: Any) -> tuple[str, ...]:
    """The names of signals.

    >>> checked(["SIGTERM"])
    ('SIGTERM',)
    """
    listed = [names] if isinstance(names, str) else list(names)
    for name in listed:
        if not isinstance(name, str) or not hasattr(signal.Signals, name) or name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(
                "`signals` must be names of signals that a process can handle, such as 'SIGTERM' and 'SIGUSR1'. "
                f"Received: signals={names!r}"
            )
    return tuple(listed)


class Signals:
    """While it listens, the first signal of each kind only sets `received`.

    A second one, and one that comes when training has ended without a word (by an exception), acts as it did before.
    Python handles signals in its main thread alone: elsewhere this does nothing.

    Args:
        names: of the signals.
        is_alive: whether training goes on.
    """

    def __init__(self, names: Sequence[str], is_alive: Callable[[], bool]) -> None:
        self._numbers = [signal.Signals[name] for name in names]
        self._is_alive = is_alive
        self._previous: dict[int, Any] = {}
        self.received: str | None = None

    def listen(self) -> None:
        """Takes over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._handle)

    def stop(self) -> None:
        """Gives them back."""
        while self._previous:
            number, handler = self._previous.popitem()
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None and self._is_alive():
            self.received = signal.Signals(number).name
            return
        self.stop()
        os.kill(os.getpid(), number)
