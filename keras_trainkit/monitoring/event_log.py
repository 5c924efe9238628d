"""Where a monitor writes: `metrics.jsonl`, one object a line, and TensorBoard event files; beside the training."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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


def layers_record(step: int, epoch: int, layers: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A line of kind "layers": the statistics of each layer; NaN and infinity become null.

    >>> layers_record(20, 1, {"dense": {"weight_norm": 2.0}})["layers"]
    {'dense': {'weight_norm': 2.0}}
    """
    finite = {n: {name: v if math.isfinite(v) else None for name, v in of.items()} for n, of in layers.items()}
    return {"kind": "layers", "step": step, "epoch": epoch, "time": round(time.time(), 3), "layers": finite}


class Beside:
    """Does one thing after the other in a thread of its own, while the training goes on.

    What a thing raises, the next call raises.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="keras-trainkit-lines")
        self._open: deque[Future] = deque()

    def do(self, function: Callable[..., object], *arguments: Any) -> None:
        """Has it done soon."""
        while self._open and self._open[0].done():
            self._open.popleft().result()
        self._open.append(self._pool.submit(function, *arguments))

    def wait(self) -> None:
        """Returns when all is done."""
        while self._open:
            self._open.popleft().result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


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

    def size(self) -> int:
        """The length of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Takes away what was written after the file had this length."""
        if self.size() > size:
            os.truncate(self._file.fileno(), size)

    def close(self) -> None:
        self._file.close()


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class EventFile:
    """A new file of TensorBoard events in a directory, each on disk before the next.

    TensorFlow writes it: TensorBoard's own writer makes the checksums in Python, on a thread that takes its time from
    the training's.
    """

    _numbers = itertools.count()

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf
        from tensorboard.compat.proto.event_pb2 import Event

        directory.mkdir(parents=True, exist_ok=True)
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._file = tf.io.TFRecordWriter(str(directory / f"events.out.tfevents.{name}"))
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: Any) -> None:
        """Writes an event."""
        self._file.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class EventFiles:
    """TensorBoard scalars under a directory: the run "train", and "validation" for names that begin with `val_`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers: dict[str, EventFile] = {}

    def write(self, group: str, step: int, values: Mapping[str, float | None]) -> None:
        """Writes each value under the tag `group/name`; None is left out."""
        runs: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            if value is not None:
                run = "validation" if name.startswith("val_") else "train"
                runs.setdefault(run, {})[f"{group}/{name.removeprefix('val_')}"] = value
        for run, scalars in runs.items():
            self._write(run, step, scalars)

    def describe(self, step: int, recipe: Mapping[str, Any], left_out: Collection[str] = ()) -> None:
        """Arranges the page of custom scalars, and writes the recipe as text and as hyperparameters."""
        from keras_trainkit.monitoring import tensorboard_page

        page = [tensorboard_page.arrangement(left_out)]
        if recipe:
            page.append(tensorboard_page.recipe_text(recipe))
            name = "/".join(self.directory.resolve().parts[-3:-1])
            page.append(tensorboard_page.hyperparameters(recipe, name))
        for summary in page:
            self._add("train", step, summary)

    def write_layers(self, step: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """Writes each layer's statistics under the tags `layers/statistic/layer`."""
        self._write("train", step, {f"layers/{n}/{layer}": v for layer, of in layers.items() for n, v in of.items()})

    def write_weights(self, step: int, weights: Mapping[str, Any]) -> None:
        """Writes a histogram of each variable."""
        from keras_trainkit.monitoring.tensorboard_page import histogram

        for path, values in weights.items():
            self._add("train", step, histogram(f"weights/{path}", values))

    def begin_again(self, step: int) -> None:
        """Has TensorBoard forget the points from `step` on, which come again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        for run in ("train", "validation"):
            if (self.directory / run).is_dir():
                began = SessionLog(status=SessionLog.START)
                self._writer(run).add(Event(step=step, wall_time=time.time(), session_log=began))

    def _write(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        # tf.summary takes 0.2 ms for each scalar and a device; one event for all of them takes 0.04 ms and none.
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(
            run, step, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        )

    def _add(self, run: str, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer(run).add(Event(step=step, wall_time=time.time(), summary=summary))

    def _writer(self, run: str) -> EventFile:
        if run not in self._writers:
            self._writers[run] = EventFile(self.directory / run)
        return self._writers[run]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
