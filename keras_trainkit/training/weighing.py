"""Micro-batches and replicas that count by their samples."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import TransformOptimizer, backend
from keras_trainkit.precision import LossScaleOptimizer
from keras_trainkit.training.installation import Model, install
from keras_trainkit.training.interception import intercepted


def weigh_samples(model: Model) -> Model:
    """Makes each micro-batch of an accumulation window, and each replica's share of a batch, count by its samples.

    Plain training takes the mean of means: a last batch of 3 counts as much as one of 32 in its window, and on two
    replicas that got 2 samples and 1, the one counts twice. With this every sample counts the same, so that a window is
    one big batch, and the replicas are one device, whatever their sizes. Batches of one size train as they did.

    It holds for losses that are means over the batch, which is Keras's default (`"sum_over_batch_size"`; rows of weight
    zero count as samples there, as they do in a big batch). The model's own `train_step` runs, be it Keras's or a
    user's; `sam` and its kind may be around it as well. The optimizer must be one of the kit's. The model is saved as
    ever, without this: call the function again on a loaded model, and `training.plain(model)` to take it off.

    Args:
        model: a Keras model; it need not be compiled yet.

    Returns:
        The model.

    Raises:
        TypeError: in training, if the optimizer is none of the kit's.
        ValueError: if the model weighs its samples already.

    >>> import keras
    >>> from keras_trainkit import optimizers, training
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizers.Adam(1e-3, gradient_accumulation_steps=4), "mse")
    >>> history = training.weigh_samples(model).fit(keras.ops.ones((9, 3)), keras.ops.ones((9, 1)), 4, verbose=0)
    """

    def around(train_step: Any) -> Any:
        def step(*arguments: Any) -> Any:
            # On JAX the state comes first.
            samples = _rows(arguments[-1])

            def apply(original: Any, grads: Any, trainable_variables: Any = None, **_: Any) -> Any:
                return original(grads, trainable_variables, samples=samples)

            with intercepted(_target(model.optimizer), "apply", apply):
                return train_step(*arguments)

        return backend.plain_python(step)

    return install(model, "sample-weighing", around)


def _rows(data: Any) -> Any:
    return ops.shape(next(leaf for leaf in keras.tree.flatten(data) if leaf is not None))[0]


def _target(optimizer: Any) -> Any:
    """The optimizer whose `apply` reduces the gradients."""
    if isinstance(optimizer, (TransformOptimizer, LossScaleOptimizer)):
        return optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    if isinstance(inner, TransformOptimizer):
        return inner
    raise TypeError(
        "`weigh_samples` needs an optimizer of keras_trainkit; `optimizers.wrap` makes one of any other. "
        f"Received: {type(optimizer).__name__}"
    )
