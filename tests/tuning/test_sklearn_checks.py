"""Scikit-learn's own checks of an estimator."""

import keras
import pytest
import sklearn
from sklearn.base import is_classifier, is_regressor
from sklearn.utils import estimator_checks

from keras_trainkit.tuning import KerasClassifier, KerasRegressor, expected_failed_checks

pytestmark = pytest.mark.tensorflow

NEW = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 6)
FEW = [
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_fit1d",
    "check_requires_y_none",
    "check_complex_data",
    "check_estimators_empty_data_messages",
    "check_supervised_y_no_nan",
    "check_classifiers_regression_target",
    "check_sample_weights_shape",
]


def build(meta):
    layers = [keras.layers.Dense(32, "relu"), keras.layers.Dense(meta.units, meta.activation)]
    model = keras.Sequential([keras.Input(meta.input_shape), *layers])
    losses = {"sigmoid": "binary_crossentropy", "softmax": "sparse_categorical_crossentropy", None: "mse"}
    model.compile(keras.optimizers.Adam(0.05), losses[meta.activation])
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [KerasClassifier, pytest.param(KerasRegressor, marks=pytest.mark.thorough)])
def test_it_is_an_estimator(kind):
    estimator = kind(build, epochs=10)
    if not NEW:  # these ask for the checks that fail in a tag
        estimator_checks.check_estimator(estimator)
        return
    expected = expected_failed_checks(estimator)
    results = estimator_checks.check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {}
    assert sum(result["status"] == "passed" for result in results) > 50


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [KerasClassifier, KerasRegressor])
def test_checks_that_cost_little(kind):
    ran = 0
    for name in FEW:
        check = getattr(estimator_checks, name, None)
        if check is not None and ("classifier" not in name or kind is KerasClassifier):
            check(kind.__name__, kind(build))
            ran += 1
    assert ran >= 10 and (is_classifier(kind()), is_regressor(kind())) == (
        kind is KerasClassifier,
        kind is KerasRegressor,
    )


def test_what_cannot_hold_is_listed_with_its_reason():
    assert "check_no_attributes_set_in_init" in expected_failed_checks(KerasRegressor(loss__delta=2))
    assert "check_no_attributes_set_in_init" not in expected_failed_checks(KerasRegressor())
    assert all(len(reason) > 20 for reason in expected_failed_checks(KerasClassifier()).values())
