"""Tuning: hyperparameters of Keras models, searched with scikit-learn's tools."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_trainkit.tuning.estimators import KerasClassifier, KerasRegressor, expected_failed_checks
    from keras_trainkit.tuning.search_cv import SearchCV
    from keras_trainkit.tuning.targets import Meta

__all__ = [
    "KerasClassifier",
    "KerasRegressor",
    "Meta",
    "SearchCV",
    "expected_failed_checks",
]

_HOMES = {
    "KerasClassifier": "estimators",
    "KerasRegressor": "estimators",
    "Meta": "targets",
    "SearchCV": "search_cv",
    "expected_failed_checks": "estimators",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_trainkit.tuning.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'keras_trainkit.tuning' has no attribute {name!r}")
