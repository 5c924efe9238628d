"""Storage of an oracle: its database, what an earlier run left there, and the files for whoever looks."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import keras_tuner
import optuna
from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit.recipes.run_directory import write_json
from keras_trainkit.tuning import database, sampling, spaces


class StoredOracle(keras_tuner.Oracle):
    """An oracle whose truth is a database: opens it, compares it with what is asked for now, and takes over its trials.

    Args:
        asked: what is to propose and to prune.
        storage: URL of a database; None is SQLite in the project's directory.
        max_epochs: of a whole training.
        seed: None takes that of the earlier run, or draws one.
        **kwargs: of `keras_tuner.Oracle`.
    """

    def __init__(
        self, asked: sampling.Plan, storage: str | None, max_epochs: int | None, seed: int | None, **kwargs: Any
    ) -> None:
        super().__init__(seed=1, **kwargs)  # a seed of 0 would be replaced
        self.seed = seed
        self.max_epochs = max_epochs
        self.ended_early: dict[str, str] = {}  # why, by trial
        self._asked = asked
        self._storage_url = storage
        self._overwrite = False
        self._database: database.Database | None = None
        self._numbers: dict[str, int] = {}
        self._epochs = 0
        self._seconds = 0.0

    @property
    def study(self) -> optuna.Study:
        """The study of Optuna that the search is kept in."""
        return self._base.study

    def open(self) -> None:
        """Opens the database when the space is known, and takes over the trials of an earlier run.

        Raises:
            ValueError: the earlier run had another objective.
        """
        folder = Path(self._project_dir)
        url = self._storage_url or f"sqlite:///{folder / 'search.db'}"
        name = str(self._project_name)
        if self._overwrite and name in optuna.get_all_study_names(url):
            optuna.delete_study(study_name=name, storage=url)
        directions = {"min": "minimize", "max": "maximize"}
        wanted = [directions[objective.direction] for objective in self._objectives()]
        self._database = database.Database(url, name, wanted)
        facts = self._base.facts()
        objectives = [[objective.name, objective.direction] for objective in self._objectives()]
        if facts.get("objectives", objectives) != objectives:
            raise ValueError(
                f"`objective` must be that of the search in {folder}: {facts['objectives']}; scores of two objectives "
                f"cannot be compared. Take another `project_name`, or `overwrite=True`. Received: {objectives}"
            )
        if self.seed is None:
            self.seed = facts.get("seed")
        if self.seed is None:
            self.seed = secrets.randbelow(2**31)
        self._compare_space(facts)
        self._compare_settings(facts)
        self._keep("objectives", objectives)
        self._keep("seed", self.seed)
        self._take_over()

    def _compare_space(self, facts: dict[str, Any]) -> None:
        now = {spaces.study_name(p): spaces.describe(p) for p in self.hyperparameters.space}
        before = facts.get("space_at_start")
        if before is not None and before != now:
            for name in [*before, *(name for name in now if name not in before)]:
                if name not in now:
                    self._say(f"Search: {name!r} is no longer searched; trials keep their values of it")
                elif name not in before:
                    self._say(f"Search: {name!r} is new; earlier trials say nothing about it")
                elif before[name] != now[name]:
                    same = spaces.means_the_same(before[name], now[name])
                    what = "where they lie inside the new range" if same else "not for this one, whose values differ"
                    self._say(
                        f"Search: {name!r} changed from {before[name]} to {now[name]}; earlier trials count {what}"
                    )
        elif before is not None and "space" in facts:
            # Entries that trials found by themselves belong to the space, too, or the proposals would differ.
            self.hyperparameters: keras_tuner.HyperParameters = keras_tuner.HyperParameters.from_config(facts["space"])
        self._keep("space", self.hyperparameters.get_config())
        self._keep("space_at_start", now)

    def _compare_settings(self, facts: dict[str, Any]) -> None:
        sampler = self._asked.sampler if isinstance(self._asked.sampler, str) else "a function"
        settings = {"seed": self.seed, "sampler": sampler, "pruner": type(self._asked.pruner).__name__,
                    "max_epochs": self.max_epochs}  # fmt: skip
        for name, before in facts.get("settings", settings).items():
            if before != settings.get(name, before):
                self._say(f"Search: `{name}` changed from {before!r} to {settings[name]!r}; earlier trials stay")
        self._keep("settings", settings)

    def _take_over(self) -> None:
        running: list[tuple[int, str]] = []
        for trial_id, entry in self._base.latest().items():
            self._numbers[trial_id] = entry.number
            self.start_order.append(trial_id)
            record = database.record(entry)
            if record is None:
                space = self.hyperparameters.copy()
                space.values = dict(database.proposal(entry))
                self.trials[trial_id] = Trial(space, trial_id, TrialStatus.RUNNING)
                self._retry_queue.insert(0, trial_id)  # the queue is taken from its end
            else:
                self.trials[trial_id] = Trial.from_state(record["trial"])
                running.append((record["order"], trial_id))
                if record["ended_early"]:
                    self.ended_early[trial_id] = record["ended_early"]
            self._record_values(self.trials[trial_id])
        self.end_order = [trial_id for _, trial_id in sorted(running)]
        self._epochs = self._base.epochs()
        self._seconds = self._base.facts().get("seconds", 0.0)
        if self.trials:
            for trial in self.trials.values():
                self._save_trial(trial)  # a file may be torn
            self.save()
            self._say(f"Search: goes on with {len(self.end_order)} trials, {len(self._retry_queue)} run again")

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def reload(self) -> None:
        """Nothing: `open` reads the database once the space is known."""

    def _save_trial(self, trial: Trial) -> None:
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    @property
    def _base(self) -> database.Database:
        if self._database is None:
            self.open()
        assert self._database is not None
        return self._database

    @property
    def _seed(self) -> int:
        assert self.seed is not None
        return self.seed

    def _objectives(self) -> list[Any]:
        return getattr(self.objective, "objectives", None) or [self.objective]

    def _keep(self, name: str, value: Any) -> None:
        if self._base.facts().get(name) != value:
            self._base.set_fact(name, value)

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)
