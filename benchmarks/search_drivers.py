"""Searches as the benchmark drives them: ours, KerasTuner's and plain Optuna, over problems that need no training."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras_tuner
import numpy as np
import optuna
from search_problems import Curves, Problem, Values

from keras_trainkit import tuning

LOSS = keras_tuner.Objective("loss", "min")
OURS: dict[str, Any] = {
    "ours": tuning.Search,
    "ours, random": tuning.RandomSearch,
    "ours, TPE": tuning.TPESearch,
    "ours, GP": tuning.BayesianOptimization,
}
KERAS_TUNER: dict[str, Any] = {
    "KerasTuner, random": keras_tuner.RandomSearch,
    "KerasTuner, Bayesian": keras_tuner.BayesianOptimization,
}
OPTUNA: dict[str, Callable[[int], Any]] = {
    "Optuna, TPE": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
    "Optuna, GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
}
METHODS = [*OURS, *KERAS_TUNER, *OPTUNA]


def run(method: str, problem: Problem, trials: int, seed: int) -> tuple[list[float], list[float]]:
    """One search: the regret of the best point after each trial, and the seconds before each."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drive = _optuna if method in OPTUNA else _tuner
    return drive(method, problem, trials, seed)


class Record:
    """What a search saw, in order."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.rng = problem, np.random.default_rng([seed, 1])
        self.regrets: list[float] = []
        self.seconds: list[float] = []
        self._best = np.inf
        self._since = time.perf_counter()

    def __call__(self, values: Values) -> float:
        """The value of a point, which is noted."""
        self.seconds.append(time.perf_counter() - self._since)
        value = self.problem.observe(values, self.rng)
        if value < self._best:
            self._best, self._regret = value, self.problem.regret(values)
        self.regrets.append(self._regret)
        self._since = time.perf_counter()
        return value


def space_of(declare: Callable[[Any], None]) -> keras_tuner.HyperParameters:
    """A space with all its conditions."""
    hp = keras_tuner.HyperParameters()
    declare(hp)
    return hp


def _tuner(method: str, problem: Problem, trials: int, seed: int) -> tuple[list[float], list[float]]:
    record = Record(problem, seed)
    base = (OURS | KERAS_TUNER)[method]

    class Driven(base):  # type: ignore[misc]
        def run_trial(self, trial: Any, **kwargs: Any) -> float:
            return record(trial.hyperparameters.values)

    with _folder() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        tuner = Driven(
            objective=LOSS, max_trials=trials, seed=seed + 1, hyperparameters=space_of(problem.declare),
            directory=folder, project_name="p",
        )  # fmt: skip
        tuner.search(verbose=0)
    return record.regrets, record.seconds


def _optuna(method: str, problem: Problem, trials: int, seed: int) -> tuple[list[float], list[float]]:
    record = Record(problem, seed)
    study = optuna.create_study(sampler=OPTUNA[method](seed + 1))

    def objective(trial: optuna.Trial) -> float:
        asked = Asked(trial)
        problem.declare(asked)
        return record(asked.values)

    study.optimize(objective, n_trials=trials)
    return record.regrets, record.seconds


class Asked:
    """An Optuna trial with KerasTuner's names: as a user of Optuna writes it, every choice is categorical."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self.values, self._active = trial, {}, [True]

    def Float(self, name: str, low: float, high: float, sampling: str = "linear") -> None:
        """A number."""
        if self._active[-1]:
            self.values[name] = self.trial.suggest_float(name, low, high, log=sampling == "log")

    def Choice(self, name: str, values: list[Any]) -> None:
        """One of some values."""
        if self._active[-1]:
            self.values[name] = self.trial.suggest_categorical(name, values)

    def Boolean(self, name: str) -> None:
        """Yes or no."""
        self.Choice(name, [False, True])

    @contextlib.contextmanager
    def conditional_scope(self, parent: str, values: list[Any]) -> Iterator[None]:
        """What is there under a condition only."""
        self._active.append(self.values.get(parent) in values)
        yield
        self._active.pop()


# Learning curves


