"""ProximalAdagrad: Adagrad that sets weights to exactly zero."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ProximalAdagradStep


@keras.saving.register_keras_serializable("keras_trainkit")
class ProximalAdagrad(TransformOptimizer):
    """Adagrad on the loss alone, then the exact solution of the l1 and l2 penalties (FOBOS).

    a = a + g^2, r = learning_rate / sqrt(a), x = w - r g, and w = sign(x) max(abs(x) - r l1, 0) / (1 + r l2).
    It minimizes loss + l1 sum(abs(w)) + l2 / 2 sum(w^2), and weights that the loss does not need are exactly zero,
    not merely small as with a regularizer in the loss. State: 4 bytes per parameter. Equal to TensorFlow Addons and
    TensorFlow's own kernel for dense gradients; those move only the rows that a sparse gradient names.

    The penalties hold for every variable, biases included; `core.partition` gives some to another transform
    (`transforms.ProximalAdagradStep` is this one).

    Reference: Duchi and Singer, 2009, "Efficient Online and Batch Learning Using Forward Backward Splitting".

    Args:
        learning_rate: the step size, or a schedule.
        initial_accumulator_value: what a starts from, at least 0.
        l1_regularization_strength: the weight of sum(abs(w)), at least 0.
        l2_regularization_strength: the weight of half of sum(w^2), at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.ProximalAdagrad(0.1, l1_regularization_strength=1e-3).l1_regularization_strength
    0.001
    """

    info = Info(year=2009, paper="Duchi and Singer, 2009", state_bytes=4)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.initial_accumulator_value = checks.number(
            "initial_accumulator_value", initial_accumulator_value, at_least=0
        )
        self.l1_regularization_strength = checks.number(
            "l1_regularization_strength", l1_regularization_strength, at_least=0
        )
        self.l2_regularization_strength = checks.number(
            "l2_regularization_strength", l2_regularization_strength, at_least=0
        )

    def transform(self) -> Any:
        return chain(
            ProximalAdagradStep(
                self.initial_accumulator_value, self.l1_regularization_strength, self.l2_regularization_strength
            )
        )
