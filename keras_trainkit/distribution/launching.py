"""Starts the processes of a job on this machine, and ends them together. Needs no TensorFlow."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from keras_trainkit.distribution.cluster import Cluster

_PAUSE = 0.05
_LAST_LINES = 20
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody uses at this moment, all different.

    >>> len(set(free_ports(3)))
    3
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def local_clusters(count: int) -> list[Cluster]:
    """The clusters of `count` workers on free ports of the loopback address, one for each worker."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [Cluster(addresses, index) for index in range(count)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        code: the exit code for the launcher: 0, that of the first worker that failed, or 128 and the signal.
        message: what went wrong, for people; empty if nothing did.
        interrupted: whether a signal to the launcher ended it.
    """

    code: int
    message: str = ""
    interrupted: bool = False


def run(command: list[str], clusters: list[Cluster], environments: list[dict[str, str]], grace: float) -> Outcome:
    """Runs `command` once for each cluster, which says which worker it is, and waits until all have ended.

    Their output comes line by line, with the worker's number before it. SIGINT, SIGTERM and SIGHUP are passed on; a
    second one, or `grace` seconds, kills. When one worker fails, the others get SIGTERM, and are killed after `grace`.

    Args:
        command: program and arguments.
        clusters: one for each process to start here.
        environments: variables for each of them, over those of this process.
        grace: seconds between a request to end and the end by force.
    """
    signals: list[int] = []
    children: list[_Child] = []
    with _forwarding(signals):
        try:
            for cluster, environment in zip(clusters, environments, strict=True):
                children.append(_Child(command, cluster, environment))
            for child in children:
                child.start_reading()  # threads only when no more processes are forked
            return _watch(children, signals, grace)
        finally:
            for child in children:
                child.send(signal.SIGKILL)
                child.wait()


def _watch(children: list[_Child], signals: list[int], grace: float) -> Outcome:
    first: _Child | None = None
    passed_on, deadline = 0, float("inf")
    while any(child.code() is None for child in children):
        if len(signals) > passed_on:
            for child in children:
                child.send(signals[-1] if passed_on == 0 else signal.SIGKILL)
            passed_on, deadline = len(signals), min(deadline, time.monotonic() + grace)
        if first is None and not signals and (first := _failed(children)) is not None:
            deadline = time.monotonic() + grace
            for child in children:
                child.send(signal.SIGTERM)
        if time.monotonic() >= deadline:
            for child in children:
                child.send(signal.SIGKILL)
        time.sleep(_PAUSE)
    for child in children:
        child.wait()
    if signals:
        name = signal.Signals(signals[0]).name
        return Outcome(128 + signals[0], f"ended by {name}, which all workers got", interrupted=True)
    first = first or _failed(children)
    return Outcome(0) if first is None else Outcome(_exit_code(first), first.story())


def _failed(children: list[_Child]) -> _Child | None:
    """The worker whose failure is the cause: others may follow within a moment, but only of themselves."""
    failed = [child for child in children if child.code()]
    return min(failed, key=lambda child: (child.code() or 0) > 0, default=None)


def _exit_code(child: _Child) -> int:
    code = child.code() or 0
    return code if code > 0 else 128 - code


class _Child:
    """One worker's process, and the threads that read what it writes."""

    def __init__(self, command: list[str], cluster: Cluster, environment: dict[str, str]) -> None:
        self.cluster = cluster
        self._last: collections.deque[bytes] = collections.deque(maxlen=_LAST_LINES)
        variables = {"PYTHONUNBUFFERED": "1", **os.environ, **environment, "TF_CONFIG": cluster.tf_config()}
        self._process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Of its own group, so that Ctrl-C in a terminal comes once: through us.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        streams: list[tuple[Any, Any]] = [(self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr)]
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams]

    def start_reading(self) -> None:
        """Begins to pass on what the process writes."""
        for reader in self._readers:
            reader.start()

    def code(self) -> int | None:
        """The exit code; below 0 for a signal, None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Sends a signal to the process and to those that it started, if it runs."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def wait(self) -> None:
        """Waits for the end of the process, and of its output; processes that it left behind are killed."""
        self._process.wait()
        for reader in self._readers:
            if reader.ident is not None:
                reader.join(timeout=1)
        if any(reader.is_alive() for reader in self._readers):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def story(self) -> str:
        """Who failed, how, and the last lines of its standard error."""
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        index, count = self.cluster.index, len(self.cluster.workers)
        story = f"worker {index} of {count} ({self.cluster.workers[index]}, process {self._process.pid}) {how}"
        lines = [line.decode(errors="replace").rstrip() for line in self._last]
        return "\n  ".join([story + ("; its last lines:" if lines else ""), *lines])

    def _read(self, source: IO[bytes], target: Any) -> None:
        prefix = f"[{self.cluster.index}] ".encode()
        for line in source:
            if target is sys.stderr:
                self._last.append(line)
            with _writing:
                _write(target, prefix + line.rstrip(b"\r\n") + b"\n")


_writing = threading.Lock()


def _write(target: Any, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):  # whoever read it has gone: the job goes on
        if hasattr(target, "buffer"):
            target.buffer.write(line)
        else:
            target.write(line.decode(errors="replace"))
        target.flush()


@contextlib.contextmanager
def _forwarding(signals: list[int]) -> Iterator[None]:
    """Collects the signals that come, in place of what they did."""
    before = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _c_library() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError):
        return ctypes.CDLL(None)
    return None


_LIBRARY = _c_library()
_SET_DEATH_SIGNAL = 1


def _die_with_parent() -> None:
    """In the child: it is killed when the launcher is, which could not tell it any more. Linux only."""
    if _LIBRARY is not None:
        _LIBRARY.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
