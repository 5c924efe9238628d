"""Recipes: everything that decides a training run, in one checked value; and the runner that carries one out.

Only the runner needs TensorFlow, and it is loaded at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_trainkit.recipes.errors import RecipeError
from keras_trainkit.recipes.recipe import Recipe
from keras_trainkit.recipes.result import Result

if TYPE_CHECKING:
    from keras_trainkit.recipes.rate_search import find_learning_rate
    from keras_trainkit.recipes.runner import resume, run

__all__ = ["Recipe", "RecipeError", "Result", "find_learning_rate", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name in ("resume", "run"):
        from keras_trainkit.recipes import runner

        return getattr(runner, name)
    if name == "find_learning_rate":
        from keras_trainkit.recipes import rate_search

        return rate_search.find_learning_rate
    raise AttributeError(f"module 'keras_trainkit.recipes' has no attribute {name!r}")
