"""SGDW: SGD with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.optimizers.sgd import SGD


@keras.saving.register_keras_serializable("keras_trainkit")
class SGDW(SGD):
    """SGD with momentum, and weight decay that does not pass through it.

    Before each update w = w (1 - learning_rate weight_decay); the rest is SGD. State: 4 bytes per parameter. Equal to
    timm, pytorch_optimizer and TensorFlow Addons (whose decay is not multiplied by the rate).

    Reference: Loshchilov and Hutter, 2017, arXiv:1711.05101.

    Args:
        learning_rate: the step size, or a schedule; the decay follows it.
        weight_decay: at least 0.
        momentum: from 0 (none) to 1.
        nesterov: look ahead along the momentum.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.SGDW(0.1, weight_decay=5e-4).momentum
    0.9
    """

    info = Info(year=2017, paper="arXiv:1711.05101", state_bytes=4)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, nesterov, weight_decay=weight_decay, **options)
