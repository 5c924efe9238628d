"""Which worker it was: an error of TensorFlow's collectives says that one is gone, seldom which."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.hosts import split_address

_SILENT = re.compile(r"stopped sending heartbeats\)?:\s*((?:/job:\w+/replica:\d+/task:\d+\s*)+)")
_PATIENCE = 3.0
_PAUSE = 0.1


class WorkerLost(RuntimeError):
    """A worker of the job has ended, or cannot be reached any more; the message names it.

    The job cannot go on: end this process, and start all workers again. `fit` then goes on from the last checkpoint if
    it has a callback that restores one.

    Attributes:
        indices: list of the numbers of the workers that are gone.
    """

    def __init__(self, message: str, indices: list[int]) -> None:
        super().__init__(message)
        self.indices = indices


@contextlib.contextmanager
def naming_the_lost(cluster: Cluster) -> Iterator[None]:
    """Turns an error of TensorFlow into `WorkerLost` if a worker is gone; other errors pass."""
    import tensorflow as tf

    kinds = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnknownError,
    )
    try:
        yield
    except kinds as error:
        gone = find_lost(cluster, str(error))
        if not gone:
            raise
        named = ", ".join(f"worker {index} ({cluster.workers[index]})" for index in gone)
        message = (
            f"{named} {'is' if len(gone) == 1 else 'are'} lost: killed, ended with an error, or out of reach. This is "
            f"worker {cluster.index} of {len(cluster.workers)}. Start all of them again; its own output says why it "
            "ended, if it could."
        )
        raise WorkerLost(message, gone) from error


def find_lost(cluster: Cluster, error: str) -> list[int]:
    """The workers at whose address nobody listens; else those that TensorFlow's `error` calls silent.

    A process that dies may take a moment to leave its address, after its connections have been cut.
    """
    others = [index for index in range(len(cluster.workers)) if index != cluster.index]
    deadline = time.monotonic() + _PATIENCE
    with ThreadPoolExecutor(max_workers=min(32, max(1, len(others)))) as pool:
        while True:
            listening = list(pool.map(lambda index: _listens(cluster.workers[index]), others))
            gone = [index for index, there in zip(others, listening, strict=True) if not there]
            if gone:
                return gone
            if _SILENT.search(error) or time.monotonic() >= deadline:
                break
            time.sleep(_PAUSE)
    silent = {int(task) for group in _SILENT.findall(error) for task in re.findall(r"task:(\d+)", group)}
    return sorted(silent & set(others))


def _listens(address: str) -> bool:
    try:
        with socket.create_connection(split_address(address), timeout=_PATIENCE):
            return True
    except OSError:
        return False
