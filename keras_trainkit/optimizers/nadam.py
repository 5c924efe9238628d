"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLearningRate, ScaleByNAdam


@keras.saving.register_keras_serializable("keras_trainkit")
class NAdam(TransformOptimizer):
    """Adam that looks ahead along its momentum, with the paper's momentum schedule.

    The momentum of step t is beta_1 (1 - 0.5 * 0.96^(t momentum_decay)). State: 8 bytes per parameter, and 4 per
    variable. Equal to torch's NAdam; optax and Keras's Nadam leave the schedule out or handle it otherwise.

    Reference: Dozat, 2016, "Incorporating Nesterov Momentum into Adam".

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0; added to the debiased root.
        momentum_decay: how fast the momentum rises to `beta_1`, at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.NAdam(2e-3).momentum_decay
    0.004
    """

    info = Info(year=2016, paper="Dozat, 2016", state_bytes=8)

    def __init__(
        self,
        learning_rate: Any = 0.002,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        momentum_decay: float = 4e-3,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.momentum_decay = checks.number("momentum_decay", momentum_decay, at_least=0)

    def transform(self) -> Any:
        return chain(ScaleByNAdam(self.beta_1, self.beta_2, self.epsilon, self.momentum_decay), ScaleByLearningRate())
