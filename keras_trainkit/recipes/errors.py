"""The one error for everything about a run that cannot be used; the command prints it in one line."""

from __future__ import annotations


class RecipeError(ValueError):
    """A recipe, a model function or a run directory that cannot be used. The message is one line that says why.

    >>> from keras_trainkit.recipes import Recipe
    >>> Recipe(learning_rate=-0.1)
    Traceback (most recent call last):
    ...
    keras_trainkit.recipes.errors.RecipeError: `learning_rate` must be a number above 0. Received: learning_rate=-0.1
    """
