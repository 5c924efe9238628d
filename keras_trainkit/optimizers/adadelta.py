"""Adadelta."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdadelta, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class Adadelta(TransformOptimizer):
    """Gradients scaled by the ratio of two running root mean squares: of the steps taken, and of the gradients.

    The ratio has the units of the weights, so the paper needs no learning rate: give 1.0 for the paper's method.
    State: 8 bytes per parameter. Equal to Keras's Adadelta and torch's, but for their defaults.

    Reference: Zeiler, 2012, arXiv:1212.5701.

    Args:
        learning_rate: the step size, or a schedule.
        rho: the decay of both averages, from 0 to below 1.
        epsilon: inside both roots, above 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Adadelta(1.0, rho=0.9).rho
    0.9
    """

    info = Info(year=2012, paper="arXiv:1212.5701", state_bytes=8)
    keras_slots: ClassVar = [["accumulated_grad", "accumulated_delta_var"]]

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.95, epsilon: float = 1e-7, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.rho = checks.number("rho", rho, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)

    def transform(self) -> Any:
        return chain(ScaleByAdadelta(self.rho, self.epsilon), ScaleByLearningRate())
