"""Population-based training: weights and hyperparameters together, in generations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras_tuner.engine.trial import Trial, TrialStatus

from keras_trainkit import schedules
from keras_trainkit.callbacks.optimizers import innermost
from keras_trainkit.core import backend, checks
from keras_trainkit.tuning import perturbing, sampling, spaces
from keras_trainkit.tuning.hyperband import WaitingOracle
from keras_trainkit.tuning.tuner import Tuner

_ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)
_MEMBER, _GENERATION, _PARENT = "tuner/member", "tuner/generation", "tuner/trial_id"


class PopulationOracle(WaitingOracle):
    """Members and generations of a population. They follow from the trials; nothing else is kept.

    A generation begins when all members of the one before have ended. Draws are a function of the seed, the generation
    and the member, so a search that was killed goes on alike.
    """

    def __init__(
        self,
        population_size: int,
        generations: int,
        max_epochs: int,
        quantile_fraction: float,
        perturbation_factors: Sequence[float],
        resample_probability: float,
        perturb: Sequence[str] | None,
        **kwargs: Any,
    ) -> None:
        checks.integer("generations", generations, at_least=1)
        super().__init__(max_epochs=checks.integer("max_epochs", max_epochs, at_least=generations), **kwargs)
        if len(self._objectives()) > 1:
            raise ValueError("`objective` must be one for population-based training. Received: several")
        self.population_size = checks.integer("population_size", population_size, at_least=2)
        self.generations = generations
        self.quantile_fraction = checks.number("quantile_fraction", quantile_fraction, above=0, at_most=0.5)
        self.perturbation_factors = [
            checks.number("perturbation_factors", factor, above=0) for factor in perturbation_factors
        ]
        if not self.perturbation_factors:
            raise ValueError("`perturbation_factors` must hold a number. Received: none")
        self.resample_probability = checks.number("resample_probability", resample_probability, at_least=0, at_most=1)
        self.perturb = None if perturb is None else list(perturb)

    def epochs(self, generation: int) -> int:
        """After how many epochs of a whole training a generation ends."""
        assert self.max_epochs is not None
        return math.ceil(self.max_epochs * (generation + 1) / self.generations)

    def members(self, generation: int) -> dict[int, Trial]:
        """The trials of a generation, by member."""
        found = {}
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            if values[_GENERATION] == generation:
                found[values[_MEMBER]] = trial
        return found

    def score_trial(self, trial: Trial) -> None:
        """A member is worth what its weights are worth that others may inherit: those of its last epoch."""
        super().score_trial(trial)
        history = trial.metrics.get_history(self.objective.name)
        if history and trial.trial_id not in self._results:
            trial.score, trial.best_step = float(history[-1].mean()), history[-1].step

    def ranked(self, generation: int) -> list[Trial]:
        """The trials of a generation that were completed, the best first."""
        done = [t for t in self.members(generation).values() if t.status == TrialStatus.COMPLETED]
        return sorted(done, key=lambda trial: trial.score, reverse=self.objective.direction == "max")

    def needed(self) -> set[str]:
        """The trials that a later one may inherit from: of the last generation, and while it runs of the one before."""
        last = max((t.hyperparameters.values[_GENERATION] for t in self.trials.values()), default=0)
        return {trial.trial_id for number in (last - 1, last) for trial in self.members(number).values()}

    def _propose(self, trial_id: str, extra: spaces.Values | None = None) -> spaces.Values | None:
        self._wait = False
        for generation in range(self.generations):
            members = self.members(generation)
            free = [number for number in range(self.population_size) if number not in members]
            if free:
                return self._first(trial_id, free[0]) if generation == 0 else self._next(trial_id, generation, free[0])
            if any(trial.status not in _ENDED for trial in members.values()):
                self._wait = True
                return None
            if not self.ranked(generation):
                self.stop_reason = f"every member of generation {generation + 1} failed"
                return None
        self.stop_reason = f"all {self.generations} generations are through"
        return None

    def _first(self, trial_id: str, member: int) -> spaces.Values:
        place = self._place_of(0, member) | {"tuner/initial_epoch": 0}
        fresh = super()._propose(trial_id, place)
        if fresh is None:  # a small space; two members may begin alike
            rng = np.random.default_rng(sampling.seed_of(self._seed, 0, member))
            fresh = self._place(trial_id, perturbing.perturb(self.hyperparameters.space, {}, rng) | place)
        return fresh

    def _next(self, trial_id: str, generation: int, member: int) -> spaces.Values:
        before, ranked = self.members(generation - 1)[member], self.ranked(generation - 1)
        count = max(1, round(self.quantile_fraction * self.population_size))
        top, ahead = ranked[:count], self.population_size - count
        rng = np.random.default_rng(sampling.seed_of(self._seed, generation, member))
        place = self._place_of(generation, member) | {"tuner/initial_epoch": self.epochs(generation - 1)}
        falls_behind = before not in ranked or (ranked.index(before) >= ahead and before not in top)
        if not falls_behind:
            own = _own(before.hyperparameters.values)
            return self._place(trial_id, own | place | {_PARENT: before.trial_id})
        parent = top[int(rng.integers(len(top)))]
        values = perturbing.perturb(
            self.hyperparameters.space, _own(parent.hyperparameters.values), rng, names=self.perturb,
            factors=self.perturbation_factors, resample_probability=self.resample_probability,
        )  # fmt: skip
        return self._place(trial_id, values | place | {_PARENT: parent.trial_id})

    def _place_of(self, generation: int, member: int) -> spaces.Values:
        return {_GENERATION: generation, _MEMBER: member, "tuner/epochs": self.epochs(generation)}


class PopulationBasedTraining(Tuner):
    """Trains a population; those that fall behind go on from the weights of the best, with other hyperparameters.

    All members train to the end of a generation. Of the worst `quantile_fraction`, each then takes over weights and
    optimizer of one of the best, whose hyperparameters it perturbs; failed members do the same. The others go on as
    they are. So a search costs `population_size` trainings, and finds how hyperparameters ought to move during one:
    `get_lineage` and `learning_rate_schedule` tell. What a member did began with weights that other rates had made: to
    know what the schedule is worth, train with it from the start.

    The score of a trial is that of its last epoch, and its weights are those of that epoch, too.

    Give learning rates as numbers, which the search then moves; a schedule that spans the run works against it.
    Architecture must not change, because weights are inherited: leave its hyperparameters out of `perturb`. A member
    whose weights do not fit fails, and says so.

    Args:
        hypermodel: a `keras_tuner.HyperModel`, or a function of the hyperparameters that returns a compiled model.
        objective: a name or a `keras_tuner.Objective`.
        population_size: members, at least 2; the paper has 10 to 80.
        generations: of each member, at least 1.
        max_epochs: of a whole training, at least as many as generations.
        quantile_fraction: of the population that is replaced, and that is copied from; above 0, at most 0.5.
        perturbation_factors: one of them multiplies a number, above 0.
        resample_probability: of a hyperparameter to be drawn anew, from 0 to 1.
        perturb: names of the hyperparameters that may change; None is all of them.
        seed: an integer of at least 0; None draws one and keeps it.
        **kwargs: further arguments of `Oracle` and of `Tuner`, as in `RandomSearch`.

    Raises:
        ValueError, TypeError: an argument out of its range.

    Reference: Jaderberg et al. 2017, arXiv:1711.09846; truncation selection.
    """

    oracle: PopulationOracle

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        population_size: int = 10,
        generations: int = 10,
        max_epochs: int = 100,
        quantile_fraction: float = 0.2,
        perturbation_factors: Sequence[float] = (0.8, 1.2),
        resample_probability: float = 0.25,
        perturb: Sequence[str] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        from keras_trainkit.tuning.searches import OF_THE_ORACLE

        given = {name: kwargs.pop(name) for name in OF_THE_ORACLE if name in kwargs}
        oracle = PopulationOracle(
            population_size, generations, max_epochs, quantile_fraction, perturbation_factors, resample_probability,
            perturb, objective=objective, seed=seed, sampler="random", **given,
        )  # fmt: skip
        super().__init__(oracle, hypermodel, **kwargs)

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        values = trial.hyperparameters.values
        kwargs |= {"epochs": values["tuner/epochs"], "initial_epoch": values["tuner/initial_epoch"]}
        return super().run_trial(trial, *args, **kwargs)

    def get_lineage(self, trial: Trial | None = None) -> list[dict[str, Any]]:
        """The trials that a trial's weights went through, the first one first.

        Args:
            trial: None is the best one.

        Returns:
            For each its `trial`, `generation` (from 0 on), `member`, `initial_epoch`, `epochs` (at its end), `score`
            and the `values` of its hyperparameters.

        Raises:
            ValueError: no trial has been completed.
        """
        at: Trial | None = trial or next(iter(self.oracle.get_best_trials(1)), None)
        if at is None or at.status != TrialStatus.COMPLETED:
            raise ValueError("no trial has been completed, so that there is no lineage")
        found = []
        while at is not None:
            values = at.hyperparameters.values
            found.append({
                "trial": at.trial_id, "generation": values[_GENERATION], "member": values[_MEMBER],
                "initial_epoch": values["tuner/initial_epoch"], "epochs": values["tuner/epochs"], "score": at.score,
                "values": _own(values),
            })  # fmt: skip
            parent = values.get(_PARENT)
            at = None if parent is None else self.oracle.trials[parent]
        return found[::-1]

    def learning_rate_schedule(self, name: str = "learning_rate", trial: Trial | None = None) -> Any:
        """How the learning rate moved on the way to the best trial, as a schedule to train with from the start.

        Args:
            name: of the hyperparameter that is the rate; another number works, too.
            trial: None is the best one.

        Returns:
            A `schedules.Piecewise` in epochs, for `callbacks.ResolveSpans`; a number where the rate never moved.

        Raises:
            ValueError: there is no such number.
        """
        lineage = self.get_lineage(trial)
        rates = [step["values"].get(name) for step in lineage]
        if not all(isinstance(rate, int | float) and not isinstance(rate, bool) for rate in rates):
            raise ValueError(f"`name` must be a number in every trial of the lineage. Received: name={name!r}: {rates}")
        moves = [number for number in range(1, len(rates)) if rates[number] != rates[number - 1]]
        if not moves:
            return float(rates[0])
        boundaries = [f"{lineage[number]['initial_epoch']}ep" for number in moves]
        return schedules.Piecewise(boundaries, [float(rates[0]), *(float(rates[number]) for number in moves)])

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        results = super()._build_and_fit_model(trial, *args, **kwargs)
        # The best epoch's were saved so far; who inherits goes on from the last.
        self._trained.save_weights(self._get_checkpoint_fname(trial.trial_id))
        return results

    def _build_hypermodel(self, hp: Any) -> keras.Model:
        self._trained = super()._build_hypermodel(hp)
        return self._trained

    def _inherit(self, model: keras.Model, parent: str) -> None:
        rate = backend.learning_rate_argument(innermost(model.optimizer))
        try:
            super()._inherit(model, parent)
        except ValueError as error:
            raise ValueError(
                f"the weights of trial {parent} do not fit; `perturb` must leave out what changes the model. "
                f"({' '.join(str(error).split())})"
            ) from error
        # The parent's came with its optimizer.
        if backend.learning_rate_variable(innermost(model.optimizer)) is not None:
            innermost(model.optimizer).learning_rate = rate

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_trained": None}

    def _needed_checkpoints(self) -> set[str]:
        return self.oracle.needed()


def _own(values: spaces.Values) -> spaces.Values:
    """The values without the search's own."""
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}
