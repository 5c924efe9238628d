"""Which sampler proposes, with which seed, and which pruner ends trials early: by name, or by the space and budget."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import optuna
from keras_tuner.engine import hyperparameters as types

from keras_trainkit.core import checks
from keras_trainkit.tuning import spaces

SAMPLERS = ("auto", "random", "tpe", "gp")
LARGEST_FOR_GP = 20
_KERNELS = "_gprs_cache_list"
_SHORT = 40
Sampler = str | Callable[[int], optuna.samplers.BaseSampler]


@dataclass(frozen=True)
class Plan:
    """What proposes and what prunes, and why."""

    sampler: Sampler
    pruner: optuna.pruners.BasePruner | None
    reasons: tuple[str, ...] = ()
    grid: bool = False


def seed_of(seed: int, worker: int, trials: int, attempt: int = 0) -> int:
    """The seed of one proposal: it does not depend on what this process drew before, so a resumed search goes on alike.

    >>> seed_of(0, 0, 3) == seed_of(0, 0, 3), seed_of(0, 0, 3) == seed_of(1, 0, 2)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, worker, trials, attempt]).generate_state(1)[0])


def gp_is_there() -> bool:
    """Whether torch, which Optuna's Gaussian process needs, is installed."""
    return importlib.util.find_spec("torch") is not None


def make_sampler(sampler: Sampler, seed: int, startup: int | None = None) -> optuna.samplers.BaseSampler:
    """The sampler of one proposal.

    Args:
        sampler: `"random"`, `"tpe"`, `"gp"`, or a function of the seed that returns a sampler of Optuna.
        seed: of this proposal.
        startup: how many trials are drawn at random before the model proposes; None is Optuna's own default of 10.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if callable(sampler):
            return sampler(seed)
        if sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        count = 10 if startup is None else startup
        if sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=count, warn_independent_sampling=False)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=count, multivariate=True, group=True)


def learns(sampler: optuna.samplers.BaseSampler) -> bool:
    """Whether a sampler goes on from what the last one learnt: Optuna's Gaussian process, from its kernel.

    A fit of the kernel ends early, and the next one goes on from there: proposals of a sampler that begins each time at
    the default are worse by far. Each proposal here has a sampler of its own, so the kernel is kept with it.
    """
    return hasattr(sampler, _KERNELS)


def learnt(sampler: optuna.samplers.BaseSampler) -> list[list[float]] | None:
    """The kernel of each objective as numbers: the squared inverse length scales, the scale and the noise."""
    return [
        [*map(float, kernel.inverse_squared_lengthscales), float(kernel.kernel_scale), float(kernel.noise_var)]
        for kernel in getattr(sampler, _KERNELS, None) or ()
    ] or None


def give(sampler: optuna.samplers.BaseSampler, kernels: list[list[float]] | None) -> None:
    """Has a Gaussian process begin with kernels that another one `learnt`."""
    if kernels is None:
        return
    import torch

    def kernel(numbers: list[float]) -> SimpleNamespace:
        *lengths, scale, noise = torch.tensor(numbers, dtype=torch.float64)
        return SimpleNamespace(inverse_squared_lengthscales=torch.stack(lengths), kernel_scale=scale, noise_var=noise)

    setattr(sampler, _KERNELS, [kernel(numbers) for numbers in kernels])


def tells_best_value(sampler: Sampler, made: optuna.samplers.BaseSampler) -> bool:
    """Whether pruned trials are told as complete, with their best value: a GP looks at complete trials only."""
    return sampler == "gp" or isinstance(made, optuna.samplers.GPSampler)


def halving(max_epochs: int, min_epochs: int | None = None, factor: int = 2) -> optuna.pruners.SuccessiveHalvingPruner:
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934) over epochs.

    Args:
        max_epochs: of a whole training, at least 1.
        min_epochs: before the first trial may end; None is a thirteenth of `max_epochs`, at least 2. Halving from
            the first epoch on was worse than random search on learning curves.
        factor: of each rung to the next, and the share of trials that stays, at least 2.
    """
    checks.integer("max_epochs", max_epochs, at_least=1)
    checks.integer("factor", factor, at_least=2)
    if min_epochs is not None:
        checks.integer("min_epochs", min_epochs, at_least=1, at_most=max_epochs)
    first = min_epochs or max(2, max_epochs // 13)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)


def choose(
    space: Sequence[types.HyperParameter],
    *,
    max_trials: int | None,
    max_epochs: int | None,
    objectives: int = 1,
    saves: bool = False,
) -> Plan:
    """Sampler and pruner for a space and a budget, with the reasons.

    Args:
        space: the hyperparameters, parents first.
        max_trials: the budget in trials; None is unknown.
        max_epochs: epochs of a whole training; None is unknown, and nothing is pruned then.
        objectives: how many there are; with several nothing is pruned.
        saves: whether the budget is one of epochs or time, so that an epoch saved is one more for another trial. Then
            short trainings end from their first epoch on, two of three at each rung: on learning curves of 27 epochs
            that took a quarter less. A budget of trials buys nothing with it, and would see few of them to their end.
    """
    drawn = [parameter for parameter in space if spaces.distribution(parameter) is not None]
    words = [p for p in drawn if isinstance(spaces.distribution(p), optuna.distributions.CategoricalDistribution)]
    all_points = spaces.points(space)
    count = None if all_points is None else sum(1 for _ in zip(range((max_trials or 0) + 1), all_points, strict=False))
    if objectives == 1 and count is not None and max_trials is not None and count <= max_trials:
        return Plan(
            "random", None, (f"grid: the space has {count} points, and {max_trials} trials try them all",), True
        )
    if objectives > 1:
        sampler, why = "tpe", f"TPE: there are {objectives} objectives"
    elif any(parameter.conditions for parameter in drawn):
        sampler, why = "tpe", "TPE: some hyperparameters are there only under a condition"
    elif words:
        sampler, why = "tpe", f"TPE: {words[0].name!r} is not a number"
    elif len(drawn) > LARGEST_FOR_GP:
        sampler, why = "tpe", f"TPE: {len(drawn)} hyperparameters are more than {LARGEST_FOR_GP}"
    elif not gp_is_there():
        sampler, why = "tpe", "TPE: torch, which the Gaussian process needs, is not installed"
    else:
        sampler, why = "gp", f"Gaussian process: {len(drawn)} numbers without conditions"
    if objectives > 1:
        return Plan(sampler, None, (why, "no pruning: it knows one objective only"))
    if max_epochs is None or max_epochs < 4:
        told = "`max_epochs` is not given" if max_epochs is None else f"{max_epochs} epochs are too few to judge by"
        return Plan(sampler, None, (why, f"no pruning: {told}"))
    first, factor = (1, 3) if saves and max_epochs < _SHORT else (max(2, max_epochs // 13), 2)
    told = f"successive halving from epoch {first} on, by factor {factor}"
    return Plan(sampler, halving(max_epochs, first, factor), (why, told))
