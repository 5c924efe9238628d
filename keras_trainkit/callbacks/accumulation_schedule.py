"""Gradient accumulation that grows, or shrinks, during training."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.callbacks import optimizers
from keras_trainkit.core import TransformOptimizer, checks


@keras.saving.register_keras_serializable("keras_trainkit")
class AccumulationSchedule(keras.callbacks.Callback):
    """Changes how many batches make an update where epochs begin: small steps at first, large batches later.

    Nothing is compiled anew. A window that is part full when its length changes ends as soon as it holds as many
    batches as the new length asks for; with `FlushAccumulation` it ends with its epoch.

    Schedules in epochs or shares of the run, with `ResolveSpans`, know how many updates the run has with it. Such a run
    that is resumed needs an entry for epoch 0.

    Args:
        steps: dictionary from an epoch (from 0) to the `gradient_accumulation_steps` from then on. Epochs before the
            first keep what the optimizer was made with.

    Raises:
        ValueError: for a negative epoch or a number below 1; and when training begins, for an optimizer that was not
            made with `gradient_accumulation_steps` of 2 or more, and so has no memory for sums.
        TypeError: when training begins, if the optimizer is none of the kit's.

    >>> AccumulationSchedule({0: 1, 5: 4, 10: 16}).steps
    {0: 1, 5: 4, 10: 16}
    """

    def __init__(self, steps: dict[int, int]) -> None:
        super().__init__()
        # JSON makes text of the keys.
        given = {int(epoch) if isinstance(epoch, str) else epoch: count for epoch, count in steps.items()}
        self.steps = {
            checks.integer("steps: an epoch", epoch, at_least=0): checks.integer(f"steps[{epoch}]", count, at_least=1)
            for epoch, count in sorted(given.items())
        }

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = self._optimizer()
        if optimizer.gradient_accumulation_steps is None and max(self.steps.values(), default=1) > 1:
            raise ValueError(
                "`AccumulationSchedule` needs an optimizer that was made with `gradient_accumulation_steps` of 2 or "
                f"more. Received: {optimizer.name} with gradient_accumulation_steps=None"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        begun = [first for first in self.steps if first <= epoch]
        if begun:
            self._optimizer().gradient_accumulation_steps = self.steps[begun[-1]]

    def get_config(self) -> dict[str, Any]:
        """The argument."""
        return {"steps": self.steps}

    def _optimizer(self) -> TransformOptimizer:
        return optimizers.of_the_kit(self)
