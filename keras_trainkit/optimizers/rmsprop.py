"""RMSprop."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import Momentum, ScaleByLearningRate, ScaleByRms


@keras.saving.register_keras_serializable("keras_trainkit")
class RMSprop(TransformOptimizer):
    """Gradients divided by the root of a running mean of their squares, optionally centered and with momentum.

    v = rho v + (1 - rho) g^2, then w = w - learning_rate g / sqrt(v + epsilon). State: 4 bytes per parameter, and 4
    more each for momentum and centering. Equal to Keras's RMSprop; torch adds epsilon after the root. The variance of
    the centered form is kept from falling below zero by rounding, where Keras gives NaN.

    Reference: Tieleman and Hinton, 2012, Coursera lecture 6.5; centered: Graves, 2013, arXiv:1308.0850.

    Args:
        learning_rate: the step size, or a schedule.
        rho: the decay of the averages, from 0 to below 1.
        momentum: from 0 (none) to 1.
        epsilon: inside the root, above 0.
        centered: divide by the gradients' standard deviation, not by their root mean square.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.RMSprop(1e-3, momentum=0.9, centered=True).centered
    True
    """

    info = Info(year=2012, paper="Tieleman and Hinton, 2012", state_bytes=4)
    keras_slots: ClassVar = [["velocity"], ["-trace"], ["average_gradient"]]

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.rho = checks.number("rho", rho, at_least=0, below=1)
        self.momentum = checks.number("momentum", momentum, at_least=0, at_most=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.centered = checks.boolean("centered", centered)

    def transform(self) -> Any:
        links = [ScaleByRms(self.rho, self.epsilon, self.centered), ScaleByLearningRate()]
        return chain(*links, Momentum(self.momentum)) if self.momentum else chain(*links)
