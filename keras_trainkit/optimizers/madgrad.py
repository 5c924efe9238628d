"""MADGRAD: momentumized dual averaging."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import DualAverage


@keras.saving.register_keras_serializable("keras_trainkit")
class MADGRAD(TransformOptimizer):
    """Weights from the sum of all gradients so far, scaled by the cube root of the sum of their squares.

    s = s + l g and v = v + l g^2 with l = learning_rate sqrt(t); z = w_0 - s / (cbrt(v) + epsilon);
    w = momentum w + (1 - momentum) z. State: 12 bytes per parameter. Equal to the authors' code, timm and optax. Its
    learning rates and weight decays are smaller than SGD's, often decay 0.

    Reference: Defazio and Jelassi, 2021, arXiv:2101.11075.

    Args:
        learning_rate: the step size, or a schedule.
        momentum: how much of the weights stays, from 0 to below 1.
        epsilon: above 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.MADGRAD(1e-2).momentum
    0.9
    """

    info = Info(year=2021, paper="arXiv:2101.11075", state_bytes=12)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        epsilon: float = 1e-6,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)

    def transform(self) -> Any:
        return chain(DualAverage(self.momentum, self.epsilon))
