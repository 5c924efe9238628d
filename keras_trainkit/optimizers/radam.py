"""RAdam: rectified Adam."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLearningRate, ScaleByRAdam


@keras.saving.register_keras_serializable("keras_trainkit")
class RAdam(TransformOptimizer):
    """Adam that warms itself up: the adaptive step grows with the evidence for the second moment.

    With rho_inf = 2 / (1 - beta_2) - 1 and rho = rho_inf - 2 t beta_2^t / (1 - beta_2^t): while rho <= 5 the step is
    the debiased momentum; then it is Adam's step times
    sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho)). State: 8 bytes per parameter. Equal to torch,
    timm's legacy form and TensorFlow Addons; pytorch_optimizer skips the early steps unless told otherwise.

    Reference: Liu et al., 2019, arXiv:1908.03265.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, above 0 and below 1.
        epsilon: at least 0; added before the debiasing, as in the authors' code.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.RAdam(1e-3, weight_decay=1e-2).epsilon
    1e-08
    """

    info = Info(year=2019, paper="arXiv:1908.03265", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, above=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        return chain(ScaleByRAdam(self.beta_1, self.beta_2, self.epsilon), ScaleByLearningRate())
