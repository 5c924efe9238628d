"""Adam, and AMSGrad as its option."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdam, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class Adam(TransformOptimizer):
    """Debiased running mean of the gradients over the root of that of their squares.

    m = beta_1 m + (1 - beta_1) g, v = beta_2 v + (1 - beta_2) g^2, then
    w = w - learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon). State: 8 bytes per parameter,
    12 with `amsgrad`. Equal to Keras's Adam; with `epsilon_hat=False` to torch's and
    optax's.

    Reference: Kingma and Ba, 2014, arXiv:1412.6980; AMSGrad: Reddi et al., 2018, arXiv:1904.09237.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0.
        amsgrad: divide by the largest v so far; the maximum is taken before debiasing, as in Keras and torch.
        epsilon_hat: True adds `epsilon` as above, as Keras does; False adds it to the debiased root, as torch and
            optax do.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers, transforms
    >>> optimizer = optimizers.Adam(1e-3, before=[transforms.Centralize()], after=[transforms.Lookahead(6, 0.5)])
    >>> optimizer.beta_2
    0.999
    """

    info = Info(year=2014, paper="arXiv:1412.6980", state_bytes=8)
    keras_slots: ClassVar = [["momentum", "velocity"], ["velocity_hat"]]

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        epsilon_hat: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.amsgrad = checks.boolean("amsgrad", amsgrad)
        self.epsilon_hat = checks.boolean("epsilon_hat", epsilon_hat)

    def transform(self) -> Any:
        moments = ScaleByAdam(self.beta_1, self.beta_2, self.epsilon, self.amsgrad, self.epsilon_hat)
        return chain(moments, ScaleByLearningRate())
