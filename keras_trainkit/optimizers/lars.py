"""LARS: SGD with layer-wise adaptive rates."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import Momentum, ScaleByLarsRatio, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class LARS(TransformOptimizer):
    """SGD with momentum in which each variable's gradient is scaled to the size of its weights.

    g' = (g + weight_decay w) trust_coefficient norm(w) / (norm(g) + weight_decay norm(w) + epsilon), the ratio 1
    where a norm is zero; then v = momentum v - learning_rate g', w = w + v. State: 4 bytes per parameter.
    Equal to timm; optax puts the decay elsewhere. For large batches;
    `weight_decay_exclude` names the variables without decay.

    Reference: You et al., 2017, arXiv:1708.03888.

    Args:
        learning_rate: the step size, or a schedule.
        weight_decay: added to the gradient, inside the ratio; at least 0.
        momentum: from 0 to below 1.
        trust_coefficient: the size of a step beside that of the weights, above 0.
        epsilon: at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.LARS(1.0, weight_decay=1e-4).momentum
    0.9
    """

    info = Info(year=2017, paper="arXiv:1708.03888", state_bytes=4)
    decays_inside: ClassVar = True

    def __init__(
        self,
        learning_rate: Any = 1.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        epsilon: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.trust_coefficient = checks.number("trust_coefficient", trust_coefficient, above=0)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)

    def transform(self) -> Any:
        ratio = ScaleByLarsRatio(self.trust_coefficient, self.weight_decay, self.epsilon, self.weight_decay_exclude)
        return chain(ratio, ScaleByLearningRate(), Momentum(self.momentum))
