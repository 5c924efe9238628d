"""MARS: AdamW on variance-reduced gradients."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ReduceVariance, ScaleByAdam, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class MARS(TransformOptimizer):
    """AdamW whose gradients are corrected by how they changed since the last step.

    c = g + gamma beta_1 / (1 - beta_1) (g - g of the last step), scaled to a norm of at most 1 for each variable; then
    Adam's step with c. This is the approximate MARS-AdamW, which needs one gradient a step. State: 12 bytes per
    parameter. Equal to the authors' code and pytorch_optimizer; timm differs. The authors give one-dimensional
    variables plain AdamW by default: use `core.partition` for that.

    Reference: Yuan et al., 2024, arXiv:2411.10438.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0; added to the debiased root.
        gamma: how much of the change counts, at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.MARS(3e-3, weight_decay=0.1).gamma
    0.025
    """

    info = Info(year=2024, paper="arXiv:2411.10438", state_bytes=12)

    def __init__(
        self,
        learning_rate: Any = 0.003,
        beta_1: float = 0.95,
        beta_2: float = 0.99,
        epsilon: float = 1e-8,
        gamma: float = 0.025,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.gamma = checks.number("gamma", gamma, at_least=0)

    def transform(self) -> Any:
        moments = ScaleByAdam(self.beta_1, self.beta_2, self.epsilon, epsilon_hat=False)
        return chain(ReduceVariance(self.beta_1, self.gamma), moments, ScaleByLearningRate())
