"""What runs in a trial's own process: it gets model and data once, then trial after trial, and reports each epoch."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus


class RemoteOracle:
    """The part of an oracle that a running trial needs; the parent's answers."""

    def __init__(self, connection: Any, objective: Any) -> None:
        self.objective = objective
        self.trials: dict[str, Trial] = {}
        self._connection = connection
        self._reported = False

    def begin(self, trial: Trial) -> None:
        self.trials = {trial.trial_id: trial}
        self._reported = False

    def get_trial(self, trial_id: str) -> Trial:
        return self.trials[trial_id]

    def has_reports(self, trial_id: str) -> bool:
        return self._reported

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        return self._send("update", trial_id, metrics, step)

    def set_result(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        return self._send("result", trial_id, metrics, step)

    def _send(self, kind: str, trial_id: str, metrics: dict[str, float], step: int) -> Trial:
        self._reported = True
        self._connection.send((kind, {name: float(value) for name, value in metrics.items()}, int(step)))
        trial = self.trials[trial_id]
        trial.status = self._connection.recv()
        return trial


def main(connection: Any, blob: bytes) -> None:
    """Serves trials until None comes over the connection, which has `send` and `recv`, or the parent is gone."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from keras_trainkit.tuning.tuner import explain

    try:
        import cloudpickle

        tuner, objective, args, kwargs = cloudpickle.loads(blob)
        tuner.oracle = oracle = RemoteOracle(connection, objective)
    except Exception as error:
        connection.send(("broken", explain(error)))
        return
    if tuner.quiet_fit:
        keras.config.disable_interactive_logging()
    connection.send(("ready",))
    while (job := connection.recv()) is not None:
        config, trial_id, seed = job
        trial = Trial(keras_tuner.HyperParameters.from_config(config), trial_id, TrialStatus.RUNNING)
        oracle.begin(trial)
        keras.utils.set_random_seed(seed)
        try:
            tuner._try_run_and_update_trial(trial, *args, **kwargs)
        except keras_tuner.errors.FatalError as error:
            connection.send(("fatal", explain(error)))
            return
        connection.send(("done", trial.status, trial.message, trial.hyperparameters.get_config()))


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a trial that hangs would stay for ever
