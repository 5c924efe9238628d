"""The estimators in scikit-learn's searches, pipelines and cross-validation."""

import keras
import numpy as np
import pytest
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_trainkit.tuning import KerasClassifier, KerasRegressor

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(5)
X = RNG.normal(size=(60, 3)) * [1, 10, 100]
Y = (X[:, 0] + X[:, 1] / 10 > 0).astype(int)


def build(meta, units=4):
    layers = [keras.layers.Dense(units, "tanh"), keras.layers.Dense(meta.units, meta.activation)]
    return keras.Sequential([keras.Input(meta.input_shape), *layers])


def net(**parameters):
    return KerasClassifier(build, optimizer="sgd", random_state=0, **parameters)


def test_a_grid_through_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), net())
    grid = {
        "kerasclassifier__optimizer__learning_rate": [1e-6, 0.5],
        "kerasclassifier__units": [3],
        "kerasclassifier__batch_size": [8],
    }
    search = GridSearchCV(pipeline, grid, cv=2, scoring="roc_auc", error_score="raise").fit(X, Y)
    assert search.best_params_["kerasclassifier__optimizer__learning_rate"] == 0.5
    assert search.best_estimator_[-1].model_.layers[0].units == 3
    assert search.best_score_ > 0.8 and search.score(X, Y) > 0.8


def test_a_grid_of_names_that_nobody_takes():
    with pytest.raises(ValueError, match="unitz"):
        GridSearchCV(net(), {"unitz": [1]}, cv=2, error_score="raise").fit(X, Y)


def test_random_settings_of_a_regression():
    estimator = KerasRegressor(build, optimizer__learning_rate=0.01, random_state=0)
    search = RandomizedSearchCV(estimator, {"units": [2, 3, 5]}, n_iter=2, cv=2, random_state=0, error_score="raise")
    search.fit(X / 100, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all() and search.best_params_["units"] in (2, 3, 5)


@pytest.mark.slow
def test_halving_over_epochs():
    search = HalvingGridSearchCV(
        net(batch_size=8), {"optimizer__learning_rate": [1e-6, 1e-5, 1e-4, 0.5]}, resource="epochs", max_resources=4,
        min_resources=1, factor=2, cv=2, random_state=0, error_score="raise",
    ).fit(X / [1, 10, 100], Y)  # fmt: skip
    assert search.n_resources_ == [1, 2, 4] and search.best_params_["optimizer__learning_rate"] == 0.5
    assert len(search.best_estimator_.history_["loss"]) == 4


@pytest.mark.slow
def test_scores_of_probabilities():
    x = X / [1, 10, 100]
    labels = np.array(["a", "b", "c"])[np.digitize(x[:, 0], [-0.4, 0.4])]
    estimator = net(batch_size=4, epochs=6, optimizer__learning_rate=0.3)
    assert cross_val_score(estimator, x, labels, cv=2, scoring="roc_auc_ovr", error_score="raise").min() > 0.8
    several = (x[:, :2] > 0).astype(int)
    assert cross_val_score(estimator, x, several, cv=2, scoring="roc_auc", error_score="raise").min() > 0.8


@pytest.mark.slow
def test_processes_find_what_one_finds():
    options = {"cv": 2, "error_score": "raise", "scoring": "neg_log_loss"}
    grid = {"optimizer__learning_rate": [0.01, 0.3], "units": [2]}
    one = GridSearchCV(net(), grid, **options).fit(X, Y)
    two = GridSearchCV(net(), grid, n_jobs=2, **options).fit(X, Y)
    np.testing.assert_allclose(two.cv_results_["mean_test_score"], one.cv_results_["mean_test_score"], rtol=1e-5)
    assert two.best_params_ == one.best_params_
