"""ADOPT: Adam that converges with any beta_2."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdopt, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class ADOPT(TransformOptimizer):
    """Adam with the second moment of the past alone, and momentum after the division.

    The first step only measures. Quotients are cut to (t - 1)^clip_exponent. State: 8 bytes per parameter. Equal to
    the authors' code and optax; timm cuts by an exponent of 1/3 unless told otherwise, pytorch_optimizer one step off.

    Reference: Taniguchi et al., 2024, arXiv:2411.02853.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: the least divisor, above 0.
        clip_exponent: how fast the bound of the quotients grows, at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.ADOPT(1e-3).beta_2
    0.9999
    """

    info = Info(year=2024, paper="arXiv:2411.02853", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.9999,
        epsilon: float = 1e-6,
        clip_exponent: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.clip_exponent = checks.number("clip_exponent", clip_exponent, at_least=0)

    def transform(self) -> Any:
        return chain(ScaleByAdopt(self.beta_1, self.beta_2, self.epsilon, self.clip_exponent), ScaleByLearningRate())
