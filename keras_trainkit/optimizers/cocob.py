"""COCOB: coin betting in place of a learning rate."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import BetCoins, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class COCOB(TransformOptimizer):
    """COCOB-Backprop: every weight is a gambler who bets on the sign of its next gradient. There is no rate to tune.

    For each element L = max(L, abs(g)), G = G + abs(g), R = max(R - g b, 0), S = S + g; the next bet is
    b' = -S (R + L) / (L max(G + L, alpha L)), and w = w + learning_rate (b' - b).

    The algorithm has no learning rate. `learning_rate` is a multiplier of the weights' distance from their start,
    and 1 is the algorithm: a constant multiplier is the same as training weights of another unit; a schedule to 0
    freezes the weights at the end, which the paper does not do. With `weight_decay` remember that decay goes by
    learning_rate weight_decay, and the rate is 1. State: 16 bytes per parameter. Equal to TensorFlow Addons, which
    keeps the last bet as well.

    Reference: Orabona and Tommasi, 2017, arXiv:1705.07795.

    Args:
        learning_rate: multiplies the steps; leave it at 1. A float or a schedule.
        alpha: how many of the largest gradients must have come before the bets take their full share; above 0.
        epsilon: the largest gradient before the first one, above 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.COCOB().alpha
    100.0
    """

    info = Info(year=2017, paper="arXiv:1705.07795", state_bytes=16, constant_rate=True)

    def __init__(self, learning_rate: Any = 1.0, alpha: float = 100.0, epsilon: float = 1e-8, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.alpha = checks.number("alpha", alpha, above=0)
        self.epsilon = checks.number("epsilon", epsilon, above=0)

    def transform(self) -> Any:
        return chain(BetCoins(self.alpha, self.epsilon), ScaleByLearningRate())
