"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.optimizers.adam import Adam
from keras_trainkit.optimizers.metadata import Info


@keras.saving.register_keras_serializable("keras_trainkit")
class AdamW(Adam):
    """Adam with weight decay that does not pass through the moments.

    Before each update w = w (1 - learning_rate weight_decay); the rest is Adam. State: 8 bytes per parameter, 12 with
    `amsgrad`. Equal to Keras's AdamW; with `epsilon_hat=False` to torch's. Biases and the weights of
    normalization layers are usually left out: `weight_decay_exclude=["bias", "gamma", "beta"]`.

    Reference: Loshchilov and Hutter, 2017, arXiv:1711.05101.

    Args:
        learning_rate: the step size, or a schedule; the decay follows it.
        weight_decay: at least 0; Keras's default 0.004, torch's 0.01. About 0.1 is common for transformers.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0.
        amsgrad: divide by the largest mean square so far.
        epsilon_hat: True adds `epsilon` before debiasing, as Keras does; False after it, as torch and optax do.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.AdamW(1e-3, weight_decay=0.05, weight_decay_exclude=["bias"]).weight_decay
    0.05
    """

    info = Info(year=2017, paper="arXiv:1711.05101", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        epsilon_hat: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, amsgrad, epsilon_hat, weight_decay=weight_decay, **options
        )
