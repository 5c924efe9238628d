"""The l1 and l2 penalties under one strength."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import widened


@keras.saving.register_keras_serializable("keras_trainkit")
class ElasticNet(keras.regularizers.Regularizer):
    """factor (l1_ratio sum(abs(w)) + (1 - l1_ratio) / 2 sum(w^2)): one strength, and a ratio of l1 to l2.

    The convention, with its half, is that of glmnet and scikit-learn (`alpha`, `l1_ratio`; Zou and Hastie, 2005,
    "Regularization and variable selection via the elastic net"; Friedman et al., 2010), not that of Keras's `L1L2`,
    whose two factors stand before sum(abs(w)) and sum(w^2): they are `l1` and `l2` here. A search over the strength
    then has one number to change, and the ratio says what kind of solution it is: 1 is the lasso, 0 ridge.

    Two things to know when a `factor` comes from scikit-learn. Its loss is half of the mean squared error, Keras's
    `"mse"` is all of it, and a mean over the outputs, too: for one output take twice its `alpha`. And it leaves the
    intercept alone: give this to `kernel_regularizer`, not to `bias_regularizer`.

    No weight becomes exactly zero by this in training, only small: see `transforms.DecoupledL1` for that. Half
    precision weights are summed in float32, where Keras's `L1L2` overflows or loses digits. At 0 the gradient of the
    l1 part is 0.

    Args:
        factor: the strength (alpha in scikit-learn, lambda in glmnet), at least 0.
        l1_ratio: from 0 to 1 (alpha in glmnet).

    Attributes:
        l1: the `l1` of the same penalty as a `keras.regularizers.L1L2`: factor l1_ratio.
        l2: its `l2`: factor (1 - l1_ratio) / 2.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> regularizer = ElasticNet(0.1, l1_ratio=0.75)
    >>> round(float(regularizer(keras.ops.convert_to_tensor([3.0, -4.0]))), 4)  # 0.1 (0.75 7 + 0.125 25)
    0.8375
    >>> round(regularizer.l1, 4), round(regularizer.l2, 4)
    (0.075, 0.0125)
    """

    def __init__(self, factor: float = 0.01, l1_ratio: float = 0.5) -> None:
        self.factor = checks.number("factor", factor, at_least=0)
        self.l1_ratio = checks.number("l1_ratio", l1_ratio, at_least=0, at_most=1)

    @property
    def l1(self) -> float:
        return self.factor * self.l1_ratio

    @property
    def l2(self) -> float:
        return self.factor * (1 - self.l1_ratio) / 2

    def __call__(self, x: Any) -> Any:
        """The penalty, a scalar in at least float32, for weights `x` of any shape."""
        wide = widened(x)
        # Not `abs`: its gradient at 0 is 1 on JAX.
        return self.l1 * ops.sum(wide * ops.sign(wide)) + self.l2 * ops.sum(ops.square(wide))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"factor": self.factor, "l1_ratio": self.l1_ratio}
