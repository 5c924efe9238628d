"""Storage of an oracle: its database, what others left there, at other times or on other machines, and files to see."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import keras_tuner
import optuna
from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit.recipes.run_directory import write_json
from keras_trainkit.tuning import database, sampling, spaces
from keras_trainkit.tuning.running import workers


class StoredOracle(keras_tuner.Oracle):
    """An oracle whose truth is a database: opens it, compares it with what is asked for now, and takes over its trials.

    Whatever must be one for all processes (a proposal, and the number it is given; the end of a trial) is done while
    the database is locked, after looking at what the others did. So nothing depends on who did it.

    Args:
        asked: what is to propose and to prune.
        storage: URL of a database; None is SQLite in the project's directory.
        grace_period: seconds without a sign of life after which a process counts as dead.
        max_epochs: of a whole training.
        seed: None takes that of the earlier run, or draws one.
        **kwargs: of `keras_tuner.Oracle`.
    """

    trials: dict[str, Trial]
    ongoing_trials: dict[str, Trial]

    def __init__(
        self,
        asked: sampling.Plan,
        storage: str | None,
        grace_period: float,
        max_epochs: int | None,
        seed: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=1, **kwargs)  # a seed of 0 would be replaced
        self.seed = seed
        self.max_epochs = max_epochs
        self.ended_early: dict[str, str] = {}  # why, by trial
        self._asked = asked
        self._storage_url = storage
        self._grace_period = grace_period
        self._overwrite = False
        self._database: database.Database | None = None
        self._numbers: dict[str, int] = {}
        self._epochs = 0
        self._seconds = 0.0
        self._since: float | None = None  # when `_seconds` was true, and the search went on
        self._clock = time.monotonic
        self._lock = threading.RLock()
        self._worker: workers.Worker | None = None
        self._known: dict[str, int] = {}  # ended trials that were read, and their numbers
        self._others: set[str] = set()  # trials that run in other processes
        self._lost: set[str] = set()  # trials of this process that another one took, because it heard nothing
        self._theirs: Any = None

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
        directions = {"min": "minimize", "max": "maximize"}
        wanted = [directions[objective.direction] for objective in self._objectives()]
        self._database = database.Database(
            url, name, wanted, overwrite=self._overwrite, grace_period=self._grace_period, say=self._say
        )
        self._overwrite = False
        self._base.exclusively(self._compare_and_take_over)
        if self.trials:
            for trial in self.trials.values():
                self._save_trial(trial)  # a file may be torn
            self.save()
            elsewhere = f", {len(self._others)} run elsewhere" if self._others else ""
            again = f"{len(self._retry_queue)} run again{elsewhere}"
            self._say(f"Search: goes on with {len(self.end_order)} trials, {again}")

    def _compare_and_take_over(self) -> None:
        facts = self._base.facts()
        objectives = [[objective.name, objective.direction] for objective in self._objectives()]
        if facts.get("objectives", objectives) != objectives:
            raise ValueError(
                f"`objective` must be that of the search {self._project_name}: {facts['objectives']}; scores of two "
                f"objectives cannot be compared. Take another `project_name`, or `overwrite=True`. "
                f"Received: {objectives}"
            )
        if self.seed is None:
            self.seed = facts.get("seed")
        if self.seed is None:
            self.seed = secrets.randbelow(2**31)
        self._compare_space(facts, alone=not self._base.working(facts))
        self._compare_settings(facts)
        self._keep("objectives", objectives, facts)
        self._keep("seed", self.seed, facts)
        self._take_over()

    def _compare_space(self, facts: dict[str, Any], *, alone: bool) -> None:
        now = {spaces.study_name(p): spaces.describe(p) for p in self.hyperparameters.space}
        before = facts.get("space_at_start")
        if before is not None and before != now and not alone:
            raise ValueError(
                f"`hypermodel` must have the space of the processes that work on the search {self._project_name}. "
                f"Differs: {', '.join(name for name in {**before, **now} if before.get(name) != now.get(name))}"
            )
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
        self._keep("space", self.hyperparameters.get_config(), facts)
        self._keep("space_at_start", now, facts)

    def _compare_settings(self, facts: dict[str, Any]) -> None:
        sampler = self._asked.sampler if isinstance(self._asked.sampler, str) else "a function"
        settings = {"seed": self.seed, "sampler": sampler, "pruner": type(self._asked.pruner).__name__,
                    "max_epochs": self.max_epochs}  # fmt: skip
        for name, before in facts.get("settings", settings).items():
            if before != settings.get(name, before):
                self._say(f"Search: `{name}` changed from {before!r} to {settings[name]!r}; earlier trials stay")
        self._keep("settings", settings, facts)

    def refresh(self) -> None:
        """Reads what other processes did."""
        with self._lock:
            self._base.exclusively(self._take_over)

    def leave(self) -> None:
        """Ends this process's part in the search. What it left unfinished runs again where somebody goes on."""
        with self._lock:
            worker, self._worker, self._since = self._worker, None, None
            if worker is not None:
                with contextlib.suppress(Exception):  # the others find out without it
                    worker.end()

    def _join(self) -> str:
        """The token of this process among those that work on the search."""
        if self._worker is None:
            if self._since is None:
                self._since = self._clock()
            this = weakref.ref(self)
            self._worker = workers.Worker(
                self._base.write_signs, lambda: getattr(this(), "_elapsed", float)(), self._grace_period
            )
            self._worker.begin()
        return self._worker.token

    def _take_over(self) -> None:
        """Brings this oracle to what the database says, and gives free what dead processes ran."""
        facts = self._base.facts()
        self._read_space(facts)
        me = None if self._worker is None else self._worker.token
        alive = self._base.working(facts) - {me}
        mine = {trial.trial_id: self._numbers[trial.trial_id] for trial in self.ongoing_trials.values()}
        numbers = set(mine.values())

        def runs(entry: optuna.trial.FrozenTrial) -> bool:
            return entry.number in numbers or (database.is_proposed(entry) and database.worker_of(entry) in alive)

        ended: list[tuple[int, str]] = []
        waiting, self._others = [], set()
        entries = self._base.latest(runs)
        for trial_id, entry in entries.items():
            record = database.record(entry)
            if trial_id in mine:
                if entry.number != mine[trial_id] or entry.state.is_finished():
                    self._lost.add(trial_id)
                continue
            if record is not None:
                ended.append((record["order"], trial_id))
                if self._known.get(trial_id) == entry.number:
                    continue
                self._known[trial_id] = entry.number
                self.trials[trial_id] = Trial.from_state(record["trial"])
                if record["ended_early"]:
                    self.ended_early[trial_id] = record["ended_early"]
            else:
                if trial_id not in self.trials:
                    space = self.hyperparameters.copy()
                    space.values = dict(database.proposal(entry))
                    self.trials[trial_id] = Trial(space, trial_id, TrialStatus.RUNNING)
                if entry.state.is_finished():
                    waiting.append(trial_id)
                else:
                    self._others.add(trial_id)
            self._numbers[trial_id] = entry.number
            self._record_values(self.trials[trial_id])
        self.start_order = list(entries)
        self.trials = {trial_id: self.trials[trial_id] for trial_id in entries}
        self.end_order = [trial_id for _, trial_id in sorted(ended)]
        self._retry_queue = waiting[::-1]  # it is taken from its end
        self._run_times.update(self._base.tries())
        self._epochs = self._base.epochs()
        self._read_seconds(facts)

    def _read_space(self, facts: dict[str, Any]) -> None:
        """Entries that trials of other processes found."""
        if "space" in facts and facts["space"] != self._theirs:
            self._theirs = facts["space"]
            space = keras_tuner.HyperParameters.from_config(facts["space"]).space
            if self._worker is not None and self.tune_new_entries:
                self.hyperparameters.merge([p for p in space if not self.hyperparameters._exists(p.name, p.conditions)])

    def _read_seconds(self, facts: dict[str, Any]) -> None:
        """Time passes for all processes together: so long as one works, it goes on once."""
        prefix = workers.key("")
        theirs = [signs["seconds"] for name, signs in facts.items() if name.startswith(prefix)]
        self._seconds = max(self._elapsed(), facts.get("seconds", 0.0), *theirs, 0.0)
        if self._since is not None:
            self._since = self._clock()

    def _elapsed(self) -> float:
        return self._seconds + (0.0 if self._since is None else self._clock() - self._since)

    def save(self) -> None:
        write_to_be_seen(Path(self._get_oracle_fname()), self.get_state())

    def reload(self) -> None:
        """Nothing: `open` reads the database once the space is known."""

    def _save_trial(self, trial: Trial) -> None:
        write_to_be_seen(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

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

    def _keep(self, name: str, value: Any, facts: dict[str, Any]) -> None:
        if facts.get(name) != value:
            self._base.set_fact(name, value)

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)


def write_to_be_seen(path: Path, value: Any) -> None:
    """Writes JSON that nothing depends on."""
    # Processes that share a folder may write the same file at once, and one of them then finds its draft gone.
    with contextlib.suppress(FileNotFoundError):
        write_json(path, value)
