"""Lion: the sign of a blended momentum."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLearningRate, ScaleByLion


@keras.saving.register_keras_serializable("keras_trainkit")
class Lion(TransformOptimizer):
    """Steps of one size in every coordinate: w = w - learning_rate sign(beta_1 m + (1 - beta_1) g).

    Then m = beta_2 m + (1 - beta_2) g. State: 4 bytes per parameter. The paper takes a learning rate 3 to 10 times
    smaller than AdamW's and a weight decay that much larger. Equal to Keras, timm and optax.

    Reference: Chen et al., 2023, arXiv:2302.06675.

    Args:
        learning_rate: the size of each coordinate's step, or a schedule; the authors' default is 1e-4, Keras's 1e-3.
        beta_1: the blend for the step, from 0 to below 1.
        beta_2: the decay of the momentum, from 0 to below 1.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Lion(1e-4, weight_decay=0.1).beta_2
    0.99
    """

    info = Info(year=2023, paper="arXiv:2302.06675", state_bytes=4)
    keras_slots: ClassVar = [["momentum"]]

    def __init__(self, learning_rate: Any = 1e-4, beta_1: float = 0.9, beta_2: float = 0.99, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)

    def transform(self) -> Any:
        return chain(ScaleByLion(self.beta_1, self.beta_2), ScaleByLearningRate())
