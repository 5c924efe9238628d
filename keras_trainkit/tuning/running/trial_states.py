"""States of the trials that run, so that one whose process is killed goes on from its last epoch."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import keras
from keras_tuner.engine.trial import Trial

from keras_trainkit.callbacks import ResumableTraining

_FOLDER = "resume"


class Reports(keras.callbacks.Callback):
    """Reports the epochs of an earlier process again: the search begins a trial anew, and knows nothing of them."""

    def __init__(self, tuner: Any, trial: Trial) -> None:
        super().__init__()
        self._tuner, self._trial = tuner, trial
        self._epochs: list[tuple[int, dict[str, float]]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps what `tuner.on_epoch_end` is told."""
        self._epochs.append((epoch, {name: float(value) for name, value in (logs or {}).items()}))

    def get_state(self) -> dict[str, Any]:
        """The epochs so far, for `ResumableTraining`."""
        return {"epochs": [[epoch, logs] for epoch, logs in self._epochs]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Reports them."""
        self._epochs = [(epoch, dict(logs)) for epoch, logs in state["epochs"]]
        for epoch, logs in self._epochs:
            self._tuner.on_epoch_end(self._trial, self.model, epoch, logs)


def resumable(tuner: Any, trial: Trial, execution: int, callbacks: list[Any], every: int | str) -> ResumableTraining:
    """Has a trial go on from its last state, if there is one, and save its state from now on.

    Args:
        tuner: whose trial it is.
        trial: the trial.
        execution: which training of the trial, from 0 on.
        callbacks: those of `fit`, KerasTuner's among them; they are added to.
        every: how often to save, as in `ResumableTraining`.
    """
    for callback in callbacks:
        # KerasTuner's own, which say nothing of themselves.
        if type(callback).__name__ == "SaveBestEpoch":
            callback.get_state = lambda best=callback: {"best_value": best.best_value}
            callback.set_state = lambda state, best=callback: setattr(best, "best_value", state["best_value"])
        elif type(callback).__name__ == "TunerCallback":
            callback.get_state, callback.set_state = dict, lambda state: None
    folder = _folder(Path(tuner.get_trial_dir(trial.trial_id)) / _FOLDER, execution)
    saving = ResumableTraining(folder, every, signals=())
    callbacks[:0] = [Reports(tuner, trial), saving]
    return saving


def forget(trial_dir: str | Path) -> None:
    """Removes the states of a trial that has ended, or is to begin anew."""
    shutil.rmtree(Path(trial_dir) / _FOLDER, ignore_errors=True)


def _folder(base: Path, execution: int) -> Path:
    # One that was removed in this process cannot be used a second time.
    there = sorted(base.glob(f"{execution}-*"))
    return there[0] if there else base / f"{execution}-{secrets.token_hex(4)}"
