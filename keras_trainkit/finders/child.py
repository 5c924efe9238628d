"""Trials in a process of their own, ended as soon as it takes more memory than it may."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from keras_trainkit.finders.batch_size_report import Trial, mebibytes

_PAUSE = 0.005  # seconds between two looks at the process


@dataclasses.dataclass
class Task:
    """What a child process is told.

    Attributes:
        model: a compiled model, or a function without arguments that makes one.
        samples: x, y and the weights of samples.
        steps: training steps of a trial.
        memory: the most bytes that the process may hold.
        timeout: the most seconds of a trial, starting the process included.
    """

    model: Any
    samples: tuple[Any, Any, Any]
    steps: int
    memory: int
    timeout: float


class Child:
    """A process that tries one size after the other, until one does not fit.

    Attributes:
        idle: its memory before the first batch, in bytes.
    """

    def __init__(self, task: Task, accumulates: bool) -> None:
        self._task = task
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, task.samples, task.steps, accumulates)
        self._folder = tempfile.TemporaryDirectory()
        with _environment():
            self._process = context.Process(target=_serve, args=(*arguments, self._portable(task.model)), daemon=True)
            self._process.start()
        theirs.close()
        self._watched = psutil.Process(self._process.pid)
        ready = self._wait(0)
        if not ready.fits:
            raise ValueError(
                f"`memory` must be more than the model needs before its first batch. Received: "
                f"memory={mebibytes(task.memory)}; {ready.reason}"
            )
        self.idle = ready.peak or 0

    def _portable(self, model: Any) -> Any:
        if not hasattr(model, "save"):
            return model
        path = os.path.join(self._folder.name, "model.keras")
        model.save(path)
        return path

    def attempt(self, size: int) -> Trial:
        """Tries a size; after one that does not fit the process has ended."""
        self._pipe.send(size)
        return self._wait(size)

    def _wait(self, size: int) -> Trial:
        peak, deadline = 0, time.monotonic() + self._task.timeout
        while not self._pipe.poll(_PAUSE):
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, self._watched.memory_info().rss)
            if peak > self._task.memory:
                return self._ended(size, peak, "over the limit")
            if not self._process.is_alive() and not self._pipe.poll():
                return self._ended(size, peak, f"the process ended with exit code {self._process.exitcode}")
            if time.monotonic() > deadline:
                self.end()
                raise TimeoutError(f"A trial with {size} samples took longer than {self._task.timeout:g} s.")
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            return self._ended(size, peak, f"the process ended with exit code {self._process.exitcode}")
        if kind == "error":
            self.end()
            raise RuntimeError(f"A trial with {size} samples failed:\n{value}")
        peak = max(peak, value)
        if kind == "full":
            return self._ended(size, peak, "out of memory")
        # What was too short to be seen from here.
        return Trial(size, True, peak) if peak <= self._task.memory else self._ended(size, peak, "over the limit")

    def _ended(self, size: int, peak: int, reason: str) -> Trial:
        self.end()
        return Trial(size, False, peak, reason)

    @property
    def alive(self) -> bool:
        """Whether it can try another size."""
        return self._process.is_alive()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._folder.cleanup()


@contextlib.contextmanager
def trials(task: Task, accumulates: bool) -> Iterator[Callable[[int], Trial]]:
    """A function that tries a size, in one process as long as sizes fit. Its `idle` is the memory before any batch."""
    children: list[Child] = []

    def attempt(size: int) -> Trial:
        if not children or not children[-1].alive:
            children.append(Child(task, accumulates))
            attempt.idle = children[0].idle  # type: ignore[attr-defined]
        return children[-1].attempt(size)

    attempt.idle = None  # type: ignore[attr-defined]
    try:
        yield attempt
    finally:
        for child in children:
            child.end()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Keras in the child runs on the backend that it runs on here."""
    import keras

    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = keras.backend.backend()
    try:
        yield
    finally:
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before


def _serve(pipe: Any, samples: tuple[Any, Any, Any], steps: int, accumulates: bool, model: Any) -> None:
    """What the child process does."""
    try:
        import keras

        from keras_trainkit.core import backend
        from keras_trainkit.finders.rehearsal import Rehearsal

        model = keras.saving.load_model(model) if isinstance(model, str) else model()
        rehearsal = Rehearsal(model, samples, steps)
        rehearsal.renew(accumulates)
        pipe.send(("ready", _peak()))
        while True:
            size = pipe.recv()
            try:
                rehearsal.run(size)
            except Exception as error:
                if not backend.out_of_memory(error):
                    raise
                pipe.send(("full", _peak()))
                return
            pipe.send(("fits", _peak()))
    except (EOFError, BrokenPipeError):
        return
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def _peak() -> int:
    """The most memory that this process has held so far, as exactly as the system tells."""
    now = psutil.Process().memory_info()
    try:
        # The mark of getrusage would be that of the parent, if that is higher.
        with open("/proc/self/status", encoding="ascii") as lines:
            marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    except OSError:  # no Linux
        marks = [getattr(now, "peak_wset", now.rss)]
    return max(int(now.rss), *marks)
