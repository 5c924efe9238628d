"""Tuning: searches with KerasTuner's face over Optuna's samplers, pruners and storage.

The names are loaded at their first use: importing the kit must not import Optuna, which is an extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_trainkit.tuning.hyperband import Hyperband
    from keras_trainkit.tuning.oracle import Oracle
    from keras_trainkit.tuning.sampling import halving
    from keras_trainkit.tuning.searches import (
        BayesianOptimization,
        GridSearch,
        RandomSearch,
        Search,
        SuccessiveHalving,
        TPESearch,
    )
    from keras_trainkit.tuning.tuner import NonfiniteError, Tuner

_HOMES = {
    "BayesianOptimization": "searches",
    "GridSearch": "searches",
    "Hyperband": "hyperband",
    "NonfiniteError": "tuner",
    "Oracle": "oracle",
    "RandomSearch": "searches",
    "Search": "searches",
    "SuccessiveHalving": "searches",
    "TPESearch": "searches",
    "Tuner": "tuner",
    "halving": "sampling",
}

__all__ = [
    "BayesianOptimization",
    "GridSearch",
    "Hyperband",
    "NonfiniteError",
    "Oracle",
    "RandomSearch",
    "Search",
    "SuccessiveHalving",
    "TPESearch",
    "Tuner",
    "halving",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_trainkit.tuning.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'keras_trainkit.tuning' has no attribute {name!r}")
