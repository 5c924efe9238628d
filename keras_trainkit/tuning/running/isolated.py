"""Isolated trials: one parent that owns the oracle, and processes that train. What ends one costs its trial only."""

from __future__ import annotations

import time
from typing import Any

import cloudpickle
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit.tuning import sampling
from keras_trainkit.tuning.running import runners

_MOST_BAD_STARTS = 3


class _Worker:
    """A process that trains one trial at a time, replaced when it ends or has done enough."""

    def __init__(self, number: int, runner: runners.Runner, timeout: float | None) -> None:
        self.number = number
        self.trial: Trial | None = None
        self.line: Any = None
        self.ready = False
        self.done = 0
        self.bad_starts = 0
        self._runner, self._timeout = runner, timeout
        self._job: Any = None
        self._heard = 0.0

    def begin(self, trial: Trial, job: tuple[dict[str, Any], str, int], place: Any) -> None:
        """Gives it a trial; a process that has to be started is started in the context that `place` returns."""
        self.trial, self._job = trial, job
        self._heard = time.monotonic()
        if self.line is None:
            with place():
                self.line = self._runner.start(self.number)
        else:
            self.line.send(job)

    def hear(self) -> tuple[Any, ...] | None:
        """The next message, or None when the process has ended."""
        message = self.line.receive()
        self._heard = time.monotonic()
        if message == ("ready",):
            self.ready, self.bad_starts = True, 0
            self.line.send(self._job)
        return message

    @property
    def limit(self) -> float | None:
        """Seconds without a message after which the trial counts as hung; None is for ever."""
        return self._timeout if self.ready else self._runner.longest_start

    def seconds_left(self) -> float | None:
        """Until the trial counts as hung; None is for ever."""
        return None if self.limit is None else self._heard + self.limit - time.monotonic()

    def stop(self, *, gently: bool = False) -> str:
        """Ends the process, and says how it ended."""
        reason = "" if self.line is None else self.line.stop(gently=gently)
        self.line, self.ready, self.done = None, False, 0
        return reason


def search(tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs the trials of a tuner in `tuner.workers` processes until the oracle ends the search.

    Args:
        tuner: a `Tuner`; its model and the arguments must go through cloudpickle.
        args, kwargs: for `run_trial`.

    Raises:
        RuntimeError: no process can be started, or a trial met an error that KerasTuner calls fatal.
    """
    runner = tuner.runner or runners.ProcessRunner(tuner.devices)
    runner.open(cloudpickle.dumps((tuner, tuner.oracle.objective, args, kwargs)))
    workers = [_Worker(number, runner, tuner.trial_timeout) for number in range(tuner.workers)]
    try:
        while _give_out(tuner, workers):
            _listen(tuner, workers, runner)
        for worker in workers:
            worker.stop(gently=True)
    finally:
        for worker in workers:
            worker.stop()
        runner.close()


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


def _listen(tuner: Any, workers: list[_Worker], runner: runners.Runner) -> None:
    busy = [worker for worker in workers if worker.trial is not None]
    left = [seconds for worker in busy if (seconds := worker.seconds_left()) is not None]
    ready = runner.wait([worker.line for worker in busy], max(0.0, min(left)) if left else None)
    for worker in busy:
        if worker.line in ready:
            _answer(tuner, worker)
        elif (seconds := worker.seconds_left()) is not None and seconds <= 0:
            limit = f"`trial_timeout`={tuner.trial_timeout:g} s" if worker.ready else f"{worker.limit:g} s"
            worker.stop()
            _end(tuner, worker, TrialStatus.INVALID, f"it hung: no epoch ended within {limit}; its process was killed")


def _answer(tuner: Any, worker: _Worker) -> None:
    message = worker.hear()
    assert worker.trial is not None
    if message is None:
        started = worker.ready
        reason = worker.stop()
        if not started:
            worker.bad_starts += 1
            if worker.bad_starts >= _MOST_BAD_STARTS:
                raise RuntimeError(f"the processes for trials end while they start: {reason}")
        _end(tuner, worker, TrialStatus.INVALID, reason)
    elif message[0] in ("update", "result"):
        report = tuner.oracle.update_trial if message[0] == "update" else tuner.oracle.set_result
        worker.line.send(report(worker.trial.trial_id, message[1], message[2]).status)
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
