"""`SearchCV`: a search of scikit-learn's form over an Optuna study, which gives poor settings up between folds."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
from scipy.stats import rankdata
from sklearn.base import clone, is_classifier
from sklearn.metrics import check_scoring, get_scorer
from sklearn.model_selection import RandomizedSearchCV, check_cv, cross_validate
from sklearn.utils import check_random_state, indexable
from sklearn.utils.parallel import Parallel, delayed

from keras_trainkit.core import checks
from keras_trainkit.tuning.scikit_learn.search_space import Space

PRUNERS = ("median", "wilcoxon")
_REPEATS = 10
"""Suggestions in a row that were evaluated before, after which one is drawn from what is left of a finite space."""


@dataclasses.dataclass
class _Candidate:
    trial: Any
    parameters: dict[str, Any]
    folds: list[dict[str, float]] = dataclasses.field(default_factory=list)
    status: str = "running"

    def scores(self, name: str) -> list[float]:
        return [fold[f"test_{name}"] for fold in self.folds]


class SearchCV(RandomizedSearchCV):
    """Cross-validated search that learns from its trials, in the form of scikit-learn's `RandomizedSearchCV`.

    Settings come from an Optuna study (TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS
    2011), one after the other instead of all at random. Each is evaluated fold by fold, and given up between two folds
    if it is clearly worse than others. Optuna is needed: it comes with the extra `tuning`.

    Args:
        estimator: any estimator of scikit-learn, `KerasClassifier` among them.
        param_distributions: from names of parameters to lists (numbers in a list are taken for ordered), to
            distributions of scipy such as `loguniform(1e-5, 1e-1)`, or to Optuna's. A finite space ends the search when
            all of it was tried; nothing in it is tried twice.
        n_iter: how many settings to try, at least 1.
        scoring, n_jobs, refit, cv, verbose, pre_dispatch, error_score, return_train_score: as for
            `RandomizedSearchCV`. With several metrics `refit` names the one that is searched for. `n_jobs` settings are
            evaluated at a time, which learn from those before them, not from each other.
        random_state: decides on the settings; an integer, a `RandomState`, or None.
        pruner: "median" gives a setting up if its mean over the folds so far is worse than the median of the others'
            at that fold, from the sixth setting on; "wilcoxon" if a signed-rank test against the best setting, fold by
            fold, says worse (p below 0.1; it needs four folds or more, and pays with ten); None evaluates all folds.
            Or a pruner of Optuna's, which is told the mean so far.
        sampler: of Optuna; None is TPE, which looks at all parameters together.
        study: of Optuna, which maximizes, with a sampler and a pruner of its own; its trials are learned from and added
            to, in a database, too. None makes one.
        timeout: seconds after which no other setting is begun; None for no such limit.

    Attributes:
        best_params_, best_score_, best_index_, best_estimator_, cv_results_, scorer_, n_splits_, refit_time_: as for
            `RandomizedSearchCV`. In `cv_results_` there is `status`, too: "complete", "pruned" or "failed"; folds that
            were not evaluated are NaN, and so is the mean of a setting that was not finished.
        study_: the study.

    Raises:
        ImportError: from `fit`, without Optuna.

    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> search = SearchCV(LogisticRegression(), {"C": loguniform(1e-4, 1e2)}, n_iter=8, cv=3, random_state=0)
    >>> search.fit(*load_iris(return_X_y=True)).best_score_ > 0.9
    True
    """

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        pruner: Any = "median",
        sampler: Any = None,
        study: Any = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.pruner = pruner
        self.sampler = sampler
        self.study = study
        self.timeout = timeout

    def fit(self, X: Any, y: Any = None, **params: Any) -> SearchCV:
        """Searches, and trains the best setting on all rows unless `refit` is False.

        Args:
            X, y: as for the estimator.
            **params: for its `fit`; arrays such as `sample_weight` are cut into folds, and `groups` goes to `cv`.

        Raises:
            ValueError: if no setting could be evaluated on all folds.
        """
        wanted = checks.integer("n_iter", self.n_iter, at_least=1)
        limit = math.inf if self.timeout is None else checks.number("timeout", self.timeout, above=0)
        space = Space(self.param_distributions)
        groups = params.pop("groups", None)
        X, y, groups = indexable(X, y, groups)
        splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(splitter.split(X, y, groups))
        self.n_splits_, self.multimetric_ = len(splits), isinstance(self.scoring, (list, tuple, set, dict))
        self.scorer_ = self._scorers()
        objective = self._objective()
        start = time.monotonic()
        candidates: list[_Candidate] = []
        with _quiet():
            self.study_ = self._study()
            proposals = _Proposals(self.study_, space, check_random_state(self.random_state))
            with Parallel(n_jobs=self.n_jobs, pre_dispatch=self.pre_dispatch) as parallel:
                size = joblib.effective_n_jobs(self.n_jobs)
                while len(candidates) < wanted and time.monotonic() - start < limit:
                    batch = proposals.take(min(size, wanted - len(candidates)))
                    if not batch:
                        break
                    self._evaluate(batch, X, y, splits, params, objective, parallel)
                    candidates += batch
        self.cv_results_ = self._results(candidates)
        self._finish(X, y, params, objective)
        return self

    # -------------------------------------------------------------------------------------------------------- parts

    def _scorers(self) -> Any:
        if not self.multimetric_:
            return check_scoring(self.estimator, self.scoring)
        if isinstance(self.scoring, dict):
            return {name: get_scorer(scorer) for name, scorer in self.scoring.items()}
        return {name: get_scorer(name) for name in self.scoring}

    def _objective(self) -> str:
        if not self.multimetric_:
            return "score"
        if self.refit not in self.scorer_:
            raise ValueError(f"`refit` must name one of the metrics {sorted(self.scorer_)}. Received: {self.refit!r}")
        return self.refit

    def _study(self) -> Any:
        optuna = optuna_module()
        if self.study is not None:
            if [direction.name for direction in self.study.directions] != ["MAXIMIZE"]:
                raise ValueError(f"`study` must maximize one value. Received: {self.study.directions}")
            return self.study
        pruner = self.pruner
        if isinstance(pruner, str):
            checks.one_of("pruner", pruner, PRUNERS)
            kinds = {"median": optuna.pruners.MedianPruner, "wilcoxon": optuna.pruners.WilcoxonPruner}
            pruner = kinds[pruner]()
        sampler = self.sampler
        if sampler is None:
            seed = check_random_state(self.random_state).randint(2**31 - 1)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return optuna.create_study(
            direction="maximize", sampler=sampler, pruner=optuna.pruners.NopPruner() if pruner is None else pruner
        )

    def _evaluate(
        self,
        batch: list[_Candidate],
        X: Any,
        y: Any,
        splits: list[Any],
        params: dict[str, Any],
        objective: str,
        parallel: Any,
    ) -> None:
        """All folds of each candidate, but for those that are given up; the study is told what came of them."""
        states = optuna_module().trial.TrialState
        by_fold = isinstance(self.study_.pruner, optuna_module().pruners.WilcoxonPruner)
        for number, split in enumerate(splits):
            running = [candidate for candidate in batch if candidate.status == "running"]
            found = parallel(
                delayed(_score_fold)(
                    clone(self.estimator), candidate.parameters, X, y, split, self.scorer_, params,
                    self.return_train_score, self.error_score == "raise",
                )
                for candidate in running
            )  # fmt: skip
            for candidate, scores in zip(running, found, strict=True):
                if isinstance(scores, str):
                    candidate.status = "failed"
                    candidate.trial.set_user_attr("reason", scores)
                    self.study_.tell(candidate.trial, state=states.FAIL)
                    warnings.warn(f"A setting failed: {candidate.parameters}: {scores}", stacklevel=3)
                    continue
                candidate.folds.append(scores)
                values = candidate.scores(objective)
                # The signed-rank test compares fold with fold; the others want what is known so far.
                candidate.trial.report(values[-1] if by_fold else float(np.mean(values)), number)
                if number + 1 < len(splits) and candidate.trial.should_prune():
                    candidate.status = "pruned"
                    self.study_.tell(candidate.trial, state=states.PRUNED)
        for candidate in batch:
            if candidate.status == "running":
                candidate.status = "complete"
                self.study_.tell(candidate.trial, float(np.mean(candidate.scores(objective))))
            if self.verbose:
                print(f"{candidate.status}: {candidate.parameters} {candidate.scores(objective)}")

    def _results(self, candidates: list[_Candidate]) -> dict[str, Any]:
        """`cv_results_`, one entry for each candidate."""
        results: dict[str, Any] = {}
        for name in ("fit_time", "score_time"):
            table = self._table(candidates, name)
            results[f"mean_{name}"], results[f"std_{name}"] = _over_folds(table, np.isfinite(table).any(axis=1))
        for name in dict.fromkeys(key for candidate in candidates for key in candidate.parameters):
            values = [candidate.parameters.get(name) for candidate in candidates]
            results[f"param_{name}"] = np.ma.MaskedArray(np.empty(len(values), object), mask=False)
            for index, value in enumerate(values):
                results[f"param_{name}"][index] = value
        results["params"] = [candidate.parameters for candidate in candidates]
        results["status"] = np.array([candidate.status for candidate in candidates])
        complete = results["status"] == "complete"
        metrics = list(self.scorer_) if self.multimetric_ else ["score"]
        for kind in ["test", *(["train"] if self.return_train_score else [])]:
            for metric in metrics:
                table, label = self._table(candidates, f"{kind}_{metric}"), f"{kind}_{metric}"
                for fold in range(self.n_splits_):
                    results[f"split{fold}_{label}"] = table[:, fold]
                results[f"mean_{label}"], results[f"std_{label}"] = _over_folds(table, complete)
                if kind == "test":
                    means = np.nan_to_num(results[f"mean_{label}"], nan=-np.inf)
                    results[f"rank_{label}"] = rankdata(-means, method="min").astype("int32")
        return results

    def _table(self, candidates: list[_Candidate], name: str) -> np.ndarray:
        table = np.full((len(candidates), self.n_splits_), np.nan)
        for row, candidate in zip(table, candidates, strict=True):
            row[: len(candidate.folds)] = [fold[name] for fold in candidate.folds]
        return table

    def _finish(self, X: Any, y: Any, params: dict[str, Any], objective: str) -> None:
        means = self.cv_results_[f"mean_test_{objective}"]
        if not np.isfinite(means).any():
            raise ValueError(
                "`param_distributions` must hold a setting that can be evaluated; all failed. Reasons stand in the "
                "warnings, and in `study_.trials[...].user_attrs`; error_score='raise' shows the first."
            )
        self.best_index_ = int(self.refit(self.cv_results_) if callable(self.refit) else np.nanargmax(means))
        self.best_params_ = self.cv_results_["params"][self.best_index_]
        if not callable(self.refit):
            self.best_score_ = float(means[self.best_index_])
        if self.refit:
            start = time.monotonic()
            self.best_estimator_ = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
            self.best_estimator_.fit(X, **({} if y is None else {"y": y}), **params)
            self.refit_time_ = time.monotonic() - start
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_


class _Proposals:
    """What the study suggests, without repetitions where the space is finite."""

    def __init__(self, study: Any, space: Space, random: np.random.RandomState) -> None:
        self._study, self._space, self._random = study, space, random
        self._seen: set[Any] = set()

    def take(self, count: int) -> list[_Candidate]:
        """Up to `count` candidates; fewer when nothing is left."""
        found: list[_Candidate] = []
        while len(found) < count and len(self._seen) < self._space.size:
            found.append(self._next())
        return found

    def _next(self) -> _Candidate:
        for attempt in range(_REPEATS + 1):
            if attempt == _REPEATS:
                self._study.enqueue_trial(self._space.draw_unseen(self._seen, self._random))
            trial = self._study.ask()
            parameters, key = self._space.suggest(trial)
            if key not in self._seen:
                if self._space.size < math.inf:
                    self._seen.add(key)
                return _Candidate(trial, parameters)
            self._study.tell(trial, state=optuna_module().trial.TrialState.FAIL)
        raise AssertionError("what was drawn from the rest of the space had been seen")


def _score_fold(
    estimator: Any, parameters: dict[str, Any], X: Any, y: Any, split: Any, scorers: Any, params: dict[str, Any],
    with_train: bool, raises: bool,
) -> dict[str, float] | str:  # fmt: skip
    """The scores and times of one fold, or the reason why there are none."""
    try:
        estimator.set_params(**clone(parameters, safe=False))
        found = cross_validate(
            estimator, X, y, scoring=scorers, cv=[split], params=params or None, return_train_score=with_train,
            error_score="raise",
        )  # fmt: skip
        scores = {name: float(values[0]) for name, values in found.items()}
        bad = [name for name, value in scores.items() if name.startswith("test_") and not math.isfinite(value)]
        return f"{bad[0]} is not finite" if bad else scores
    except Exception as error:
        if raises:
            raise
        return f"{type(error).__name__}: {error}"


def _over_folds(table: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of those rows, NaN for the others."""
    means, deviations = np.full(len(table), np.nan), np.full(len(table), np.nan)
    if which.any():
        means[which], deviations[which] = np.nanmean(table[which], axis=1), np.nanstd(table[which], axis=1)
    return means, deviations


def optuna_module() -> Any:
    """Optuna, or an ImportError that says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("SearchCV needs Optuna: pip install 'keras-trainkit[tuning]', or optuna>=4") from error
    return optuna


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line of Optuna's for each trial, and without its word that looking at parameters together is new."""
    optuna = optuna_module()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
