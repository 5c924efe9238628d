"""R-Drop: two passes with different dropout that shall agree."""

from __future__ import annotations

import warnings
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.training.installation import Model
from keras_trainkit.training.passes import outputs_again, seeds, state_now
from keras_trainkit.training.penalty import (
    Moment,
    checked_strength,
    install_penalty,
    reduction_of,
    strength_now,
    unscaled,
)

_CATEGORICAL = ("CategoricalCrossentropy", "SparseCategoricalCrossentropy", "CategoricalFocalCrossentropy")
_BINARY = ("BinaryCrossentropy", "BinaryFocalCrossentropy")


def r_drop(
    model: Model, strength: Any = 1.0, distribution: str | None = None, from_logits: bool | None = None
) -> Model:
    """Makes a model's `train_step` see each batch twice, with different dropout, and asks both outputs to agree.

    With the outputs P and Q of the two passes the loss is

        (loss(P) + loss(Q)) / 2 + strength (KL(P, Q) + KL(Q, P)) / 2

    averaged over the samples with their weights, masks and the reduction of the compiled loss. Gradients flow through
    both passes, so a step costs two forward and two backward passes. The logs show the divergence, without the
    strength, as `r_drop`; `loss` is the whole.

    The paper writes the sum of the two losses, and so weighs the divergence by 2 `strength` for the same proportion;
    the example in the authors' repository has the mean, as here.

    The model's own `train_step` runs, be it Keras's or a user's, as long as it takes its loss from `self.compute_loss`
    inside of its gradient (on JAX through `stateless_compute_loss` or `compute_loss_and_updates`) and outside of
    conditionals. A loss that it computes by itself cannot be found, which is an error. The second pass moves the seeds
    of the random layers on and leaves no other trace: BatchNormalization counts the batch once, metrics see the first
    outputs, and losses that layers add are those of the first pass. The trackers of losses for each output, and
    metrics that a `compute_loss` of the user's updates, see both. Positions that the `ignore_class` of a loss
    leaves out count in the divergence: mask them.

    It works with any optimizer, loss scaling, accumulation, replicas, `sam` and its kind (one around the other, either
    way), `weigh_samples`, `micro_batches` and `jacobian_penalty`, on TensorFlow and JAX. The model is saved as ever,
    without this.

    Reference: Wu et al., 2021, arXiv:2106.14448.

    Args:
        model: a Keras model with dropout, or other random layers; it need not be compiled yet.
        strength: at least 0, or a schedule of the updates done; 1 to 5 in the paper.
        distribution: "categorical" (the last axis is one distribution) or "binary" (each output is a probability of its
            own; the mean over the last axis, as in Keras's loss). None takes it from the compiled crossentropy.
        from_logits: whether outputs are logits or probabilities; None takes it from the compiled loss. Probabilities
            are kept off 0 and 1 by `keras.config.epsilon()`.

    Returns:
        The model.

    Raises:
        ValueError: for a value out of its range, or a model that has this already; in training, if nothing says what
            the outputs mean, or the train step does not call `compute_loss`.

    >>> import keras
    >>> from keras_trainkit import training
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.2), keras.layers.Dense(2)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = training.r_drop(model, 1.0).fit(keras.ops.ones((8, 3)), keras.ops.ones((8,)), verbose=0)
    >>> sorted(history.history)
    ['loss', 'r_drop']
    """
    checked_strength(strength)
    if distribution is not None:
        checks.one_of("distribution", distribution, ["categorical", "binary"])
    if from_logits is not None:
        checks.boolean("from_logits", from_logits)

    def rule(model: Any, moment: Moment) -> tuple[Any, Any]:
        random = seeds(model)
        if not random:
            warnings.warn("`r_drop` finds no random layer in the model: both passes are the same.", stacklevel=2)
        first, here = moment.loss(), moment.arguments["y_pred"]
        other, scope = outputs_again(model, moment.arguments["x"], state_now(model))
        for seed in random:
            seed.assign(scope.get_current_value(seed))
        second = moment.loss_of(other)
        divergence = _divergence(model, here, other, moment.arguments.get("sample_weight"), distribution, from_logits)
        strong = ops.cast(strength_now(strength, moment.updates), divergence.dtype)
        return (first + second) / 2 + ops.cast(strong * divergence, first.dtype), unscaled(divergence)

    return install_penalty(model, "R-Drop", "r_drop", rule)


def _divergence(model: Any, here: Any, other: Any, weights: Any, distribution: Any, from_logits: Any) -> Any:
    """The sum over the outputs of the model."""
    firsts, seconds = keras.tree.flatten(here), keras.tree.flatten(other)
    weighing, losses = keras.tree.flatten(weights), keras.tree.flatten(getattr(model, "loss", None))
    losses, weighing = (part if len(part) > 1 else part * len(firsts) for part in (losses, weighing))
    total: Any = 0.0
    for p, q, weight, loss in zip(firsts, seconds, weighing, losses, strict=True):
        kind, logits = distribution, from_logits
        if kind is None or logits is None:
            found = _meaning(loss)
            kind, logits = (found[0] if kind is None else kind), (found[1] if logits is None else logits)
        total = total + Divergence(kind, logits, reduction_of(model))(q, p, sample_weight=weight)
    return total


def _meaning(loss: Any) -> tuple[str, bool]:
    """What outputs mean of which this is the loss: the distribution, and whether they are logits."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    plain = name.replace("_", "").lower()
    for kind, names in (("categorical", _CATEGORICAL), ("binary", _BINARY)):
        if plain in [known.lower() for known in names]:
            return kind, bool(getattr(loss, "from_logits", False))
    raise ValueError(
        "`distribution` and `from_logits` must be given to `r_drop` where the compiled loss is none of Keras's "
        f"crossentropies. Received: distribution=None or from_logits=None, and the loss {name}"
    )


class Divergence(keras.losses.Loss):
    """The mean of the two Kullback-Leibler divergences between two outputs, reduced as Keras reduces losses.

    (KL(P, Q) + KL(Q, P)) / 2 is half the sum of (p - q) (log p - log q), in which no term is negative.
    """

    def __init__(self, distribution: str, from_logits: bool, reduction: str) -> None:
        super().__init__(name="divergence", reduction=reduction)
        self.distribution, self.from_logits = distribution, from_logits

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Of each sample (or position)."""
        tiny = keras.config.epsilon()
        if self.distribution == "binary":
            if self.from_logits:
                # log p - log q, less the same of the other outcome, is the difference of the logits.
                return ops.mean((ops.sigmoid(y_pred) - ops.sigmoid(y_true)) * (y_pred - y_true), axis=-1) / 2
            p, q = ops.clip(y_pred, tiny, 1 - tiny), ops.clip(y_true, tiny, 1 - tiny)
            odds = ops.log(p) - ops.log1p(-p) - ops.log(q) + ops.log1p(-q)
            return ops.mean((p - q) * odds, axis=-1) / 2
        if self.from_logits:
            log_p, log_q = ops.log_softmax(y_pred, axis=-1), ops.log_softmax(y_true, axis=-1)
            return ops.sum((ops.exp(log_p) - ops.exp(log_q)) * (log_p - log_q), axis=-1) / 2
        p, q = ops.clip(y_pred, tiny, 1.0), ops.clip(y_true, tiny, 1.0)
        return ops.sum((p - q) * (ops.log(p) - ops.log(q)), axis=-1) / 2
