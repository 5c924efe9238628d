"""Tuning: searches with KerasTuner's face over Optuna's samplers, pruners and storage; estimators for scikit-learn.

The names are loaded at their first use: importing the kit must not import Optuna, which is an extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_trainkit.tuning.hyperband import Hyperband
    from keras_trainkit.tuning.oracle import Oracle
    from keras_trainkit.tuning.population import PopulationBasedTraining
    from keras_trainkit.tuning.recipe_search import tune
    from keras_trainkit.tuning.running.ray_runner import RayRunner
    from keras_trainkit.tuning.sampling import halving
    from keras_trainkit.tuning.scikit_learn.estimators import KerasClassifier, KerasRegressor, expected_failed_checks
    from keras_trainkit.tuning.scikit_learn.search_cv import SearchCV
    from keras_trainkit.tuning.scikit_learn.targets import Meta
    from keras_trainkit.tuning.searches import (
        BayesianOptimization,
        GridSearch,
        RandomSearch,
        Search,
        SuccessiveHalving,
        TPESearch,
    )
    from keras_trainkit.tuning.training_models import RecipeModel, TrainingModel
    from keras_trainkit.tuning.training_ranges import Range
    from keras_trainkit.tuning.training_space import TrainingSpace
    from keras_trainkit.tuning.tuner import NonfiniteError, Tuner

_HOMES = {
    "BayesianOptimization": "searches",
    "GridSearch": "searches",
    "Hyperband": "hyperband",
    "KerasClassifier": "scikit_learn.estimators",
    "KerasRegressor": "scikit_learn.estimators",
    "Meta": "scikit_learn.targets",
    "NonfiniteError": "tuner",
    "Oracle": "oracle",
    "PopulationBasedTraining": "population",
    "RandomSearch": "searches",
    "Range": "training_ranges",
    "RayRunner": "running.ray_runner",
    "RecipeModel": "training_models",
    "Search": "searches",
    "SearchCV": "scikit_learn.search_cv",
    "SuccessiveHalving": "searches",
    "TPESearch": "searches",
    "TrainingModel": "training_models",
    "TrainingSpace": "training_space",
    "Tuner": "tuner",
    "expected_failed_checks": "scikit_learn.estimators",
    "halving": "sampling",
    "tune": "recipe_search",
}

__all__ = [
    "BayesianOptimization",
    "GridSearch",
    "Hyperband",
    "KerasClassifier",
    "KerasRegressor",
    "Meta",
    "NonfiniteError",
    "Oracle",
    "PopulationBasedTraining",
    "RandomSearch",
    "Range",
    "RayRunner",
    "RecipeModel",
    "Search",
    "SearchCV",
    "SuccessiveHalving",
    "TPESearch",
    "TrainingModel",
    "TrainingSpace",
    "Tuner",
    "expected_failed_checks",
    "halving",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_trainkit.tuning.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'keras_trainkit.tuning' has no attribute {name!r}")
