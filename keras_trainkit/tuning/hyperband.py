"""Hyperband: brackets of successive halving, from many short trials to few long ones."""

from __future__ import annotations

import math
from typing import Any

from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit.core import checks
from keras_trainkit.tuning import sampling, spaces
from keras_trainkit.tuning.oracle import Oracle
from keras_trainkit.tuning.tuner import Tuner

_ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)


class WaitingOracle(Oracle):
    """An oracle that has nothing to propose before others have ended: `_propose` then sets `_wait`."""

    _wait = False

    def _answer(self, values: spaces.Values | None) -> dict[str, Any]:
        if values is None and self._wait:
            return {"status": TrialStatus.IDLE, "values": None}
        return super()._answer(values)


class HyperbandOracle(WaitingOracle):
    """The brackets of Hyperband (Li et al. 2018, arXiv:1603.06560). They follow from the trials; nothing else is kept.

    A bracket s begins with ceil((S + 1) / (s + 1) * factor^s) trials of `max_epochs` / factor^s epochs, S being the
    largest s; each round the best 1 / factor of them go on, to `factor` times the epochs.
    """

    def __init__(self, max_epochs: int, factor: int, hyperband_iterations: int, **kwargs: Any) -> None:
        super().__init__(max_epochs=checks.integer("max_epochs", max_epochs, at_least=1), **kwargs)
        self.factor = checks.integer("factor", factor, at_least=2)
        self.hyperband_iterations = checks.integer("hyperband_iterations", hyperband_iterations, at_least=1)
        self.brackets = 1
        while self.factor**self.brackets <= max_epochs:
            self.brackets += 1

    def size(self, bracket: int, round_number: int) -> int:
        """How many trials a round of a bracket has."""
        first = math.ceil(self.brackets / (bracket + 1) * self.factor**bracket)
        return max(1, first // self.factor**round_number)

    def epochs(self, bracket: int, round_number: int) -> int:
        """After how many epochs a round of a bracket ends."""
        assert self.max_epochs is not None
        return math.ceil(self.max_epochs / self.factor ** (bracket - round_number))

    def unfinished(self) -> set[str]:
        """The trials of brackets that are not through: others may go on from their weights."""
        members: dict[tuple[int, int], list[Trial]] = {}
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            members.setdefault((values["tuner/iteration"], values["tuner/bracket"]), []).append(trial)
        found: set[str] = set()
        for (_, bracket), trials in members.items():
            last = [t for t in trials if t.hyperparameters.values["tuner/round"] == bracket]
            if len(last) < self.size(bracket, bracket) or any(t.status not in _ENDED for t in last):
                found |= {trial.trial_id for trial in trials}
        return found

    def _propose(self, trial_id: str, extra: spaces.Values | None = None) -> spaces.Values | None:
        self._wait = False
        for iteration in range(self.hyperband_iterations):
            for bracket in reversed(range(self.brackets)):
                values = self._from_bracket(trial_id, iteration, bracket)
                if values is not None:
                    self.stop_reason = None
                    return values
        self._wait = bool(self.ongoing_trials or self._others)
        self.stop_reason = self.stop_reason or "all brackets are through"
        return None

    def _from_bracket(self, trial_id: str, iteration: int, bracket: int) -> spaces.Values | None:
        rounds: list[list[Trial]] = [[] for _ in range(bracket + 1)]
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            if (values["tuner/iteration"], values["tuner/bracket"]) == (iteration, bracket):
                rounds[values["tuner/round"]].append(trial)
        place = {"tuner/iteration": iteration, "tuner/bracket": bracket}
        expected = self.size(bracket, 0)
        if len(rounds[0]) < expected:
            fresh = super()._propose(trial_id, {
                **place, "tuner/round": 0, "tuner/initial_epoch": 0, "tuner/epochs": self.epochs(bracket, 0),
            })  # fmt: skip
            if fresh is not None:
                return fresh
            expected = len(rounds[0])  # the space has no more
        for number in range(1, bracket + 1):
            failed = sum(trial.status == TrialStatus.FAILED for trial in rounds[number - 1])
            alive = expected - failed
            wanted = min(self.size(bracket, number), alive)
            taken = {trial.hyperparameters.values["tuner/trial_id"] for trial in rounds[number]}
            ready = [t for t in rounds[number - 1] if t.status == TrialStatus.COMPLETED and t.trial_id not in taken]
            # So many are ready that the best of them goes on whatever the others will score.
            if len(taken) < wanted and len(ready) > alive - wanted:
                best = self._best(ready)
                return self._place(trial_id, best.hyperparameters.values | place | {
                    "tuner/trial_id": best.trial_id, "tuner/round": number,
                    "tuner/initial_epoch": self.epochs(bracket, number - 1),
                    "tuner/epochs": self.epochs(bracket, number),
                })  # fmt: skip
            expected = wanted
        return None

    def _best(self, trials: list[Trial]) -> Trial:
        pick = max if self.objective.direction == "max" else min
        return pick(trials, key=lambda trial: trial.score)


class Hyperband(Tuner):
    """Many short trials, of which the best go on: with their weights, and with the state of their optimizer.

    Args:
        hypermodel: a `keras_tuner.HyperModel`, or a function of the hyperparameters that returns a compiled model.
        objective: a name, a `keras_tuner.Objective`, or a list of these.
        max_epochs: of a whole training, at least 1.
        factor: of the epochs from round to round; one in `factor` trials goes on. At least 2.
        hyperband_iterations: how often all brackets are gone through, at least 1.
        seed: an integer of at least 0; None draws one and keeps it.
        sampler: what proposes the first round of each bracket; `"tpe"` learns from earlier ones.
        **kwargs: further arguments of `Oracle` and of `Tuner`, as in `RandomSearch`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_epochs: int = 100,
        factor: int = 3,
        hyperband_iterations: int = 1,
        seed: int | None = None,
        sampler: sampling.Sampler = "random",
        **kwargs: Any,
    ) -> None:
        from keras_trainkit.tuning.searches import OF_THE_ORACLE

        given = {name: kwargs.pop(name) for name in OF_THE_ORACLE if name in kwargs}
        oracle = HyperbandOracle(
            max_epochs, factor, hyperband_iterations, objective=objective, seed=seed, sampler=sampler, **given
        )
        super().__init__(oracle, hypermodel, **kwargs)

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        values = trial.hyperparameters.values
        kwargs |= {"epochs": values["tuner/epochs"], "initial_epoch": values["tuner/initial_epoch"]}
        return super().run_trial(trial, *args, **kwargs)

    def _needed_checkpoints(self) -> set[str]:
        return self.oracle.unfinished()
