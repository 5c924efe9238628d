"""Who works on a search: each process leaves signs of life in the database, and the others judge by them."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

# Beats in a grace period: some may be lost, or late because a process compiles.
_BEATS = 6
_working: set[str] = set()


class Worker:
    """This process as one of those that work on a search.

    Args:
        write: takes the key and the signs of life, as a mapping that goes into JSON.
        seconds: how long the search has taken.
        grace_period: seconds without a sign of life after which the others give this process up.
    """

    def __init__(
        self, write: Callable[[str, dict[str, Any]], None], seconds: Callable[[], float], grace_period: float
    ) -> None:
        self.token = secrets.token_hex(8)
        self._write, self._seconds = write, seconds
        self._interval = grace_period / _BEATS
        self._stop = threading.Event()

    def begin(self) -> None:
        """The first sign of life, and from now on one every now and then."""
        _working.add(self.token)
        self._write(key(self.token), self._signs())
        this = weakref.ref(self)
        threading.Thread(target=_beat, args=(this, self._stop, self._interval), daemon=True).start()
        weakref.finalize(self, _forget, self.token, self._stop)

    def end(self) -> None:
        """No more signs; the others may take what this one left."""
        _forget(self.token, self._stop)
        self._write(key(self.token), self._signs() | {"left": True})

    def beat(self) -> None:
        """One sign of life."""
        self._write(key(self.token), self._signs())

    def _signs(self) -> dict[str, Any]:
        process = psutil.Process()
        return {"place": place(), "pid": process.pid, "started": process.create_time(), "seconds": self._seconds()}


def key(token: str) -> str:
    """Under which name the signs of life of a worker are kept."""
    return f"worker {token}"


def is_alive(token: str, signs: dict[str, Any] | None, silent_since: float, grace_period: float) -> bool:
    """Whether a worker still works, as far as can be known.

    In this place the system knows its processes. Of another place only the last sign counts.

    Args:
        token: of the worker.
        signs: what it left; None is nothing.
        silent_since: seconds without a sign, as far as they could be seen.
        grace_period: seconds.
    """
    if signs is None or signs.get("left"):
        return False
    if signs["place"] == place():
        if signs["pid"] == os.getpid():
            return token in _working
        try:
            process = psutil.Process(signs["pid"])
            # The time of start tells a process from a later one with its number; clocks are set, so not to the second.
            if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - signs["started"]) > 60:
                return False
        except psutil.NoSuchProcess:
            return False
    return silent_since <= grace_period


def place() -> str:
    """Where process numbers mean the same: a machine since it was started, and in it a container."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text("ascii").strip())
        except OSError:  # not Linux
            continue
    return " ".join(parts)


def _forget(token: str, stop: threading.Event) -> None:
    _working.discard(token)
    stop.set()


def _beat(this: weakref.ref[Worker], stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        worker = this()
        if worker is None:
            return
        with contextlib.suppress(Exception):  # an outage: the search itself meets it, waits, and says so
            worker.beat()
        del worker
