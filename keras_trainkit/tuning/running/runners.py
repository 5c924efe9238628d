"""Where isolated trials run: processes of this machine; what any other place must offer."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any, Protocol

from keras_trainkit.tuning.running import trial_process

# Importing TensorFlow and reading the data may take long; but not for ever.
_LONGEST_START = 600.0


class Line(Protocol):
    """The way to one process that trains; what goes over it is said in `trial_process`."""

    def send(self, message: Any) -> None:
        """Sends a message. That the process has ended is found out by `receive`."""

    def receive(self) -> tuple[Any, ...] | None:
        """The next message, or None when the process has ended."""

    def stop(self, *, gently: bool) -> str:
        """Ends the process, gently after its work, and says how it ended."""
        ...


class Runner(Protocol):
    """Starts processes for trials.

    Attributes:
        longest_start: seconds that the start of a process may take; None is for ever.
    """

    longest_start: float | None

    def open(self, blob: bytes) -> None:
        """Gets ready; `blob` is for each process."""

    def start(self, number: int) -> Line:
        """The way to a new process.

        Args:
            number: of the worker, from 0 on.
        """
        ...

    def wait(self, lines: Sequence[Any], seconds: float | None) -> Sequence[Any]:
        """The lines on which something has come or that have ended; none of them after so many seconds."""
        ...

    def close(self) -> None:
        """All processes have been stopped."""


class ProcessRunner:
    """Runs trials in processes of this machine.

    Args:
        devices: for each worker in turn its `CUDA_VISIBLE_DEVICES`; None deals out those of this process, if set.
    """

    longest_start: float | None = _LONGEST_START

    def __init__(self, devices: Sequence[str] | None = None) -> None:
        own = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self._devices = list(devices or [device for device in own if device not in ("", "-1")])
        self._blob = b""

    def open(self, blob: bytes) -> None:
        self._blob = blob

    def start(self, number: int) -> _Pipe:
        return _Pipe(self._blob, self._devices[number % len(self._devices)] if self._devices else None)

    def wait(self, lines: Sequence[_Pipe], seconds: float | None) -> list[_Pipe]:
        ready = connection.wait([line.end for line in lines], seconds)
        return [line for line in lines if line.end in ready]

    def close(self) -> None:
        self._blob = b""


class _Pipe:
    def __init__(self, blob: bytes, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.end, its_end = context.Pipe()
        self._process = context.Process(target=trial_process.main, args=(its_end, blob), daemon=True)
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            if device is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = device
            self._process.start()
        finally:
            if device is not None:
                if before is None:
                    del os.environ["CUDA_VISIBLE_DEVICES"]
                else:
                    os.environ["CUDA_VISIBLE_DEVICES"] = before
        its_end.close()

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it has just ended: the next `receive` says so
            self.end.send(message)

    def receive(self) -> tuple[Any, ...] | None:
        try:
            return self.end.recv()
        except (EOFError, OSError):
            return None

    def stop(self, *, gently: bool) -> str:
        if gently:
            self.send(None)
            self._process.join(10)
        self._process.kill()
        self._process.join()
        self.end.close()
        return _cause_of_death(self._process.exitcode)


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"
