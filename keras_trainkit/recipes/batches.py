"""How many batches an epoch has: `data.Batches` makes them, all of one size, pass after pass."""

from __future__ import annotations

from keras_trainkit.recipes.errors import RecipeError


def steps_per_epoch(examples: int, batch_size: int, accumulation: int) -> int:
    """Steps of one epoch: as many whole batches as the examples fill, in whole updates.

    What is left over is not lost: the next epoch begins with it.

    >>> steps_per_epoch(1000, batch_size=32, accumulation=4)
    28
    """
    needed = batch_size * accumulation
    if examples < needed:
        times = f" x accumulation {accumulation}" if accumulation > 1 else ""
        raise RecipeError(
            f"one update takes {needed} examples (batch_size {batch_size}{times}), the training set has {examples}; "
            "lower batch_size"
        )
    return examples // needed * accumulation
