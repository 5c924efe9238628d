"""AdaBelief: Adam that trusts gradients which are as expected."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByBelief, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class AdaBelief(TransformOptimizer):
    """Steps scaled by the belief in the gradient: small where it surprises, large where it is as expected.

    s = beta_2 s + (1 - beta_2) (g - m)^2 + epsilon stands in for Adam's v. State: 8 bytes per parameter. Equal to timm,
    pytorch_optimizer and TensorFlow Addons without rectification; TensorFlow Addons rectifies by default, with epsilon
    1e-14: `rectify=True, epsilon=1e-14`.

    Reference: Zhuang et al., 2020, arXiv:2010.07468.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, above 0 and below 1.
        epsilon: at least 0; it is added to s at every step, and to the root.
        rectify: wait with the adaptive step as RAdam does.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.AdaBelief(1e-3, rectify=True).epsilon
    1e-16
    """

    info = Info(year=2020, paper="arXiv:2010.07468", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-16,
        rectify: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, above=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.rectify = checks.boolean("rectify", rectify)

    def transform(self) -> Any:
        return chain(ScaleByBelief(self.beta_1, self.beta_2, self.epsilon, self.rectify), ScaleByLearningRate())
