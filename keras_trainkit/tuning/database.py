"""The database of a search: every proposal, learning curve and outcome, written before anything else depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import sqlalchemy
from keras_tuner.engine import hyperparameters as types
from optuna.trial import FrozenTrial, TrialState

from keras_trainkit.tuning import spaces

_PROPOSAL, _RECORD, _REASON = "proposal", "record", "reason"


class Database:
    """A study of Optuna, in which each trial knows KerasTuner's identifier, its values and, once it ended, its record.

    A trial that runs again has several entries in the study; the last one counts.

    Args:
        url: of the database, or a storage of Optuna; None keeps it in memory.
        name: of the study.
        directions: `"minimize"` or `"maximize"` for each objective.
    """

    def __init__(self, url: Any, name: str, directions: Sequence[Any]) -> None:
        self.storage = optuna.storages.get_storage(_open(url))
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, directions=list(directions), load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )  # fmt: skip
        finally:
            optuna.logging.set_verbosity(level)
        self._study = self.storage.get_study_id_from_name(name)

    def facts(self) -> dict[str, Any]:
        """What is known of the search as a whole: its space, settings and time."""
        return self.study.user_attrs

    def set_fact(self, name: str, value: Any) -> None:
        """Writes one of the facts."""
        self.study.set_user_attr(name, value)

    def ask(
        self,
        sampler: optuna.samplers.BaseSampler,
        space: Sequence[types.HyperParameter],
        names: dict[int, str],
    ) -> tuple[int, spaces.Values]:
        """Number and values of a new trial, or of the next start point. It is nobody's until `propose`."""
        self.study.sampler = sampler
        trial = self.study.ask()
        return trial.number, spaces.suggest(trial, space, names)

    def propose(self, number: int, trial_id: str, values: spaces.Values) -> None:
        """Makes a trial that was asked for the one that `trial_id` stands for."""
        self.storage.set_trial_user_attr(self._id(number), _PROPOSAL, {"trial_id": trial_id, "values": values})

    def place(
        self,
        trial_id: str,
        values: spaces.Values,
        space: Sequence[types.HyperParameter],
        names: dict[int, str],
    ) -> int:
        """The number of a new running trial with given values, which no sampler proposed."""
        drawn, drawables = {}, {}
        for index, parameter in enumerate(space):
            drawable = spaces.distribution(parameter)
            if drawable is None or parameter.name not in values or not spaces.is_active(parameter, values):
                continue
            try:
                drawn[names[index]] = spaces.to_study(parameter, values[parameter.name])
            except ValueError:  # it was drawn before the space changed
                continue
            drawables[names[index]] = drawable
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=drawn, distributions=drawables,
            user_attrs={_PROPOSAL: {"trial_id": trial_id, "values": values}},
        )  # fmt: skip
        made = self.storage.create_new_trial(self._study, template_trial=template)
        return self.storage.get_trial(made).number

    def report(self, number: int, step: int, value: float) -> None:
        """Writes one point of a learning curve."""
        self.storage.set_trial_intermediate_value(self._id(number), step, value)

    def should_end(self, number: int, pruner: optuna.pruners.BasePruner) -> bool:
        """Whether the pruner would end a trial after its last report."""
        return pruner.prune(self.study, self.storage.get_trial(self._id(number)))

    def finish(self, number: int, record: dict[str, Any]) -> None:
        """Writes how a trial ended: `trial` (KerasTuner's state), `state` and `values` for the study.

        The record is there before the state changes; a kill in between is made good when the search goes on.
        """
        self.storage.set_trial_user_attr(self._id(number), _RECORD, record)
        self._tell(number, record)

    def drop(self, number: int, reason: str) -> None:
        """Ends an entry that counts for nothing: a repeated proposal, or a run that is to be tried again."""
        self.storage.set_trial_user_attr(self._id(number), _REASON, reason)
        self.study.tell(number, state=TrialState.FAIL)

    def latest(self) -> dict[str, FrozenTrial]:
        """The entry that counts for each of KerasTuner's trials, in the order in which they were first proposed.

        Entries that a kill left behind are put in order first.
        """
        found: dict[str, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state is TrialState.RUNNING:
                if _RECORD in trial.user_attrs:
                    self._tell(trial.number, trial.user_attrs[_RECORD])
                else:
                    self.drop(trial.number, "the search was ended while it ran")
            if _PROPOSAL in trial.user_attrs:
                found[trial.user_attrs[_PROPOSAL]["trial_id"]] = trial
        return found

    def epochs(self) -> int:
        """Points of all learning curves, of runs that were tried again, too."""
        return sum(len(trial.intermediate_values) for trial in self.study.get_trials(deepcopy=False))

    def enqueue(self, drawn: dict[str, Any]) -> None:
        """A start point, tried before the sampler proposes; the same one is not taken twice."""
        self.study.enqueue_trial(drawn, skip_if_exists=True)

    def start_points(self) -> int:
        """How many start points wait."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def pareto(self) -> list[str]:
        """KerasTuner's identifiers of the trials that no other beats in every objective."""
        return [trial.user_attrs[_PROPOSAL]["trial_id"] for trial in self.study.best_trials]

    def _tell(self, number: int, record: dict[str, Any]) -> None:
        state = TrialState[record["state"]]
        self.study.tell(number, record["values"] if state is TrialState.COMPLETE else None, state=state)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study, number)


def _open(url: Any) -> Any:
    if not (isinstance(url, str) and url.startswith("sqlite:")):
        return url
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    # One file write for each commit, and none that waits for the disk: what a killed process wrote is there all the
    # same. A machine that loses power may lose the last trials, never the file.
    sqlalchemy.event.listen(storage.engine, "connect", _write_ahead)
    storage.engine.dispose()
    return storage


def _write_ahead(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def proposal(trial: FrozenTrial) -> spaces.Values:
    """The values that a trial was proposed with."""
    return trial.user_attrs[_PROPOSAL]["values"]


def record(trial: FrozenTrial) -> dict[str, Any] | None:
    """How a trial ended; None while it has not."""
    return trial.user_attrs.get(_RECORD)
