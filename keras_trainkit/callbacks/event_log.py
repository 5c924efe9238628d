"""Where a monitor writes: `metrics.jsonl`, one object a line, and TensorBoard event files."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESERVED = ("kind", "step", "epoch", "time")


def record(kind: str, step: int, epoch: int, values: Mapping[str, float | None]) -> dict[str, Any]:
    """One line of `metrics.jsonl`: valid JSON whatever the values are.

    NaN and infinity become null, and `nonfinite` names them; None is left out.

    >>> line = record("step", 20, 1, {"loss": float("nan"), "learning_rate": 0.1, "loss_scale": None})
    >>> {name: value for name, value in line.items() if name != "time"}
    {'kind': 'step', 'step': 20, 'epoch': 1, 'loss': None, 'learning_rate': 0.1, 'nonfinite': ['loss']}
    """
    line: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, "time": round(time.time(), 3)}
    given = {name: value for name, value in values.items() if value is not None and name not in RESERVED}
    line |= {name: value if math.isfinite(value) else None for name, value in given.items()}
    nonfinite = [name for name, value in given.items() if not math.isfinite(value)]
    return line | ({"nonfinite": nonfinite} if nonfinite else {})


class JsonLines:
    """Appends objects to a file, one a line, each on disk before the next."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_within_a_line(path)
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a killed run leaves half a line; it must not swallow the next one
            self._file.write("\n")

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class EventFiles:
    """TensorBoard scalars under a directory: the run "train", and "validation" for names that begin with `val_`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers: dict[str, Any] = {}

    def write(self, group: str, step: int, values: Mapping[str, float | None]) -> None:
        """Writes each value under the tag `group/name`; None is left out."""
        runs: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            if value is not None:
                run = "validation" if name.startswith("val_") else "train"
                runs.setdefault(run, {})[f"{group}/{name.removeprefix('val_')}"] = value
        for run, scalars in runs.items():
            self._write(run, step, scalars)

    def _write(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        # tf.summary takes 0.2 ms for each scalar and a device; one event for all of them takes 0.04 ms and none.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(self.directory / run), flush_secs=5)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        self._writers[run].add_event(Event(step=step, wall_time=time.time(), summary=summary))

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
