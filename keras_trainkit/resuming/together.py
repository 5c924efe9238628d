"""What several workers agree on, so that the states they save and go on from are of one moment."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.gathering import gather
from keras_trainkit.resuming import bundle, store

_PAUSE = 1.0
"""Seconds between two questions whether a signal has come or the time is up: each is an exchange."""

Found = tuple[Path, dict[str, Any], dict[str, Any]] | None


class Alone:
    """One process, which need ask nobody.

    Attributes:
        count: of the processes.
    """

    count = 1

    def place(self, directory: Path) -> Path:
        """Where this process saves.

        Raises:
            ValueError: if several workers, or one process alone, have saved in the directory, and now it is otherwise.
        """
        self._refuse(directory, "worker-*/state-*", "several workers")
        return directory

    def check(self, facts: dict[str, Any]) -> None:
        """Raises ValueError if the state is of another number of workers."""
        if facts["workers"] != self.count:
            raise ValueError(
                f"The state was saved by {facts['workers']} workers, each of which has a part of it. "
                f"Received: {self.count} workers"
            )

    def _refuse(self, directory: Path, pattern: str, others: str) -> None:
        if any(directory.glob(pattern)):
            raise ValueError(
                f"`directory` holds the states of {others}. Received: directory={str(directory)!r}, with "
                f"{self.count} worker{'s' * (self.count > 1)}"
            )

    def keep(self, number: int) -> int:
        """How many of the last states must stay for this wish."""
        return number

    def newest(self, directory: Path) -> Found:
        """The state to go on from."""
        return store.newest(directory)

    def agreed(
        self, due: bool, signal: str | None, counted: bool = False, ask: bool = False
    ) -> tuple[bool, str | None]:
        """Whether all save now, and the signal after which all end.

        Args:
            due: whether this process would save.
            signal: that this process has received.
            counted: whether `due` follows from a count that is the same in all processes.
            ask: whether to ask the others in any case.
        """
        return due, signal

    def wait(self) -> None:
        """Until all processes have come to this place."""


class Together(Alone):
    """The workers of a MultiWorkerMirroredStrategy. All must call the same methods at the same places.

    Each saves a state of its own: its part-filled windows, seeds and place in the data may be like no other's. They
    save at the same moments, which their states count, and nobody begins to write before all have written the last one;
    so the last two of each hold one that all have.

    Args:
        strategy: theirs.
        cluster: they, and which of them this is.
        signals: the names that may be received.
    """

    def __init__(self, strategy: Any, cluster: Cluster, signals: Sequence[str]) -> None:
        self.count = len(cluster.workers)
        self._strategy, self._cluster, self._signals = strategy, cluster, list(signals)
        self._left, self._since, self._asked = 0, 0, time.monotonic()

    def place(self, directory: Path) -> Path:
        self._refuse(directory, "state-*", "one process")
        return directory / f"worker-{self._cluster.index}"

    def keep(self, number: int) -> int:
        return max(number, 2)

    def newest(self, directory: Path) -> Found:
        """The newest moment of which every worker has a whole state; later ones are removed.

        Raises:
            RuntimeError: on all workers, if some have states and others none that go with them.
        """
        moments = {saved.facts["moment"]: saved.path for saved in reversed(store.saved_states(directory))}
        highest = max(moments, default=0)
        while True:
            found = self._readable(moments)
            here = 0 if found is None else int(found[1]["moment"])
            rows = gather(self._strategy, [here, highest])
            lowest = int(rows[:, 0].min())
            if (rows[:, 0] == lowest).all():
                break
            moments = {moment: path for moment, path in moments.items() if moment <= lowest}
        if lowest == 0 and int(rows[:, 1].max()) > 1:
            has = [index for index, row in enumerate(rows) if row[1]]
            raise RuntimeError(
                f"The workers have no saved state in common in their folders of {directory.parent}; those that have "
                f"some: {has}. The directory must be the one in which each of them saved; remove it to begin anew."
            )
        for path in store.numbered(directory):
            if found is None or store.number_of(path) > store.number_of(found[0]):
                path.unlink()
        return found

    def agreed(
        self, due: bool, signal: str | None, counted: bool = False, ask: bool = False
    ) -> tuple[bool, str | None]:
        self._left -= 1
        self._since += 1
        if self._left > 0 and not ask:
            return due and counted, None
        number = 0 if signal is None else 1 + self._signals.index(signal)
        pace = 1e6 * (time.monotonic() - self._asked) / self._since
        rows = gather(self._strategy, [int(due), number, round(pace)])
        self._left = max(1, min(1000, math.floor(1e6 * _PAUSE / max(1, int(rows[:, 2].max())))))
        self._since, self._asked = 0, time.monotonic()
        came = int(rows[:, 1].max())
        return due if counted else bool(rows[0, 0]), self._signals[came - 1] if came else None

    def wait(self) -> None:
        gather(self._strategy, [0])

    @staticmethod
    def _readable(moments: dict[int, Path]) -> Found:
        for moment in sorted(moments, reverse=True):
            try:
                return moments[moment], *bundle.read(moments[moment])
            except bundle.Damaged:
                del moments[moment]
        return None


def companions(strategy: Any, cluster: Cluster | None, signals: Sequence[str]) -> Alone:
    """The processes that train with this one; `cluster` is None where there are none."""
    return Alone() if cluster is None or len(cluster.workers) == 1 else Together(strategy, cluster, signals)
