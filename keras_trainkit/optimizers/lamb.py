"""LAMB: Adam with layer-wise trust ratios."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import AddDecay, ScaleByAdam, ScaleByLearningRate, ScaleByTrustRatio


@keras.saving.register_keras_serializable("keras_trainkit")
class LAMB(TransformOptimizer):
    """Adam's direction with decay, scaled in each variable to the size of the weights.

    u = m / (sqrt(v) + epsilon) + weight_decay w, debiased; w = w - learning_rate norm(w) / norm(u) u.
    State: 8 bytes per parameter. Equal to TensorFlow Addons, timm (always_adapt) and optax; Keras's Lamb puts the
    decay outside of the ratio. For large batches.
    `weight_decay_exclude` names the variables without decay; their ratio stays.

    Reference: You et al., 2019, arXiv:1904.00962.

    Args:
        learning_rate: the step size, or a schedule.
        weight_decay: added to the direction, inside the ratio; at least 0.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0; added to the debiased root.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.LAMB(1e-3, weight_decay=0.01).weight_decay
    0.01
    """

    info = Info(year=2019, paper="arXiv:1904.00962", state_bytes=8)
    decays_inside: ClassVar = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        moments = ScaleByAdam(self.beta_1, self.beta_2, self.epsilon, epsilon_hat=False)
        decay = AddDecay(self.weight_decay, self.weight_decay_exclude)
        return chain(moments, decay, ScaleByTrustRatio(), ScaleByLearningRate())
