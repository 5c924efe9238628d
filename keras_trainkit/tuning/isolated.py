"""Isolated trials: one parent that owns the oracle, and processes that train. What ends one costs its trial only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing import connection
from typing import Any

import cloudpickle
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit.tuning import sampling, trial_process

# Importing TensorFlow and reading the data may take long; but not for ever.
_LONGEST_START = 600.0
_MOST_BAD_STARTS = 3


class _Worker:
    """A process that trains one trial at a time, replaced when it ends or has done enough."""

    def __init__(self, number: int, blob: bytes, device: str | None, timeout: float | None) -> None:
        self.number = number
        self.trial: Trial | None = None
        self.line: Any = None
        self.process: Any = None
        self.ready = False
        self.done = 0
        self.bad_starts = 0
        self._blob, self._device, self._timeout = blob, device, timeout
        self._job: Any = None
        self._heard = 0.0

    def begin(self, trial: Trial, job: tuple[dict[str, Any], str, int], place: Any) -> None:
        """Gives it a trial; a process that has to be started is started in the context that `place` returns."""
        self.trial, self._job = trial, job
        self._heard = time.monotonic()
        if self.process is None:
            with place():
                self._start()
        else:
            self.send(job)

    def hear(self) -> tuple[Any, ...] | None:
        """The next message, or None when the process has ended."""
        try:
            message = self.line.recv()
        except (EOFError, OSError):
            return None
        self._heard = time.monotonic()
        if message == ("ready",):
            self.ready, self.bad_starts = True, 0
            self.send(self._job)
        return message

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it has just ended: the next `hear` says so
            self.line.send(message)

    def seconds_left(self) -> float | None:
        """Until the trial counts as hung; None is for ever."""
        limit = self._timeout if self.ready else _LONGEST_START
        return None if limit is None else self._heard + limit - time.monotonic()

    def stop(self, *, gently: bool = False) -> int | None:
        """Ends the process, and returns its exit code."""
        if self.process is None:
            return None
        if gently:
            self.send(None)
            self.process.join(10)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.line.close()
        self.process, self.line, self.ready, self.done = None, None, False, 0
        return code

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, its_end = context.Pipe()
        self.process = context.Process(target=trial_process.main, args=(its_end, self._blob), daemon=True)
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            if self._device is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self._device
            self.process.start()
        finally:
            if self._device is not None:
                if before is None:
                    del os.environ["CUDA_VISIBLE_DEVICES"]
                else:
                    os.environ["CUDA_VISIBLE_DEVICES"] = before
        its_end.close()


def search(tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs the trials of a tuner in `tuner.workers` processes until the oracle ends the search.

    Args:
        tuner: a `Tuner`; its model and the arguments must go through cloudpickle.
        args, kwargs: for `run_trial`.

    Raises:
        RuntimeError: no process can be started, or a trial met an error that KerasTuner calls fatal.
    """
    blob = cloudpickle.dumps((tuner, tuner.oracle.objective, args, kwargs))
    devices = tuner.devices or [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d not in ("", "-1")]
    workers = [
        _Worker(number, blob, devices[number % len(devices)] if devices else None, tuner.trial_timeout)
        for number in range(tuner.workers)
    ]
    try:
        while _give_out(tuner, workers):
            _listen(tuner, workers)
        for worker in workers:
            worker.stop(gently=True)
    finally:
        for worker in workers:
            worker.stop()


def _give_out(tuner: Any, workers: list[_Worker]) -> bool:
    """Gives every idle worker a trial; False when there is none to give, and none runs."""
    idle = False
    for worker in workers:
        if worker.trial is not None:
            continue
        tuner.pre_create_trial()
        trial = tuner.oracle.create_trial(f"{tuner.tuner_id}-{worker.number}")
        if trial.status == TrialStatus.RUNNING:
            tuner.on_trial_begin(trial)
            order = tuner.oracle.start_order.index(trial.trial_id)
            seed = sampling.seed_of(tuner.oracle.seed, tuner.oracle.worker, order)
            job = (trial.hyperparameters.get_config(), trial.trial_id, seed)
            worker.begin(trial, job, tuner.above_the_table)
        idle |= trial.status == TrialStatus.IDLE
    busy = any(worker.trial is not None for worker in workers)
    if idle and not busy:
        time.sleep(0.1)
    return busy or idle


def _listen(tuner: Any, workers: list[_Worker]) -> None:
    busy = [worker for worker in workers if worker.trial is not None]
    left = [seconds for worker in busy if (seconds := worker.seconds_left()) is not None]
    ready = connection.wait([worker.line for worker in busy], max(0.0, min(left)) if left else None)
    for worker in busy:
        if worker.line in ready:
            _answer(tuner, worker)
        elif (seconds := worker.seconds_left()) is not None and seconds <= 0:
            worker.stop()
            limit = f"`trial_timeout`={tuner.trial_timeout:g} s" if tuner.trial_timeout else f"{_LONGEST_START:g} s"
            _end(tuner, worker, TrialStatus.INVALID, f"it hung: no epoch ended within {limit}; its process was killed")


def _answer(tuner: Any, worker: _Worker) -> None:
    message = worker.hear()
    assert worker.trial is not None
    if message is None:
        started = worker.ready
        reason = _cause_of_death(worker.stop())
        if not started:
            worker.bad_starts += 1
            if worker.bad_starts >= _MOST_BAD_STARTS:
                raise RuntimeError(f"the processes for trials end while they start: {reason}")
        _end(tuner, worker, TrialStatus.INVALID, reason)
    elif message[0] in ("update", "result"):
        report = tuner.oracle.update_trial if message[0] == "update" else tuner.oracle.set_result
        worker.send(report(worker.trial.trial_id, message[1], message[2]).status)
    elif message[0] == "done":
        _, status, reason, config = message
        worker.trial.hyperparameters = keras_tuner.HyperParameters.from_config(config)
        worker.done += 1
        _end(tuner, worker, status, reason)
        if worker.done >= tuner.recycle_after:
            worker.stop(gently=True)
    elif message[0] == "fatal":
        raise keras_tuner.errors.FatalRuntimeError(message[1])
    elif message[0] == "broken":
        raise RuntimeError(f"the tuner, its model or its data cannot be sent to another process: {message[1]}")


def _end(tuner: Any, worker: _Worker, status: str, message: str | None) -> None:
    trial, worker.trial = worker.trial, None
    assert trial is not None
    trial.status, trial.message = status, message
    tuner.on_trial_end(trial)


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"
