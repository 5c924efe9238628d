"""The workers meet before TensorFlow starts: all are there, of one version, and agree on the list and on a seed.

TensorFlow's own start waits for the missing without a name, and past every signal.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.hosts import split_address

_PAUSE = 0.1
_LONGEST = 2**20


def meet(cluster: Cluster, about: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
    """What every worker says about itself, in their order.

    Each listens at its own address and asks all others there, until it has asked everybody and everybody has asked it.

    Args:
        cluster: the workers, and which of them this is.
        about: what this one says; plain data.
        timeout: how long to wait for the others, in seconds.

    Raises:
        TimeoutError: if some do not come; the message names them.
        RuntimeError: if the own port is taken, or a worker has another list of workers.
    """
    own = {"index": cluster.index, "workers": list(cluster.workers), "about": about}
    deadline = time.monotonic() + timeout
    others = [index for index in range(len(cluster.workers)) if index != cluster.index]
    found = {cluster.index: about}
    with _Answers(cluster, own) as answers:
        while len(found) <= len(others) or not answers.asked >= set(others):
            for index in others:
                if index not in found and (said := _ask(cluster, index, own)) is not None:
                    found[index] = said["about"]
            answers.check()
            missing = [index for index in others if index not in found or index not in answers.asked]
            if missing and time.monotonic() >= deadline:
                named = ", ".join(f"worker {index} ({cluster.workers[index]})" for index in missing)
                raise TimeoutError(f"{named} did not come within {timeout:g} s.")
            time.sleep(_PAUSE)
    return [found[index] for index in sorted(found)]


class _Answers:
    """Answers whoever asks at the worker's own address, in a thread, for as long as the block lasts."""

    def __init__(self, cluster: Cluster, own: dict[str, Any]) -> None:
        self.asked: set[int] = set()
        self.failure: Exception | None = None
        self._own, self._cluster, self._ended = own, cluster, threading.Event()
        host, port = split_address(cluster.workers[cluster.index])
        try:
            self._socket = _listen(host, port)
        except OSError as error:
            raise RuntimeError(
                f"worker {cluster.index} cannot listen at its own address, {cluster.workers[cluster.index]}: {error}"
            ) from None
        self._socket.settimeout(_PAUSE)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> _Answers:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def check(self) -> None:
        """Raises what a worker that asked has made known."""
        if self.failure is not None:
            raise self.failure

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # nobody came for a while
                continue
            with connection:
                try:
                    connection.settimeout(5)
                    said = _receive(connection)
                    _send(connection, self._own)
                    _check(self._cluster, said)
                    self.asked.add(said["index"])
                except RuntimeError as error:
                    self.failure = error
                except (OSError, ValueError, KeyError, TypeError):  # no worker, a port scanner for instance
                    continue


def _ask(cluster: Cluster, index: int, own: dict[str, Any]) -> dict[str, Any] | None:
    """What the worker at that address says; None if nobody answers there."""
    try:
        with socket.create_connection(split_address(cluster.workers[index]), timeout=5) as connection:
            _send(connection, own)
            said = _receive(connection)
            _check(cluster, said)
            return said
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(cluster: Cluster, said: dict[str, Any]) -> None:
    if said["workers"] != list(cluster.workers):
        raise RuntimeError(
            f"worker {said['index']} has another list of workers: {', '.join(said['workers'])}. "
            f"Here it is {', '.join(cluster.workers)}."
        )


def _listen(host: str, port: int) -> socket.socket:
    """Listens at the loopback address itself; for any other at all of the machine's, since names may mean another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loopback = host.startswith("127.") or host in ("::1", "localhost")
    return socket.create_server((host if loopback else "", port), family=family)


def _send(connection: socket.socket, content: dict[str, Any]) -> None:
    connection.sendall(json.dumps(content).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as stream:
        return json.loads(stream.readline(_LONGEST))
