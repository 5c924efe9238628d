"""`SearchCV` over estimators that cost nothing."""

import builtins
import sys

import numpy as np
import pytest
from scipy.stats import loguniform, norm, poisson, randint, uniform
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

optuna = pytest.importorskip("optuna")
from keras_trainkit.tuning import SearchCV  # noqa: E402
from keras_trainkit.tuning.scikit_learn.search_space import Space  # noqa: E402

X, Y = load_iris(return_X_y=True)
CALLS: list = []


class Told(ClassifierMixin, BaseEstimator):
    """Its score is its parameter `quality`, with something for each fold, and it notes each fit."""

    def __init__(self, quality=0.0, kind="a", fails=False):
        self.quality, self.kind, self.fails = quality, kind, fails

    def fit(self, X, y, sample_weight=None):
        if self.fails:
            raise RuntimeError("told to fail")
        CALLS.append((self.quality, self.kind, len(X), sample_weight is not None))
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])

    def score(self, X, y, sample_weight=None):
        return self.quality + 0.001 * (X[0, 0] % 1)


@pytest.fixture(autouse=True)
def forget():
    CALLS.clear()


def search(distributions, **options):
    options = {"cv": KFold(5), "random_state": 0, "error_score": "raise"} | options
    return SearchCV(Told(), distributions, **options)


def test_it_finds_the_best_and_refits():
    found = search({"quality": uniform(0, 1)}, n_iter=25).fit(X, Y)
    assert found.best_params_["quality"] > 0.9 and found.best_estimator_.quality == found.best_params_["quality"]
    assert CALLS[-1][2] == 150 and found.predict(X).shape == (150,)
    results = found.cv_results_
    assert len(results["params"]) == 25 and results["rank_test_score"][found.best_index_] == 1
    assert found.best_score_ == pytest.approx(
        results["mean_test_score"].max(where=results["status"] == "complete", initial=0)
    )


def test_poor_settings_are_given_up_between_folds():
    found = search({"quality": uniform(0, 1)}, n_iter=25).fit(X, Y)
    results = found.cv_results_
    pruned, complete = (results["status"] == status for status in ("pruned", "complete"))
    assert pruned.sum() >= 3 and complete.sum() >= 5 and (pruned | complete).all()
    assert len(CALLS) - 1 < 25 * 5 * 0.9
    assert np.isnan(results["mean_test_score"][pruned]).all() and np.isfinite(results["split0_test_score"]).all()
    assert np.isnan(results["split4_test_score"][pruned]).all()
    qualities = results["param_quality"].astype(float)
    assert qualities[pruned].mean() < qualities[complete].mean()


def test_without_a_pruner_all_folds_are_evaluated():
    found = search({"quality": uniform(0, 1)}, n_iter=8, pruner=None).fit(X, Y)
    assert len(CALLS) == 8 * 5 + 1 and (found.cv_results_["status"] == "complete").all()


def test_wilcoxon_compares_fold_with_fold():
    found = search({"quality": [0.9, 0.1, 0.2, 0.3]}, cv=KFold(10), pruner="wilcoxon", n_iter=4).fit(X, Y)
    results = found.cv_results_
    assert results["status"][found.best_index_] == "complete" and found.best_params_ == {"quality": 0.9}
    after = results["status"][np.argmax(results["param_quality"] == 0.9) + 1 :]
    assert (after == "pruned").all() or not len(after)
    told = found.study_.trials[0].intermediate_values
    assert [told[fold] for fold in (0, 1, 2)] == [results[f"split{fold}_test_score"][0] for fold in (0, 1, 2)]


def test_a_finite_space_ends_without_repetition():
    found = search({"quality": [0.1, 0.2, 0.3], "kind": ["a", "b"]}, n_iter=50, pruner=None, cv=2).fit(X, Y)
    tried = {tuple(sorted(parameters.items())) for parameters in found.cv_results_["params"]}
    assert len(tried) == len(found.cv_results_["params"]) == 6


def test_the_same_seed_is_the_same_search():
    one = search({"quality": uniform(0, 1)}, n_iter=12).fit(X, Y)
    assert clone(one).fit(X, Y).cv_results_["params"] == one.cv_results_["params"]
    assert (
        search({"quality": uniform(0, 1)}, n_iter=3, random_state=1).fit(X, Y).cv_results_["params"]
        != one.cv_results_["params"][:3]
    )


def test_failures_are_told_and_passed_over():
    with pytest.warns(UserWarning, match="told to fail"):
        found = search({"fails": [True, False], "quality": [0.5]}, error_score=np.nan).fit(X, Y)
    assert sorted(found.cv_results_["status"]) == ["complete", "failed"] and not found.best_params_["fails"]
    with pytest.raises(RuntimeError, match="told to fail"):
        search({"fails": [True]}).fit(X, Y)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all failed"):
        search({"fails": [True]}, error_score=np.nan).fit(X, Y)


def test_several_metrics_weights_and_processes():
    estimator = LogisticRegression(max_iter=200)
    found = SearchCV(estimator, {"C": loguniform(1e-4, 1e2)}, n_iter=6, cv=3, scoring=["accuracy", "neg_log_loss"],
                     refit="neg_log_loss", random_state=0, return_train_score=True)  # fmt: skip
    found.fit(X, Y, sample_weight=np.ones(150))
    assert {"mean_test_accuracy", "rank_test_neg_log_loss", "split2_train_accuracy"} <= set(found.cv_results_)
    assert found.best_score_ > -0.3 and found.predict_proba(X).shape == (150, 3)
    with pytest.raises(ValueError, match="`refit` must name"):
        clone(found).set_params(refit=True).fit(X, Y)


def test_a_study_is_learned_from_and_added_to():
    study = optuna.create_study(direction="maximize")
    for _ in range(2):
        search({"quality": uniform(0, 1)}, n_iter=3, study=study).fit(X, Y)
    assert len(study.trials) == 6
    with pytest.raises(ValueError, match="`study` must maximize"):
        search({"quality": [0.1]}, study=optuna.create_study()).fit(X, Y)


def test_without_optuna_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def gone(name, *rest):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "optuna")
    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(ImportError, match=r"keras-trainkit\[tuning\]"):
        search({"kind": ["a"]}).fit(X, Y)


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        ([8, 4, 2], lambda value: value in (2, 4, 8)),
        (["a", None], lambda value: value in ("a", None)),
        (np.array([1, 2]), lambda value: type(value) is int),
        (randint(2, 5), lambda value: 2 <= value <= 4),
        (loguniform(1e-3, 1), lambda value: 1e-3 <= value <= 1),
        (norm(5, 0.1), lambda value: 3 < value < 7),
        (poisson(4), lambda value: type(value) is int and 0 <= value < 40),
        (optuna.distributions.FloatDistribution(0, 1, step=0.25), lambda value: value in (0, 0.25, 0.5, 0.75, 1)),
    ],
)
def test_values_come_from_their_distributions(given, inside):
    space, study = Space({"x": given}), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = [space.suggest(study.ask())[0]["x"] for _ in range(20)]
    assert all(map(inside, values)) and len(set(values)) > 1


@pytest.mark.parametrize("given", [[], {"x": []}, {"x": 3}, [{"x": [1]}], {}])
def test_what_is_no_space(given):
    with pytest.raises((TypeError, ValueError), match="`param_distributions` must"):
        Space(given)
