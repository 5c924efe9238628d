"""The learning rate for a recipe, found by a range test on its own data, model and optimizer."""

from __future__ import annotations

from typing import Any

from keras_trainkit import finders
from keras_trainkit.data import Dataset
from keras_trainkit.recipes.errors import RecipeError
from keras_trainkit.recipes.preparation import dtype_policy, prepare
from keras_trainkit.recipes.recipe import Recipe


def find_learning_rate(recipe: Recipe, dataset: Dataset | None = None, **options: Any) -> finders.LearningRates:
    """Sweeps learning rates over the run that the recipe describes, with its batches, replicas and precision.

    Args:
        recipe: what the run is to be; its learning rate, schedule and warm-up have no part in it.
        dataset: the recipe's data, if it has been loaded already.
        **options: those of `finders.learning_rate`, such as `minimum`, `maximum`, `steps`, `seeds` and `rule`.

    Returns:
        The `finders.LearningRates`. Nothing is written.

    Raises:
        RecipeError, keras_trainkit.data.DataError: what is wrong, in one line.
    """
    with dtype_policy(recipe.precision):
        job = prepare(recipe, dataset)
        try:
            return finders.learning_rate(job.trained, job.batches(), steps_per_epoch=job.steps_per_epoch, **options)
        except ValueError as error:
            raise RecipeError(" ".join(str(error).split())) from error
