"""LaProp: momentum of normalized gradients."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLaProp


@keras.saving.register_keras_serializable("keras_trainkit")
class LaProp(TransformOptimizer):
    """Adam with the two steps exchanged: first divide by the root mean square, then take the momentum.

    m = beta_1 m + (1 - beta_1) learning_rate g / (sqrt(v / (1 - beta_2^t)) + epsilon); w = w - m / (1 - beta_1^t).
    State: 8 bytes per parameter. Equal to timm and pytorch_optimizer while the rate is constant.

    Reference: Ziyin et al., 2020, arXiv:2002.04839.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.LaProp(4e-4).epsilon
    1e-15
    """

    info = Info(year=2020, paper="arXiv:2002.04839", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.0004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-15,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        return chain(ScaleByLaProp(self.beta_1, self.beta_2, self.epsilon))
