"""A directory of states: one run at a time, the newest whole one first, and which ones stay."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from keras_trainkit.resuming import bundle

_NAME = re.compile(r"state-(\d{8})\.zip")
_LOCK = "lock"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A state on disk.

    Attributes:
        path: the file.
        number: it was the run's how manieth.
        facts: what its manifest says: `epoch` (from 0) and `batch` (batches done in it) where training goes on,
            whether that is `inside` an epoch, whether training has `stopped`, the `metrics` of the epoch that had
            ended, `versions`, `saved` (seconds since 1970) and more.
    """

    path: Path
    number: int
    facts: dict[str, Any]


def saved_states(directory: str | os.PathLike[str]) -> list[Saved]:
    """The states in a directory, the newest first; files that cannot be read are left out.

    >>> saved_states("no/such/directory")
    []
    """
    found = []
    for path in numbered(Path(directory)):
        try:
            found.append(Saved(path, number_of(path), bundle.read_facts(path)))
        except bundle.Damaged:
            continue
    return found


def numbered(directory: Path) -> list[Path]:
    """The files of states by name, the newest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def number_of(path: Path) -> int:
    """The number in the name of a state's file."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def newest(directory: Path) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """The newest state that is whole: its file, facts and arrays; None where there is no file.

    A damaged one is passed over with a warning that names it and the one that is taken in its place.

    Raises:
        RuntimeError: if there are states, and all of them are damaged.
    """
    damaged: list[str] = []
    for path in numbered(directory):
        try:
            facts, arrays = bundle.read(path)
        except bundle.Damaged as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(
                f"A saved state is damaged ({'; '.join(damaged)}). Training goes on from the one before: {path}, epoch "
                f"{facts['epoch'] + 1}, batch {facts['batch']}",
                stacklevel=2,
            )
        return path, facts, arrays
    if damaged:
        raise RuntimeError(
            f"All saved states in {directory} are damaged: {'; '.join(damaged)}. Remove them to begin the run anew."
        )
    return None


class Lock:
    """Holds a directory for one run. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._file: IO[str] | None = (directory / _LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another run"
            self._file.close()
            raise RuntimeError(
                f"`directory` is in use by {holder}: two runs cannot save their states in one place. "
                f"Received: directory={str(directory)!r}"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Lets go of the directory."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which states stay: the last `keep`, the `keep_best` by a metric, and those after each `keep_every`-th epoch.

    Attributes:
        keep: at least 1.
        keep_best: 0 for none.
        keep_every: 0 for none.
        monitor: the metric.
        higher_is_better: by this metric.
    """

    keep: int
    keep_best: int
    keep_every: int
    monitor: str
    higher_is_better: Callable[[str], bool]

    def superfluous(self, states: list[Saved]) -> list[Saved]:
        """Those of the states, newest first, that may go."""
        stay = {saved.number for saved in states[: self.keep]}
        ended = [saved for saved in states if not saved.facts["inside"]]
        if self.keep_every:
            stay |= {saved.number for saved in ended if saved.facts["epoch"] % self.keep_every == 0}
        scored = [(saved.facts["metrics"].get(self.monitor, math.nan), saved.number) for saved in ended]
        sign = -1 if self.higher_is_better(self.monitor) else 1
        best = sorted((sign * value, number) for value, number in scored if not math.isnan(value))
        stay |= {number for _, number in best[: self.keep_best]}
        return [saved for saved in states if saved.number not in stay]


class Store:
    """The directory of a run that holds its lock.

    Args:
        directory: made if missing.
        retention: which states stay.
    """

    def __init__(self, directory: Path, retention: Retention) -> None:
        self.directory, self.retention = directory, retention
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(directory)
        for torn in directory.glob(f"state-*{bundle.PARTIAL}"):
            torn.unlink()  # a killed run was writing it
        self._states: list[Saved] | None = None
        self._next = max(map(number_of, numbered(directory)), default=0) + 1

    def write(self, facts: dict[str, Any], arrays: dict[str, Any]) -> Path:
        """Writes a state, and removes those that need not stay."""
        path = self.directory / f"state-{self._next:08}.zip"
        try:
            bundle.write(path, facts, arrays)
        except OSError as error:
            raise OSError(
                error.errno, f"The state of the run cannot be saved ({error.strerror}); the ones before it are whole",
                str(path),
            ) from error  # fmt: skip
        self._next += 1
        if self._states is None:
            self._states = saved_states(self.directory)
        else:
            kept = json.loads(json.dumps(facts))
            self._states.insert(0, Saved(path, number_of(path), kept))
        for saved in self.retention.superfluous(self._states):
            self._states.remove(saved)
        stay = {saved.path for saved in self._states}
        for old in numbered(self.directory):
            if old not in stay:  # damaged ones go, too
                old.unlink(missing_ok=True)
        return path

    def release(self) -> None:
        """Lets another run have the directory."""
        self._lock.release()
