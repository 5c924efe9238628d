"""Yogi: Adam with additive steps of the second moment."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLearningRate, ScaleByYogi


@keras.saving.register_keras_serializable("keras_trainkit")
class Yogi(TransformOptimizer):
    """Adam whose second moment changes by at most (1 - beta_2) g^2 at a step, up or down.

    v = v - (1 - beta_2) sign(v - g^2) g^2. State: 8 bytes per parameter. The defaults are those of optax and
    pytorch_optimizer: both moments start at 1e-6, epsilon is added to the debiased root. TensorFlow Addons starts the
    first at 0 and adds epsilon before debiasing: `initial_momentum=0.0, epsilon_hat=True`.

    Reference: Zaheer et al., 2018, "Adaptive Methods for Nonconvex Optimization".

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: above 0; the paper recommends large values.
        initial_momentum: what the mean starts from.
        initial_accumulator_value: what the mean square starts from, at least 0.
        epsilon_hat: True adds `epsilon` before debiasing.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Yogi(1e-2).epsilon
    0.001
    """

    info = Info(year=2018, paper="Zaheer et al., 2018", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-3,
        initial_momentum: float = 1e-6,
        initial_accumulator_value: float = 1e-6,
        epsilon_hat: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.initial_momentum = checks.number("initial_momentum", initial_momentum)
        self.initial_accumulator_value = checks.number(
            "initial_accumulator_value", initial_accumulator_value, at_least=0
        )
        self.epsilon_hat = checks.boolean("epsilon_hat", epsilon_hat)

    def transform(self) -> Any:
        moments = ScaleByYogi(
            self.beta_1,
            self.beta_2,
            self.epsilon,
            self.initial_momentum,
            self.initial_accumulator_value,
            self.epsilon_hat,
        )
        return chain(moments, ScaleByLearningRate())
