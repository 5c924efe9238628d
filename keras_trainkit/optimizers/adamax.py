"""Adamax: Adam by the largest recent gradient."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdamax, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class Adamax(TransformOptimizer):
    """Momentum divided by the largest gradient of late: u = max(beta_2 u, abs(g)).

    w = w - learning_rate / (1 - beta_1^t) m / (u + epsilon). State: 8 bytes per parameter. Equal to Keras's Adamax;
    torch adds epsilon to abs(g) inside the maximum.

    Reference: Kingma and Ba, 2014, arXiv:1412.6980, section 7.1.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the largest gradient, from 0 to below 1.
        epsilon: at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Adamax(2e-3).beta_2
    0.999
    """

    info = Info(year=2014, paper="arXiv:1412.6980", state_bytes=8)
    keras_slots: ClassVar = [["momentum", "norm"]]

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        return chain(ScaleByAdamax(self.beta_1, self.beta_2, self.epsilon), ScaleByLearningRate())
