"""AdamW with moments in bfloat16."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdam16, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class AdamW16(TransformOptimizer):
    """AdamW whose moments are kept in bfloat16 and rounded at random: half of AdamW's memory.

    The maths is AdamW's in at least float32; only what is kept between two steps is bfloat16, with 8 significant bits.
    Rounded to nearest, a mean square that decays by 0.999 would stand still, since a step changes it by less than
    half of its last bit. Rounded up or down at random, in the proportion of the distances, it is right on average.
    State: 4 bytes per parameter, 2 for each moment, whatever the variable's dtype. The random numbers are a function
    of `seed`, the step and the variable's place among the others, so a resumed run takes the same steps, and so do
    replicas.

    torchao's AdamW with `bf16_stochastic_round` rounds the weights at random, not the moments; for that there is
    `transforms.RoundAtRandom`.

    Reference: Gupta et al., 2015, arXiv:1502.02551 (stochastic rounding); Zamirai et al., 2020, arXiv:2010.06192.

    Args:
        learning_rate: the step size, or a schedule; the decay follows it.
        weight_decay: at least 0; decoupled, as in `AdamW`.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0.
        epsilon_hat: True adds `epsilon` before debiasing, as Keras does; False after it, as torch and optax do.
        seed: an int, for the rounding.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.AdamW16(1e-3, weight_decay=0.05).info.state_bytes
    4
    """

    info = Info(year=2015, paper="arXiv:1502.02551", state_bytes=4)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        epsilon_hat: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.epsilon_hat = checks.boolean("epsilon_hat", epsilon_hat)
        self.seed = checks.integer("seed", seed)

    def transform(self) -> Any:
        adam = ScaleByAdam16(self.beta_1, self.beta_2, self.epsilon, self.epsilon_hat, self.seed)
        return chain(adam, ScaleByLearningRate())
