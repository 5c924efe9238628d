"""The database of a search: every proposal, learning curve and outcome, written before anything else depends on it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import optuna
from keras_tuner.engine import hyperparameters as types
from optuna.trial import FrozenTrial, TrialState

from keras_trainkit.tuning import connections, spaces
from keras_trainkit.tuning.running import workers

# Seconds after which a search gives up a database that does not answer.
LONGEST_OUTAGE = 600.0
_PROPOSAL, _RECORD, _REASON, _FAILED, _WORKER = "proposal", "record", "reason", "failed", "worker"
_LEARNT = "learnt"
# What Optuna raises where an ended trial is written to; in old versions it has no name of its own.
_FINISHED = getattr(optuna.exceptions, "UpdateFinishedTrialError", RuntimeError)
_T = TypeVar("_T")


class TakenOverError(RuntimeError):
    """A trial is no longer this process's: the others had given it up, and one of them runs it again."""


class Database:
    """A study of Optuna, in which each trial knows KerasTuner's identifier, its values and, once it ended, its record.

    A trial that runs again has several entries in the study; the last one counts.

    Args:
        url: of the database, or a storage of Optuna; None keeps it in memory.
        name: of the study.
        directions: `"minimize"` or `"maximize"` for each objective.
        overwrite: removes a study of this name first.
        grace_period: seconds without a sign of life after which a process counts as dead.
        say: prints a line.

    Raises:
        ConnectionError: the database does not answer, or turns this user away.
        ValueError: `overwrite`, and another process works on the study.
    """

    def __init__(
        self,
        url: Any,
        name: str,
        directions: Sequence[Any],
        *,
        overwrite: bool = False,
        grace_period: float = 60.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._opened = connections.Opened(url)
        self.storage = self._opened.storage
        self.grace_period = grace_period
        self._name, self._say = name, say
        self._up_since = time.monotonic() - (0.0 if self._opened.has_outages else grace_period)
        self._held = threading.local()
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with self._opened.lock(name):
                if overwrite:
                    self._remove(name)
                self.study = optuna.create_study(
                    storage=self.storage, study_name=name, directions=list(directions), load_if_exists=True,
                    pruner=optuna.pruners.NopPruner(),
                )  # fmt: skip
        finally:
            optuna.logging.set_verbosity(level)
        self._study = self.storage.get_study_id_from_name(name)

    def _remove(self, name: str) -> None:
        if name not in [study.study_name for study in self.storage.get_all_studies()]:
            return
        self._study = self.storage.get_study_id_from_name(name)
        if alive := self.working(self.storage.get_study_user_attrs(self._study)):
            raise ValueError(
                f"`overwrite=True` would remove the search {name!r}, on which others work: {len(alive)}. "
                "Start it with `overwrite=True` once, and on all other machines without"
            )
        self.storage.delete_study(self._study)

    # Several processes

    def exclusively(self, action: Callable[[], _T]) -> _T:
        """Runs an action while no other process, on any machine, is in one; again from its start after an outage."""

        def locked() -> _T:
            with self._opened.lock(self._name) as lock:
                self._held.lock = lock
                try:
                    return action()
                finally:
                    self._held.lock = None

        return action() if self._lock is not None else self.patiently(locked)

    def patiently(self, action: Callable[[], _T]) -> _T:
        """Runs an action that may be repeated, and waits where the database does not answer.

        Raises:
            ConnectionError: it did not answer for too long.
        """
        if self._lock is not None:
            return action()  # whoever took the lock must take it again
        since: float | None = None
        while True:
            try:
                return action()
            except Exception as error:
                if not connections.is_outage(error):
                    raise
                since = self._wait(error, since)

    def _wait(self, error: Exception, since: float | None) -> float:
        """A while, in an outage that began at `since`; when it began."""
        now, reason = time.monotonic(), connections.first_line(error)
        if since is None:
            since = now
            self._say(f"Search: the database does not answer ({reason}); waits for it")
        if now - since > LONGEST_OUTAGE:
            raise ConnectionError(
                f"the database did not answer for {LONGEST_OUTAGE:g} s: {reason}. "
                "Run the same program again when it does; nothing that it has is lost"
            ) from error
        self._opened.forget_connections()
        time.sleep(min(5.0, 0.2 + 0.2 * (now - since)))
        # Nobody was able to leave signs of life; from now on they are.
        self._up_since = time.monotonic()
        return since

    @property
    def _lock(self) -> connections.Lock | None:
        return getattr(self._held, "lock", None)

    def write_signs(self, name: str, signs: dict[str, Any]) -> None:
        """Keeps a worker's signs of life."""
        self.storage.set_study_user_attr(self._study, name, {**signs, "beat": self._opened.now()})

    def working(self, facts: dict[str, Any]) -> set[str]:
        """The workers that are alive, by their tokens."""
        now = self._opened.now()
        # After an outage nobody has been able to write: they get their time before they are given up.
        seen = time.monotonic() - self._up_since
        prefix = workers.key("")
        alive = set()
        for name, signs in facts.items():
            if name.startswith(prefix):
                token = name.removeprefix(prefix)
                if workers.is_alive(token, signs, min(now - signs["beat"], seen), self.grace_period):
                    alive.add(token)
        return alive

    # The search as a whole

    def facts(self) -> dict[str, Any]:
        """What is known of the search as a whole: its space, settings and time."""
        return self.patiently(lambda: self.storage.get_study_user_attrs(self._study))

    def set_fact(self, name: str, value: Any) -> None:
        """Writes one of the facts."""
        self.patiently(lambda: self.storage.set_study_user_attr(self._study, name, value))

    # Trials

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

    def propose(self, number: int, trial_id: str, values: spaces.Values, worker: str, learnt: Any = None) -> None:
        """Makes a trial that was asked for the one that `trial_id` stands for, and that `worker` runs.

        `learnt` is what its sampler hands on to that of the next proposal.
        """
        self._check_lock()
        proposed = {"trial_id": trial_id, "values": values, _WORKER: worker}
        if learnt is not None:
            proposed[_LEARNT] = learnt
        self.storage.set_trial_user_attr(self._id(number), _PROPOSAL, proposed)

    def learnt(self) -> Any:
        """What the sampler of the last proposal handed on, if it did."""
        for trial in reversed(self.study.get_trials(deepcopy=False)):
            if _LEARNT in trial.user_attrs.get(_PROPOSAL, {}):
                return trial.user_attrs[_PROPOSAL][_LEARNT]
        return None

    def place(
        self,
        trial_id: str,
        values: spaces.Values,
        space: Sequence[types.HyperParameter],
        names: dict[int, str],
        worker: str,
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
            user_attrs={_PROPOSAL: {"trial_id": trial_id, "values": values, _WORKER: worker}},
        )  # fmt: skip
        self._check_lock()
        made = self.storage.create_new_trial(self._study, template_trial=template)
        self._check_lock()  # Optuna tries again by itself
        return self.storage.get_trial(made).number

    def report(self, number: int, step: int, value: float) -> None:
        """Writes one point of a learning curve.

        Raises:
            TakenOverError: another process runs the trial.
        """
        try:
            self.patiently(lambda: self.storage.set_trial_intermediate_value(self._id(number), step, value))
        except _FINISHED as error:
            raise TakenOverError(f"entry {number} of the study was ended by another process") from error

    def should_end(self, number: int, pruner: optuna.pruners.BasePruner) -> bool:
        """Whether the pruner would end a trial after its last report."""
        return self.patiently(lambda: pruner.prune(self.study, self.storage.get_trial(self._id(number))))

    def finish(self, number: int, record: dict[str, Any]) -> None:
        """Writes how a trial ended: `trial` (KerasTuner's state), `state` and `values` for the study.

        The record is there before the state changes; a kill in between is made good when the search goes on. Writing
        the same again does no harm.

        Raises:
            TakenOverError: another process runs the trial.
        """
        self._check_lock()
        with self._ending(number, _RECORD):
            self.storage.set_trial_user_attr(self._id(number), _RECORD, record)
            self._tell(number, record)

    def drop(self, number: int, reason: str, *, failed: bool = False) -> None:
        """Ends an entry that counts for nothing: a repeated proposal, or a run that is to be tried again.

        Args:
            number: of the entry.
            reason: why.
            failed: it was a trial's own fault, and counts as one of its tries.

        Raises:
            TakenOverError: another process runs the trial.
        """
        self._check_lock()
        with self._ending(number, _REASON):
            self.storage.set_trial_user_attr(self._id(number), _REASON, reason)
            if failed:
                self.storage.set_trial_user_attr(self._id(number), _FAILED, True)
            self.study.tell(number, state=TrialState.FAIL)

    def latest(self, alive: Callable[[FrozenTrial], bool]) -> dict[str, FrozenTrial]:
        """The entry that counts for each of KerasTuner's trials, in the order in which they were first proposed.

        Entries that a kill left behind are put in order first; so this belongs into `exclusively`.

        Args:
            alive: whether somebody works on a running entry.
        """
        found: dict[str, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state is TrialState.RUNNING and not alive(trial):
                if _RECORD in trial.user_attrs:
                    self._tell(trial.number, trial.user_attrs[_RECORD])
                else:
                    self.drop(trial.number, "the search was ended while it ran")
                    self._enqueue_again(trial)
                trial = self.storage.get_trial(self._id(trial.number))
            if _PROPOSAL in trial.user_attrs:
                found[trial.user_attrs[_PROPOSAL]["trial_id"]] = trial
        return found

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """A start point that was taken from the queue, and became nobody's, must not be lost."""
        if _PROPOSAL not in trial.user_attrs and "fixed_params" in trial.system_attrs:
            self.study.enqueue_trial(trial.system_attrs["fixed_params"])

    def tries(self) -> dict[str, int]:
        """How often each of KerasTuner's trials failed and was to be tried again."""
        counts: dict[str, int] = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            if _FAILED in trial.user_attrs:
                trial_id = trial.user_attrs[_PROPOSAL]["trial_id"]
                counts[trial_id] = counts.get(trial_id, 0) + 1
        return counts

    def ended_before(self, number: int) -> int:
        """How many trials have a record, without that of one entry, which may have been written already."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(_RECORD in trial.user_attrs for trial in trials if trial.number != number)

    def epochs(self) -> int:
        """Points of all learning curves, of runs that were tried again, too."""
        return sum(len(trial.intermediate_values) for trial in self.study.get_trials(deepcopy=False))

    def enqueue(self, drawn: dict[str, Any]) -> None:
        """A start point, tried before the sampler proposes; the same one is not taken twice."""
        self.exclusively(lambda: self.study.enqueue_trial(drawn, skip_if_exists=True))

    def start_points(self) -> int:
        """How many start points wait."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def pareto(self) -> list[str]:
        """KerasTuner's identifiers of the trials that no other beats in every objective."""
        return [trial.user_attrs[_PROPOSAL]["trial_id"] for trial in self.study.best_trials]

    def _tell(self, number: int, record: dict[str, Any]) -> None:
        state = TrialState[record["state"]]
        self.study.tell(number, record["values"] if state is TrialState.COMPLETE else None, state=state)

    @contextlib.contextmanager
    def _ending(self, number: int, by: str) -> Iterator[None]:
        """An entry may have been ended before an outage, by the same words; but not by others."""
        try:
            yield
        except _FINISHED as error:
            if by not in self.storage.get_trial(self._id(number)).user_attrs:
                raise TakenOverError(f"entry {number} of the study was ended by another process") from error

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study, number)


def is_proposed(trial: FrozenTrial) -> bool:
    """Whether it is one of KerasTuner's trials; else it was being asked for."""
    return _PROPOSAL in trial.user_attrs


def worker_of(trial: FrozenTrial) -> str | None:
    """Who runs a trial, or ran it."""
    return trial.user_attrs[_PROPOSAL].get(_WORKER)


def proposal(trial: FrozenTrial) -> spaces.Values:
    """The values that a trial was proposed with."""
    return trial.user_attrs[_PROPOSAL]["values"]


def record(trial: FrozenTrial) -> dict[str, Any] | None:
    """How a trial ended; None while it has not."""
    return trial.user_attrs.get(_RECORD)
