"""Adan: adaptive Nesterov momentum."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ProximalDecay, ScaleByAdan, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class Adan(TransformOptimizer):
    """Moments of the gradient, of its change, and of their Nesterov blend.

    With d = g - g of the last step: w = w - learning_rate (m + beta_2 v) / (sqrt(n) + epsilon), all debiased, where m
    averages g, v averages d, and n averages (g + beta_2 d)^2. State: 16 bytes per parameter. Equal to the authors'
    code and timm in both forms of decay; optax differs.

    Reference: Xie et al., 2022, arXiv:2208.06677.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the gradient's mean, from 0 to below 1.
        beta_2: the decay of the mean change, from 0 to below 1.
        beta_3: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0; added to the debiased root.
        proximal: True divides by 1 + learning_rate weight_decay after the step (the authors' default); False decays
            before it, as AdamW does.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Adan(1e-3, weight_decay=0.02).proximal
    True
    """

    info = Info(year=2022, paper="arXiv:2208.06677", state_bytes=16)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.98,
        beta_2: float = 0.92,
        beta_3: float = 0.99,
        epsilon: float = 1e-8,
        proximal: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.beta_3 = checks.number("beta_3", beta_3, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.proximal = checks.boolean("proximal", proximal)

    def transform(self) -> Any:
        links = [ScaleByAdan(self.beta_1, self.beta_2, self.beta_3, self.epsilon), ScaleByLearningRate()]
        if self.proximal and self.weight_decay:
            links.append(ProximalDecay(self.weight_decay, self.weight_decay_exclude))
        return chain(*links)

    @property
    def decays_inside(self) -> bool:
        """The proximal form decays by a transform of its own."""
        return self.proximal
