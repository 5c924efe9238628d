"""Batches computed in parts: chosen, or found when memory runs out."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import backend, checks
from keras_trainkit.training.installation import Model


def micro_batches(model: Model, size: int | None = None) -> Model:
    """Has a model compute each batch in parts that fit into memory, with the update of the whole batch.

    The gradients of the parts are summed, each part counting by its samples, and the optimizer moves once, where it
    would have moved without this: `fit`, its callbacks, schedules and `gradient_accumulation_steps` see batches as
    they were. What differs from the whole batch is what a layer computes over the batch, as BatchNormalization does,
    and the masks of dropout.

    When a device runs out of memory, the part is halved and the step goes on from there: until the gradients of a part
    are there on all replicas nothing is written, not even statistics, metrics or seeds. Later batches are computed in
    parts of the new size. The sums need memory, too, one copy of the gradients, from the first batch in parts on.

    It holds for losses that are means over the batch (Keras's default, `"sum_over_batch_size"`). The model's own
    `train_step` runs, be it Keras's or a user's, as long as it calls its optimizer once and writes no trainable
    variable itself; logs that are not metrics are those of the batch's last part. `weigh_samples` may be around it; the
    sharpness-aware helpers may not. The model is saved as ever, without this; `training.plain(model)` takes it off.

    On TensorFlow only, on the devices of one machine: JAX's train step gives the memory of the old state away, so that
    after an error there is nothing to go on from.

    Args:
        model: a Keras model; it need not be compiled yet. Its optimizer must be one of the kit's, or the kit's
            `LossScaleOptimizer` around one.
        size: the most samples of a part on each replica, at least 1. None begins with whole batches.
            `finders.batch_size` finds the largest.

    Returns:
        The model.

    Raises:
        ValueError: for a size below 1, or where it cannot work: another backend, several workers.
        TypeError: if `model` is no model; in training, if the optimizer is none of the kit's.

    Example:

    >>> import keras
    >>> from keras_trainkit import optimizers, training
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizers.Adam(1e-3), "mse")
    >>> history = training.micro_batches(model, 4).fit(keras.ops.ones((10, 3)), keras.ops.ones((10, 1)), 10, verbose=0)
    >>> training.micro_batch_size(model)
    4
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    if size is not None:
        size = checks.integer("size", size, at_least=1)
    if not backend.ON_TENSORFLOW:
        raise ValueError(
            "`micro_batches` needs Keras on TensorFlow: elsewhere an error in a step leaves no state to go on from. "
            "`gradient_accumulation_steps` and smaller batches do the same by hand."
        )
    model.make_train_function = _Maker(model, size)
    model.train_function = None
    return model


def micro_batch_size(model: keras.Model) -> int | None:
    """The most samples of a part on each replica, as `micro_batches` was told, or as memory has made it since.

    None as long as batches are computed whole.
    """
    maker = vars(model).get("make_train_function")
    if not isinstance(maker, _Maker):
        raise ValueError("`model` has no `micro_batches`.")
    return maker.size


class _Maker:
    """Stands in for a model's `make_train_function`."""

    def __init__(self, model: Any, size: int | None) -> None:
        self._model, self._first = model, size
        self._parts: Any = None

    @property
    def size(self) -> int | None:
        """Of the parts."""
        return self._first if self._parts is None else self._parts.size

    def __call__(self, force: bool = False) -> None:
        """Makes the train function anew if there is none; it goes on with the size that was found."""
        from keras_trainkit.training.parts import Parts

        if force or self._model.train_function is None:
            self._parts = Parts(self._model, self.size)
            self._model.train_function = self._parts
