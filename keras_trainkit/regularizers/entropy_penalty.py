"""A penalty on predictions that are too sure."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.numerics import widened


@keras.saving.register_keras_serializable("keras_trainkit")
class EntropyPenalty(keras.regularizers.Regularizer):
    """-factor times the entropy of the predicted distribution: the confidence penalty, for `activity_regularizer`.

    A classifier that puts all its probability on one class has entropy 0; this pays it for keeping some doubt, much as
    label smoothing does. It goes to the layer that makes the probabilities, or the logits:

        keras.layers.Dense(10, activation="softmax", activity_regularizer=EntropyPenalty(0.1))

    The entropy is in nats, from 0 to log(classes), so the penalty is at most 0. A negative `factor` asks for small
    entropy instead, for sure predictions on unlabelled data (Grandvalet and Bengio, 2005) or attention that picks.

    Keras divides what an activity regularizer says by the size of the batch. The value of a call is therefore the sum
    over the samples (the mean with versions of Keras that do not divide, such as 3.10, so that the loss is the same);
    within a sample it is the mean over the positions (of a sequence, an image), so that the penalty
    keeps its size beside a loss that is a mean over them. Keras gives activity regularizers no masks and no sample
    weights: padded positions count like others.

    It is computed in at least float32. Probabilities of 0 add nothing, with gradient 0.

    Reference: Pereyra et al., 2017, arXiv:1701.06548, without a half. They let the penalty act below a
    threshold, too, and rise in time; for that there is `callbacks.HyperparameterSchedule(regularization=...)`.

    Args:
        factor: the strength (beta in the paper), any number; 0.1 is a common one.
        from_logits: whether the activations are logits, not probabilities; by default they are probabilities, as in
            Keras's losses.
        axis: the axis of the classes.
        binary: whether each activation is a probability (or logit) of its own, as behind a sigmoid, not a class of
            many; then `axis` does not count, and each activation is a position.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for activations without
            such an axis.

    >>> probabilities = keras.ops.convert_to_tensor([[0.5, 0.5], [1.0, 0.0]])
    >>> round(float(EntropyPenalty(0.1)(probabilities)), 4)  # -0.1 (log 2 + 0), over two samples
    -0.0693
    >>> layer = keras.layers.Dense(3, activity_regularizer=EntropyPenalty(0.1, from_logits=True))
    """

    def __init__(self, factor: float = 0.1, from_logits: bool = False, axis: int = -1, binary: bool = False) -> None:
        self.factor = checks.number("factor", factor)
        self.from_logits = checks.boolean("from_logits", from_logits)
        self.axis = checks.integer("axis", axis)
        self.binary = checks.boolean("binary", binary)

    def __call__(self, x: Any) -> Any:
        """The penalty, a scalar in at least float32, for activations `x`: the sum over the first axis."""
        rank = len(x.shape)
        if not self.binary and not (-rank <= self.axis < rank and self.axis % rank > 0):
            raise ValueError(
                "`axis` must be an axis of the activations behind that of the samples; activations have the shape "
                f"{tuple(x.shape)}. Received: axis={self.axis}"
            )
        wide = widened(x)
        entropies = self._of_each(wide) if self.binary else self._of_classes(wide)
        positions = list(range(1, len(entropies.shape)))
        of_samples = ops.mean(entropies, axis=positions) if positions else entropies
        together = ops.sum if backend.divides_activity_penalties() else ops.mean
        return -self.factor * together(of_samples)

    def _of_classes(self, x: Any) -> Any:
        if not self.from_logits:
            return -ops.sum(_times_log(x), axis=self.axis)
        logs = ops.log_softmax(x, axis=self.axis)
        probabilities = ops.exp(logs)
        # A logit of minus infinity, as masks put it, is a probability of 0.
        some = probabilities > 0
        return -ops.sum(ops.where(some, probabilities, 0) * ops.where(some, logs, 0), axis=self.axis)

    def _of_each(self, x: Any) -> Any:
        if not self.from_logits:
            return -_times_log(x) - _times_log(1 - x)
        size = ops.abs(x)  # the entropy is the same for both signs
        return ops.softplus(-size) + size * ops.sigmoid(-size)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {
            "factor": self.factor,
            "from_logits": self.from_logits,
            "axis": self.axis,
            "binary": self.binary,
        }


def _times_log(x: Any) -> Any:
    """x log(x), with value and gradient 0 at 0."""
    some = x > 0
    return ops.where(some, x * ops.log(ops.where(some, x, 1)), 0)
