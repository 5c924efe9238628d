"""The example of a grid search on digits, smaller."""

import importlib.util
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

pytestmark = pytest.mark.tensorflow


@pytest.mark.slow
def test_a_grid_over_learning_rate_and_batch_size_on_digits():
    path = Path(__file__).parents[2] / "examples" / "22_grid_search_cv.py"
    spec = importlib.util.spec_from_file_location("grid_search_cv", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    x, y = load_digits(return_X_y=True)
    found = example.search(jobs=None, epochs=3).set_params(cv=2).fit(x[:900], y[:900])
    assert len(found.cv_results_["params"]) == 6
    assert found.best_params_["classifier__optimizer__learning_rate"] == 0.03 and found.score(x[900:], y[900:]) > 0.8
