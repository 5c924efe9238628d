"""The searches by name, with KerasTuner's arguments."""

from __future__ import annotations

from typing import Any

from keras_trainkit.tuning import sampling
from keras_trainkit.tuning.oracle import Oracle
from keras_trainkit.tuning.tuner import Tuner

OF_THE_ORACLE = ("hyperparameters", "tune_new_entries", "allow_new_entries", "max_retries_per_trial", "storage",
                  "max_consecutive_failed_trials", "time_budget", "epoch_budget", "patience", "pruner",
                  "grace_period")  # fmt: skip


class _Named(Tuner):
    """Sends the arguments that belong to the oracle there, the others to the tuner."""

    def __init__(self, hypermodel: Any, kwargs: dict[str, Any], **of_the_search: Any) -> None:
        given = {name: kwargs.pop(name) for name in OF_THE_ORACLE if name in kwargs}
        super().__init__(Oracle(**{**of_the_search, **given}), hypermodel, **kwargs)


class RandomSearch(_Named):
    """Draws each hyperparameter independently; no point of a finite space twice.

    Args:
        hypermodel: a `keras_tuner.HyperModel`, or a function of the hyperparameters that returns a compiled model.
        objective: a name, a `keras_tuner.Objective`, or a list of these.
        max_trials: the budget in trials.
        seed: an integer of at least 0; None draws one and keeps it.
        **kwargs: further arguments of `Oracle` (`pruner`, `time_budget`, `epoch_budget`, `patience`, `storage` and
            KerasTuner's own) and of `Tuner` (`workers`, `directory`, `project_name` and so on).
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = 10,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(hypermodel, kwargs, objective=objective, max_trials=max_trials, seed=seed, sampler="random")


class GridSearch(_Named):
    """Tries every point of the space in order: under a condition only the values that are active.

    A range without a step is cut into 10 values. A search that was killed goes on with the points that are left.

    Args:
        hypermodel, objective, seed, kwargs: as in `RandomSearch`.
        max_trials: ends the search before the space does; None is the whole space.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hypermodel, kwargs, objective=objective, max_trials=max_trials, seed=seed, sampler="random", grid=True
        )


class TPESearch(_Named):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; multivariate, in groups: Falkner et al. 2018).

    For spaces with choices and conditions. Choices of numbers are ordered.

    Args:
        hypermodel, objective, max_trials, seed, kwargs: as in `RandomSearch`.
        num_initial_points: how many trials are random before the model proposes; None is 10.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = 10,
        num_initial_points: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hypermodel, kwargs, objective=objective, max_trials=max_trials, seed=seed, sampler="tpe",
            startup=num_initial_points,
        )  # fmt: skip


class BayesianOptimization(_Named):
    """Gaussian process with expected improvement, Optuna's; without torch it is `TPESearch`, and says so.

    For spaces of up to some 20 numbers without conditions. Trials that end early are told with their best value, since
    the process looks at complete trials only and would propose again what was pruned.

    Args:
        hypermodel, objective, max_trials, seed, kwargs: as in `RandomSearch`.
        num_initial_points: how many trials are random before the model proposes; None is 10.
        alpha: taken for KerasTuner's sake and not used: the process fits the noise itself.
        beta: likewise: expected improvement has no such balance.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = 10,
        num_initial_points: int | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        there = sampling.gp_is_there()
        if not there:
            print(
                "BayesianOptimization: torch, which the Gaussian process needs, is not installed; TPE proposes instead"
            )
        super().__init__(
            hypermodel, kwargs, objective=objective, max_trials=max_trials, seed=seed,
            sampler="gp" if there else "tpe", startup=num_initial_points,
        )  # fmt: skip


class SuccessiveHalving(_Named):
    """TPE, with trials ended at epochs that grow by a factor unless they are among the best there so far.

    Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934): nobody waits for a rung to fill.

    Args:
        hypermodel, objective, max_trials, seed, kwargs: as in `RandomSearch`.
        max_epochs: of a whole training; `search` trains as many unless it is given `epochs`.
        min_epochs: before the first trial may end; None is a thirteenth of `max_epochs`, at least 2.
        factor: of the epochs from rung to rung, and the share of trials that goes on, at least 2.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = 10,
        max_epochs: int = 100,
        min_epochs: int | None = None,
        factor: int = 2,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hypermodel, kwargs, objective=objective, max_trials=max_trials, seed=seed, sampler="tpe",
            max_epochs=max_epochs, pruner=sampling.halving(max_epochs, min_epochs, factor),
        )  # fmt: skip

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        super().search(*fit_args, **{"epochs": self.oracle.max_epochs, **fit_kwargs})


class Search(_Named):
    """Picks sampler and pruner by the space and the budget, and prints why.

    A space with no more points than trials is tried whole. Up to 20 numbers without conditions go to the Gaussian
    process, if torch is there, all else to TPE. With `max_epochs` successive halving ends what falls behind.

    Args:
        hypermodel, objective, max_trials, seed, kwargs: as in `RandomSearch`.
        max_epochs: of a whole training; None prunes nothing.
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        max_trials: int | None = 10,
        max_epochs: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hypermodel, kwargs, objective=objective, max_trials=max_trials, seed=seed, max_epochs=max_epochs,
        )  # fmt: skip

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        epochs = {} if self.oracle.max_epochs is None else {"epochs": self.oracle.max_epochs}
        super().search(*fit_args, **{**epochs, **fit_kwargs})
