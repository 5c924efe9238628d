"""LazyAdam: Adam that leaves the rows alone which a sparse gradient does not touch."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.optimizers.adam import Adam
from keras_trainkit.optimizers.metadata import Info


@keras.saving.register_keras_serializable("keras_trainkit")
class LazyAdam(Adam):
    """Adam for large embeddings: only the rows of this step's gradient move, and only they cost time.

    Where a gradient is sparse (`tf.IndexedSlices`, as embeddings give on TensorFlow) rows that it does not hold keep
    their weights and both moments, and do not decay; Adam moves them all in every step, by what is left of their
    momentum. Rows that occur several times are summed first. For dense gradients this is Adam, and equal to
    TensorFlow Addons' LazyAdam with `epsilon_hat`. State: 8 bytes per parameter, 12 with `amsgrad`.

    A variable falls back to Adam's dense step where a row cannot be updated alone: with accumulation, a constraint,
    `ema_overwrite_frequency`, or a transform in `before` or `after` that sees a whole variable or model (but clipping
    by global norm works). `use_ema` alone costs a pass over the table in each step. On JAX, and in a step that
    `jit_compile=True` compiles as a whole, all gradients are dense. Keras's `Embedding` reads its whole table in each
    step, which TensorFlow copies once rows were written; a layer that calls `tf.gather` on the variable avoids that.

    Reference: Kingma and Ba, 2014, arXiv:1412.6980; the lazy form comes from TensorFlow Addons.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0.
        amsgrad: divide by the largest mean square so far.
        epsilon_hat: True adds `epsilon` before debiasing, as Keras and TensorFlow Addons do; False after it.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.LazyAdam(1e-3).lazy
    True
    """

    info = Info(year=2014, paper="arXiv:1412.6980", state_bytes=8, sparse="lazy")
    lazy: ClassVar[bool] = True

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
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, epsilon_hat, **options)
