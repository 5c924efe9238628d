"""Oracle: KerasTuner's side of a search, with Optuna's samplers and pruners behind it and a database below."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import keras_tuner
import numpy as np
import optuna
from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit.core import checks
from keras_trainkit.tuning import database, sampling, spaces, watching
from keras_trainkit.tuning.stored_oracle import StoredOracle

# A larger space is not counted: its points are as good as endless.
_MOST_POINTS = 10_000
_MOST_REPEATS = 20
_SURE = 3
# Seconds until an idle process looks again whether there is something to do.
_IDLE = 0.5


class Oracle(StoredOracle):
    """Proposes trials, ends those that fall behind, and keeps everything in a database.

    The database is the truth: `oracle.json` and `trial.json` are written for whoever looks, never read back. Each
    proposal has a random seed of its own, made of `seed` and the number of trials before it, so that a search that was
    killed proposes what it would have proposed.

    Args:
        objective: a name, a `keras_tuner.Objective`, or a list of these; with several the study keeps each by itself,
            and `score` is their sum, as in KerasTuner.
        max_trials: the budget in trials, at least 1; None is no limit.
        hyperparameters, allow_new_entries, tune_new_entries, max_retries_per_trial: as in `keras_tuner.Oracle`.
        seed: an integer of at least 0; None draws one and keeps it in the database.
        max_consecutive_failed_trials: ends the search with an error; None goes on.
        sampler: `"auto"`, `"random"`, `"tpe"`, `"gp"`, or a function of a seed that returns a sampler of Optuna.
        pruner: a pruner of Optuna, asked after every epoch; None ends no trial early.
        max_epochs: of a whole training; `sampler="auto"` chooses the pruner by it.
        startup: how many trials are random before a model proposes; None is 10.
        grid: tries every point in order, with 10 values for a range that has no step.
        storage: URL of a database, SQLite or PostgreSQL, which other processes may work on at the same time; None is
            SQLite in the project's directory.
        time_budget: seconds, above 0, of all runs of this search together.
        epoch_budget: epochs, at least 1, of all trials together.
        patience: trials without a better score after which the search ends, at least 1.
        grace_period: seconds, at least 1, without a sign of life after which a process counts as dead, and its trials
            run again in others.

    Raises:
        ValueError: an argument out of its range; the objective is not that of the search that is to go on.
    """

    def __init__(
        self,
        objective: Any = None,
        max_trials: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        allow_new_entries: bool = True,
        tune_new_entries: bool = True,
        seed: int | None = None,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int | None = None,
        *,
        sampler: sampling.Sampler = "auto",
        pruner: optuna.pruners.BasePruner | None = None,
        max_epochs: int | None = None,
        startup: int | None = None,
        grid: bool = False,
        storage: str | None = None,
        time_budget: float | None = None,
        epoch_budget: int | None = None,
        patience: int | None = None,
        grace_period: float = 60.0,
    ) -> None:
        if not callable(sampler):
            checks.one_of("sampler", sampler, sampling.SAMPLERS)
        integers = {"max_trials": max_trials, "max_epochs": max_epochs, "startup": startup,
                    "epoch_budget": epoch_budget, "patience": patience,
                    "max_consecutive_failed_trials": max_consecutive_failed_trials}  # fmt: skip
        for name, value in integers.items():
            if value is not None:
                checks.integer(name, value, at_least=1)
        if seed is not None:
            checks.integer("seed", seed, at_least=0)
        if time_budget is not None:
            checks.number("time_budget", time_budget, above=0)
        checks.number("grace_period", grace_period, at_least=1)
        super().__init__(
            sampling.Plan(sampler, pruner, grid=grid), storage, grace_period, max_epochs, seed,
            objective=objective, max_trials=max_trials, hyperparameters=hyperparameters,
            allow_new_entries=allow_new_entries, tune_new_entries=tune_new_entries,
            max_retries_per_trial=checks.integer("max_retries_per_trial", max_retries_per_trial, at_least=0),
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )  # fmt: skip
        self._verbose, self._shown_elsewhere = 1, False
        self.time_budget = time_budget
        self.epoch_budget = epoch_budget
        self.patience = patience
        self.worker = 0
        self.watchers: list[watching.Watcher] = []
        self.stop_reason: str | None = None
        self._plan: sampling.Plan | None = None
        self._startup = startup
        self._results: dict[str, dict[str, float]] = {}
        self._idle_until = 0.0
        self._busy = False
        self._points: Any = None
        self._size: tuple[str, int | None] = ("", None)
        self._trouble: Exception | None = None

    @property
    def plan(self) -> sampling.Plan:
        """What proposes and what prunes; chosen when the space is known."""
        if self._plan is None and not self.hyperparameters.space:
            return sampling.Plan("random", None)  # the first trial will find out what there is to choose
        if self._plan is None:
            self._plan = self._asked
            if self._asked.sampler == "auto":
                self._plan = sampling.choose(
                    self.hyperparameters.space, max_trials=self.max_trials, max_epochs=self.max_epochs,
                    objectives=len(self._objectives()), saves=bool(self.epoch_budget or self.time_budget),
                )  # fmt: skip
            for reason in self._plan.reasons:
                self._say(f"Search: {reason}")
        return self._plan

    # Trials begin

    def create_trial(self, tuner_id: str) -> Trial:
        with self._lock:
            if time.monotonic() >= self._idle_until:
                trial = self._base.exclusively(lambda: self._create_trial(tuner_id))
                if trial.status == TrialStatus.RUNNING:
                    for watcher in self.watchers:
                        watcher.trial_began(trial)
                if trial.status != TrialStatus.IDLE:
                    return trial
                self._idle_until = time.monotonic() + _IDLE
        if not self.ongoing_trials:
            time.sleep(_IDLE)  # nothing else to do in this process
        return Trial(self.get_space(), status=TrialStatus.IDLE)

    def _create_trial(self, tuner_id: str) -> Trial:
        if tuner_id in self.ongoing_trials:  # asked by several, or the lock was lost after all was written
            return self.ongoing_trials[tuner_id]
        self._join()
        self._take_over()
        if self._retry_queue:
            self._begin_again(self._retry_queue[-1])
        with self._kerastuner():
            trial = super().create_trial(tuner_id)
        # Raised here: KerasTuner would keep its lock for ever.
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        if trial.status == TrialStatus.STOPPED and self._others and self._over() is None:
            trial.status = TrialStatus.IDLE  # whoever runs the others may yet fail to
        return trial

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        try:
            self.stop_reason = self._over()
            values = None if self.stop_reason else self._propose(trial_id)
        except Exception as error:
            self._trouble, values = error, None
        return self._answer(values)

    def _answer(self, values: spaces.Values | None) -> dict[str, Any]:
        if values is None:
            return {"status": TrialStatus.STOPPED, "values": None}
        return {"status": TrialStatus.RUNNING, "values": values}

    def _propose(self, trial_id: str, extra: spaces.Values | None = None) -> spaces.Values | None:
        """Values that no trial had, with `extra`, written to the database; None when there are none left."""
        extra = extra or {}
        tried = {self._mark(trial.hyperparameters.values) for trial in self.trials.values()}
        size = self._count_points()
        waiting = self._base.start_points() > 0
        if not waiting and size is not None and self._all_tried(tried, size):
            self.stop_reason = "every point of the space was tried"
            return None
        if self.plan.grid and not waiting:
            return self._next_point(trial_id, tried, extra)
        space, names = self.hyperparameters.space, self._names()
        for attempt in range(_MOST_REPEATS):
            seed = sampling.seed_of(self._seed, self.worker, len(self.trials), attempt)
            # A model that is sure of itself proposes one point again and again; the space has others.
            kind = self.plan.sampler if attempt < _SURE else "random"
            sampler = sampling.make_sampler(kind, seed, self._startup)
            if sampling.learns(sampler):
                sampling.give(sampler, self._base.learnt())
            number, values = self._base.ask(sampler, space, names)
            if self._mark(values) not in tried:
                self._base.propose(number, trial_id, values | extra, self._join(), sampling.learnt(sampler))
                self._numbers[trial_id] = number
                return values | extra
            self._base.drop(number, "these values were tried before")
            if size is not None and not self._base.start_points():
                left = [point for point in spaces.points(space) or () if self._mark(point) not in tried]
                if not left:
                    break
                return self._place(trial_id, left[np.random.default_rng(seed).integers(len(left))] | extra)
        self.stop_reason = "the sampler proposes nothing new"
        return None

    def _next_point(self, trial_id: str, tried: set[str], extra: spaces.Values) -> spaces.Values | None:
        signature = self._signature()
        if self._points is None or self._points[0] != signature:
            self._points = signature, spaces.points(self.hyperparameters.space, grid=True)
        for values in self._points[1]:
            if self._mark(values) not in tried:
                return self._place(trial_id, values | extra)
        self.stop_reason = "every point of the grid was tried"
        return None

    def _place(self, trial_id: str, values: spaces.Values) -> spaces.Values:
        number = self._base.place(trial_id, values, self.hyperparameters.space, self._names(), self._join())
        self._numbers[trial_id] = number
        return values

    def _begin_again(self, trial_id: str) -> None:
        trial = self.trials[trial_id]
        trial.metrics = type(trial.metrics)()
        trial.score, trial.best_step, trial.message = None, 0, None
        self.ended_early.pop(trial_id, None)
        self._results.pop(trial_id, None)
        self._place(trial_id, trial.hyperparameters.values)

    def enqueue(self, values: spaces.Values) -> None:
        """A start point: tried before the sampler proposes. What it leaves open is sampled; the same twice counts once.

        Args:
            values: by the names that the hypermodel uses.

        Raises:
            ValueError: a name that is not in the space, or a value that is not in the range.
        """
        names, drawn, used = self._names(), {}, set()
        for index, parameter in enumerate(self.hyperparameters.space):
            conditions = [c for c in parameter.conditions if c.name in values]
            if parameter.name not in values or not all(c.is_active(values) for c in conditions):
                continue
            used.add(parameter.name)
            if spaces.distribution(parameter) is not None:
                drawn[names[index]] = spaces.to_study(parameter, values[parameter.name])
        for name in values:
            if name not in used:
                raise ValueError(
                    f"`values` must have names of active hyperparameters. Received: {name!r}"
                    + checks.did_you_mean(name, {p.name for p in self.hyperparameters.space})
                )
        self._base.enqueue(drawn)

    # Trials report and end

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        with self._lock:
            metrics = {name: float(value) for name, value in metrics.items()}
            if len(self._objectives()) > 1 and self.objective.has_value(metrics):
                metrics.setdefault(self.objective.name, self.objective.get_value(metrics))
            # Outside KerasTuner's lock, which an error would leave closed.
            self._check_objective_found(metrics)
            trial = super().update_trial(trial_id, metrics, step)
            value = self.objective.get_value(metrics)
            if math.isfinite(value):
                reason = self._report(trial_id, int(step), value)
                if reason:
                    self.ended_early[trial_id] = reason
                    trial.status = TrialStatus.STOPPED
            for watcher in self.watchers:
                watcher.epoch_ended(trial, metrics, int(step))
            return trial

    def _report(self, trial_id: str, step: int, value: float) -> str | None:
        """Why the trial is to end after its epoch, if it is."""
        if trial_id not in self._lost:
            try:
                self._base.report(self._numbers[trial_id], step, value)
            except database.TakenOverError:
                self._lost.add(trial_id)
        if trial_id in self._lost:
            return "another process runs it again, because it had heard nothing of this one"
        self._epochs += 1
        return self._reason_to_end(trial_id, step)

    def has_reports(self, trial_id: str) -> bool:
        """Whether the objective of a trial was reported in this run of it."""
        return self.trials[trial_id].metrics.exists(self.objective.name)

    def set_result(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        """What a trial returned in the end: its score, whatever its epochs reported. Their curves stay."""
        with self._lock:
            if not self.has_reports(trial_id):
                return self.update_trial(trial_id, metrics, step)
            self._check_objective_found({self.objective.name: 0.0, **metrics})
            trial = self.trials[trial_id]
            for name, value in metrics.items():
                if not trial.metrics.exists(name):
                    trial.metrics.update(name, value, step=step)
            self._results[trial_id] = metrics
            return trial

    def score_trial(self, trial: Trial) -> None:
        super().score_trial(trial)
        if trial.trial_id in self._results:
            trial.score = self.objective.get_value(self._results[trial.trial_id])

    def _reason_to_end(self, trial_id: str, step: int) -> str | None:
        pruner = self.plan.pruner
        if (
            pruner is not None
            and len(self._objectives()) == 1
            and self._base.should_end(self._numbers[trial_id], pruner)
        ):
            return f"pruned at epoch {step + 1}"
        over = self._over()
        return f"ended at epoch {step + 1}: {over}" if over else None

    def end_trial(self, trial: Trial) -> None:
        with self._lock:
            trial_id = trial.trial_id
            early = self.ended_early.get(trial_id)
            if trial.status == TrialStatus.COMPLETED and early:
                trial.message = early
            self._idle_until = 0.0
            try:
                if trial_id in self._lost:
                    raise database.TakenOverError
                with self._kerastuner():
                    super().end_trial(trial)
                self._base.exclusively(lambda: self._write_end(trial_id, early))
                ended = self.trials[trial_id]
            except database.TakenOverError:
                ended = trial
                self._give_up(trial_id)
            for watcher in self.watchers:
                watcher.trial_ended(ended, trial_id not in self.trials or ended.status == TrialStatus.INVALID)
        self._raise_if_too_many_failed()

    @contextlib.contextmanager
    def _kerastuner(self) -> Iterator[None]:
        """In KerasTuner's hands: its lock is closed, and an error would leave it so."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _write_end(self, trial_id: str, early: str | None) -> None:
        ended, number = self.trials[trial_id], self._numbers[trial_id]
        if ended.status == TrialStatus.INVALID:
            self._base.drop(number, ended.message or "it is tried again", failed=True)
        else:
            self._base.finish(number, self._record(ended, number, early))
            self._known[trial_id] = number
        facts = self._base.facts()
        self._read_space(facts)
        self._read_seconds(facts)
        self._keep("space", self.hyperparameters.get_config(), facts)
        self._keep("seconds", self._seconds, facts)

    def _give_up(self, trial_id: str) -> None:
        """Forgets the run of a trial that another process took."""
        self._say(f"Search: trial {trial_id} runs in another process, which had heard nothing of this one")
        self._lost.discard(trial_id)
        self.ended_early.pop(trial_id, None)
        self.trials.pop(trial_id, None)
        self.ongoing_trials = {who: t for who, t in self.ongoing_trials.items() if t.trial_id != trial_id}
        self.refresh()

    def _record(self, trial: Trial, number: int, early: str | None) -> dict[str, Any]:
        state, values = "FAIL", None
        if trial.status == TrialStatus.COMPLETED:
            best = [self._value(trial, objective.name) for objective in self._objectives()]
            made = sampling.make_sampler(self.plan.sampler, 0, self._startup) if early else None
            complete = made is None or sampling.tells_best_value(self.plan.sampler, made)
            state, values = ("COMPLETE", best) if complete else ("PRUNED", None)
        return {"trial": json.loads(json.dumps(trial.get_state(), default=float)), "state": state, "values": values,
                "ended_early": early, "order": self._base.ended_before(number) + 1}  # fmt: skip

    def _value(self, trial: Trial, name: str) -> float:
        if trial.trial_id in self._results:
            return float(self._results[trial.trial_id][name])
        at = [float(o.mean()) for o in trial.metrics.get_history(name) if o.step == trial.best_step]
        return at[0] if at else float(trial.metrics.get_best_value(name))

    def _check_consecutive_failures(self) -> None:
        """Nothing yet: KerasTuner's lock is held here, and an error would leave it closed."""

    def _raise_if_too_many_failed(self) -> None:
        limit = self.max_consecutive_failed_trials
        last = [self.trials[trial_id] for trial_id in self.end_order[-limit:]] if limit else []
        if limit and len(last) == limit and all(trial.status == TrialStatus.FAILED for trial in last):
            raise RuntimeError(f"{limit} trials in a row failed. The last one: {last[-1].message or ''}")

    # Budgets

    def _over(self) -> str | None:
        if self.time_budget is not None and self._elapsed() >= self.time_budget:
            return f"the time budget of {self.time_budget:g} s is spent"
        if self.epoch_budget is not None and self._epochs >= self.epoch_budget:
            return f"the budget of {self.epoch_budget} epochs is spent"
        if self.patience is not None and self._since_best() >= self.patience:
            return f"{self.patience} trials in a row were no better"
        return None

    def _since_best(self) -> int:
        best, since = None, 0
        for trial_id in self.end_order:
            score = self.trials[trial_id].score
            if score is not None and (best is None or self.objective.better_than(score, best)):
                best, since = score, 0
            else:
                since += 1
        return since

    # Small parts

    @property
    def verbose(self) -> int:
        """Whether to say how the search goes, 0 or 1; KerasTuner's own lines stay away where a watcher shows it."""
        return self._verbose

    @verbose.setter
    def verbose(self, value: Any) -> None:
        self._verbose = 1 if value == "auto" else int(value)
        self._display.verbose = 0 if self._shown_elsewhere else self._verbose

    def show_elsewhere(self) -> None:
        """Keeps KerasTuner's own lines about each trial away."""
        self._shown_elsewhere = True
        self.verbose = self._verbose

    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        if self._database is not None and not self._busy:
            self.refresh()
        return super().get_best_trials(num_trials)

    def pareto_trials(self) -> list[Trial]:
        """The trials that no other beats in every objective."""
        return [self.trials[trial_id] for trial_id in self._base.pareto()]

    def _names(self) -> dict[int, str]:
        facts = self._base.facts()
        known = dict(facts.get("names", {}))
        names = {}
        for index, parameter in enumerate(self.hyperparameters.space):
            name, described = spaces.study_name(parameter), spaces.describe(parameter)
            while name in known and not spaces.means_the_same(known[name], described):
                name += "'"
            known[name] = known.get(name, described)
            names[index] = name
        self._keep("names", known, facts)
        return names

    def _mark(self, values: spaces.Values) -> str:
        active: spaces.Values = {}
        for parameter in self.hyperparameters.space:
            if parameter.name in values and spaces.is_active(parameter, active):
                active[parameter.name] = values[parameter.name]
        return self._compute_values_hash(active)

    def _signature(self) -> str:
        space = self.hyperparameters.space
        return json.dumps([[spaces.study_name(p), spaces.describe(p)] for p in space])

    def _count_points(self) -> int | None:
        signature = self._signature()
        if self._size[0] != signature:
            found = spaces.points(self.hyperparameters.space)
            count = None if found is None else sum(1 for _ in itertools.islice(found, _MOST_POINTS + 1))
            self._size = signature, None if count is None or count > _MOST_POINTS else count
        return self._size[1]

    def _all_tried(self, tried: set[str], size: int) -> bool:
        if len(tried) < size:
            return False
        return all(self._mark(point) in tried for point in spaces.points(self.hyperparameters.space) or ())
