"""NovoGrad: layer-wise normalized gradients."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLearningRate, ScaleByNovoGrad


@keras.saving.register_keras_serializable("keras_trainkit")
class NovoGrad(TransformOptimizer):
    """Momentum of gradients that each variable divides by the norm of its own.

    v = beta_2 v + (1 - beta_2) norm(g)^2, starting at norm(g)^2;
    m = beta_1 m + g / (sqrt(v) + epsilon) + weight_decay w, and
    w = w - learning_rate m. State: 4 bytes per parameter, and 4 per variable. Equal to TensorFlow Addons, optax and
    timm without gradient averaging. The decay passes through the momentum.

    Reference: Ginsburg et al., 2019, arXiv:1905.11286.

    Args:
        learning_rate: the step size, or a schedule.
        weight_decay: added to the normalized gradient; at least 0.
        beta_1: the decay of the momentum, from 0 to below 1.
        beta_2: the decay of the mean squared norm, from 0 to below 1.
        epsilon: above 0.
        grad_averaging: weigh new gradients by 1 - beta_1.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.NovoGrad(1e-3, grad_averaging=True).beta_1
    0.95
    """

    info = Info(year=2019, paper="arXiv:1905.11286", state_bytes=4)
    decays_inside: ClassVar = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.0,
        beta_1: float = 0.95,
        beta_2: float = 0.98,
        epsilon: float = 1e-8,
        grad_averaging: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.grad_averaging = checks.boolean("grad_averaging", grad_averaging)

    def transform(self) -> Any:
        moments = ScaleByNovoGrad(
            self.beta_1, self.beta_2, self.epsilon, self.grad_averaging, self.weight_decay, self.weight_decay_exclude
        )
        return chain(moments, ScaleByLearningRate())
