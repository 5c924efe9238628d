"""AdEMAMix: Adam with a fast and a slow momentum."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdEMAMix, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class AdEMAMix(TransformOptimizer):
    """Adam with a second momentum that remembers tens of thousands of steps.

    w = w - learning_rate (m_1 / (1 - beta_1^t) + alpha m_2) / (sqrt(v / (1 - beta_2^t)) + epsilon). State: 12 bytes
    per parameter. Equal to the authors' code and optax with constant alpha and beta_3. The paper warms both up over
    the whole run for long trainings; here they are constant.

    Reference: Pagliardini et al., 2024, arXiv:2409.03137.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        beta_3: the decay of the slow mean, from 0 to below 1.
        alpha: the weight of the slow mean, at least 0.
        epsilon: at least 0; added to the debiased root.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.AdEMAMix(1e-3, weight_decay=0.1).alpha
    5.0
    """

    info = Info(year=2024, paper="arXiv:2409.03137", state_bytes=12)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        beta_3: float = 0.9999,
        alpha: float = 5.0,
        epsilon: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.beta_3 = checks.number("beta_3", beta_3, at_least=0, below=1)
        self.alpha = checks.number("alpha", alpha, at_least=0)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        return chain(
            ScaleByAdEMAMix(self.beta_1, self.beta_2, self.beta_3, self.alpha, self.epsilon), ScaleByLearningRate()
        )
