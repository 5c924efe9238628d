"""Schedule-Free RAdam."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import AddDecay, ScaleBySquares, ScheduleFreeRectified


@keras.saving.register_keras_serializable("keras_trainkit")
class ScheduleFreeRAdam(TransformOptimizer):
    """Schedule-Free AdamW with RAdam's rectification in the place of the warm-up.

    The rate is multiplied by RAdam's rectification term (Liu et al., 2019), which grows from 0 to 1 as the average of
    the squares becomes reliable; before that (the first four updates, with the default `beta_2`) nothing moves but v.
    z, x, y and v are those of `ScheduleFreeAdamW`, and so is the need for `callbacks.EvaluationWeights`. State: 8 bytes
    per parameter, 12 for half-precision weights. Equal to the authors' package schedulefree.

    Reference: Defazio et al., 2024, arXiv:2405.15682.

    Args:
        learning_rate: the step size.
        beta_1: how far y is from z towards x, above 0 and below 1.
        beta_2: the decay of the mean square, above 0 and below 1.
        epsilon: above 0; added to the debiased root.
        r: z of update t counts as t to this power in the average, at least 0.
        weight_lr_power: and as the largest rate so far to this power, at least 0.
        silent_sgd_phase: False makes steps of SGD, with the full rate, where the default makes none.
        **options: the arguments of `core.TransformOptimizer`. `weight_decay` is decoupled from v and taken at y.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.ScheduleFreeRAdam(2.5e-3).silent_sgd_phase
    True
    """

    info = Info(year=2024, paper="arXiv:2405.15682", state_bytes=8, constant_rate=True)

    decays_inside: ClassVar[Any] = True

    def __init__(
        self,
        learning_rate: Any = 0.0025,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, above=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, above=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.r = checks.number("r", r, at_least=0)
        self.weight_lr_power = checks.number("weight_lr_power", weight_lr_power, at_least=0)
        self.silent_sgd_phase = checks.boolean("silent_sgd_phase", silent_sgd_phase)

    def transform(self) -> Any:
        return chain(
            ScaleBySquares(self.beta_2, self.epsilon, rectified=True),
            AddDecay(self.weight_decay or 0.0, self.weight_decay_exclude),
            ScheduleFreeRectified(
                self.beta_1,
                r=self.r,
                weight_lr_power=self.weight_lr_power,
                beta_2=self.beta_2,
                silent_sgd_phase=self.silent_sgd_phase,
            ),
        )
