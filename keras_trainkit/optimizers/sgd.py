"""Stochastic gradient descent: plain, with momentum, or with Nesterov's."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import Momentum, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class SGD(TransformOptimizer):
    """Gradient descent, w = w - learning_rate g, optionally with momentum.

    With momentum mu: v = mu v - learning_rate g, then w = w + v, or with `nesterov` w = w + mu v - learning_rate g.
    State: 4 bytes per parameter with momentum, none without. Equal to Keras's SGD; torch applies the learning rate
    after the momentum, which differs when the rate changes.

    Reference: Polyak, 1964; Sutskever et al., 2013, "On the importance of initialization and momentum in deep
    learning".

    Args:
        learning_rate: the step size, or a schedule.
        momentum: from 0 (none) to 1.
        nesterov: look ahead along the momentum.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.SGD(0.1, momentum=0.9, nesterov=True, global_clipnorm=1.0).momentum
    0.9
    """

    info = Info(year=1951, paper="Robbins and Monro, 1951", state_bytes=4)
    keras_slots: ClassVar = [["trace"]]

    def __init__(
        self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **options: Any
    ) -> None:
        super().__init__(learning_rate, **options)
        self.momentum = checks.number("momentum", momentum, at_least=0, at_most=1)
        self.nesterov = checks.boolean("nesterov", nesterov)

    def transform(self) -> Any:
        if not self.momentum:
            return ScaleByLearningRate()
        return chain(ScaleByLearningRate(), Momentum(self.momentum, self.nesterov))