def run_curves(method: str, curves: Curves, epochs: int, seed: int) -> tuple[list[float], int]:
    """One search over learning curves: the regret of the best loss seen after each epoch, and how many it used.

    Args:
        method: `"ours"` or `"KerasTuner, Hyperband"`; the others train every trial whole.
        curves: the trainings.
        epochs: the budget; KerasTuner's Hyperband takes what one round of its brackets takes.
        seed: of the search.
    """
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen: list[float] = []
    hyperband = method == "KerasTuner, Hyperband"
    base = keras_tuner.Hyperband if hyperband else (OURS | KERAS_TUNER)[method]
    ours = method in OURS

    class Driven(base):  # type: ignore[misc]
        def run_trial(self, trial: Any, **kwargs: Any) -> float:
            values, model = trial.hyperparameters.values, Stoppable()
            first, last = values.get("tuner/initial_epoch", 0), values.get("tuner/epochs", curves.epochs)
            losses = curves(values)
            for epoch in range(first, last):
                if len(seen) >= epochs:
                    break
                seen.append(losses[epoch])
                if ours:
                    self.on_epoch_end(trial, model, epoch, {"loss": losses[epoch]})
                if model.stop_training:
                    break
            return min(losses[: epoch + 1] if last > first else losses[:last])

    arguments: dict[str, Any] = {"max_trials": epochs}
    if hyperband:
        arguments = {"max_epochs": curves.epochs, "factor": 3, "hyperband_iterations": 1}
    elif method == "ours":
        arguments |= {"max_epochs": curves.epochs}
    if ours:
        arguments |= {"epoch_budget": epochs}
    with _folder() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        tuner = Driven(
            objective=LOSS, seed=seed + 1, hyperparameters=space_of(curves.declare), directory=folder, project_name="p",
            **arguments,
        )  # fmt: skip
        if not ours and not hyperband:
            tuner.oracle.max_trials = -(-epochs // curves.epochs)
        tuner.search(verbose=0)
    best = np.minimum.accumulate(seen)
    return [curves.regret(float(loss)) for loss in best], len(seen)


class Stoppable:
    """As much of a model as the end of an epoch needs."""

    stop_training = False


def _folder() -> Any:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(dir=memory)


# Times


class Nothing(tuning.RandomSearch):
    """Trials that do nothing."""

    def run_trial(self, trial: Any, **kwargs: Any) -> float:
        """The value alone."""
        return float(trial.hyperparameters.values["x"])


class KerasTunersNothing(keras_tuner.RandomSearch):
    """The same with KerasTuner."""

    run_trial = Nothing.run_trial


def trial_times(rounds: int, trials: int = 25) -> dict[str, Any]:
    """Milliseconds of a trial that does nothing, ours and KerasTuner's in turn, with files on disk."""
    from in_turn import summary

    found: dict[str, list[float]] = {"ours": [], "KerasTuner": []}
    for seed in range(rounds):
        for name, base in (("ours", Nothing), ("KerasTuner", KerasTunersNothing)):
            with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
                with contextlib.redirect_stdout(nowhere):
                    tuner = base(
                        objective=LOSS, max_trials=trials, seed=seed + 1, directory=folder, project_name="p",
                        hyperparameters=space_of(lambda hp: hp.Float("x", 0.0, 1.0)),
                    )  # fmt: skip
                    began = time.perf_counter()
                    tuner.search(verbose=0)
                found[name].append(1e3 * (time.perf_counter() - began) / trials)
    return {name: summary(values) for name, values in found.items()}


class Busy(tuning.RandomSearch):
    """Trials that keep one core busy, and report as they go."""

    def run_trial(self, trial: Any, seconds: float = 1.0, **kwargs: Any) -> float:
        """So many seconds of this process's own computing."""
        for epoch in range(4):
            until = time.process_time() + seconds / 4
            while time.process_time() < until:
                pass
            self.on_epoch_end(trial, Stoppable(), epoch, {"loss": float(trial.hyperparameters.values["x"])})  # type: ignore[arg-type]
        return float(trial.hyperparameters.values["x"])


def worker_times(rounds: int, trials: int = 16, seconds: float = 1.5) -> dict[str, Any]:
    """One worker's time over two workers', in turn: the whole search, and without the start of processes."""
    from in_turn import ratio

    whole: dict[int, list[float]] = {1: [], 2: []}
    steady: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(rounds):
        for workers in (1, 2):
            ended: list[float] = []

            class Noted(Busy):
                def on_trial_end(self, trial: Any, ended: list[float] = ended) -> None:
                    super().on_trial_end(trial)
                    ended.append(time.perf_counter())

            with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
                with contextlib.redirect_stdout(nowhere):
                    tuner = Noted(
                        objective=LOSS, max_trials=trials, seed=seed + 1, workers=workers, directory=folder,
                        recycle_after=100, hyperparameters=space_of(lambda hp: hp.Float("x", 0.0, 1.0)),
                    )  # fmt: skip
                    began = time.perf_counter()
                    tuner.search(seconds=seconds, verbose=0)
                whole[workers].append(time.perf_counter() - began)
                first = ended[workers - 1]  # each worker has ended one
                steady[workers].append((ended[-1] - first) / (trials - workers))
    return {"whole": ratio(whole[1], whole[2]), "steady": ratio(steady[1], steady[2])}
