"""Adagrad."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdagrad, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class Adagrad(TransformOptimizer):
    """Gradients divided by the root of their summed squares: rare features keep a large step.

    a = a + g^2, then w = w - learning_rate g / sqrt(a + epsilon). State: 4 bytes per parameter. Equal to Keras's
    Adagrad; torch and the paper add epsilon after the root and start a at zero.

    Reference: Duchi et al., 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization".

    Args:
        learning_rate: the step size, or a schedule; the paper's and torch's default is 0.01.
        initial_accumulator_value: what a starts from, at least 0.
        epsilon: at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Adagrad(0.01).initial_accumulator_value
    0.1
    """

    info = Info(year=2011, paper="Duchi et al., 2011", state_bytes=4)
    keras_slots: ClassVar = [["accumulator"]]

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.initial_accumulator_value = checks.number(
            "initial_accumulator_value", initial_accumulator_value, at_least=0
        )
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        return chain(ScaleByAdagrad(self.initial_accumulator_value, self.epsilon), ScaleByLearningRate())
