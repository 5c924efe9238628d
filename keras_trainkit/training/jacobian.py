"""The Jacobian penalty: outputs that change little when the inputs do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, checks, randomness
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.training.installation import Model
from keras_trainkit.training.passes import outputs_again
from keras_trainkit.training.penalty import (
    Moment,
    checked_strength,
    install_penalty,
    reduction_of,
    strength_now,
    unscaled,
)

_STREAM = 0x1AC0
_TINY = 1e-30


def jacobian_penalty(model: Model, strength: Any, projections: int | None = 1, seed: int = 0) -> Model:
    """Adds to a model's loss the squared Frobenius norm of the Jacobian of its outputs with respect to its inputs.

    The loss becomes

        loss + strength / 2 mean of norm(d outputs / d inputs)^2

    averaged over the samples with their weights and the reduction of the compiled loss. The norm is estimated without
    bias from a few random directions v in the space of the outputs: with C outputs and n directions that are orthogonal
    to each other it is C / n times the sum of norm(v J)^2. With n = C this is the norm itself. (The authors' code draws
    the directions independently; orthogonal ones have a smaller variance.) The logs show the mean of the squared norm,
    without the strength, as `jacobian`; `loss` is the whole.

    A step costs one more forward pass, with the dropout masks of the first one, and for each direction a backward pass
    whose own gradient is taken again. Use it on logits: the Jacobian of probabilities vanishes where they saturate,
    too. The model's own `train_step` runs, as for `r_drop`, with the same conditions; the pass leaves no trace. All
    outputs of the model count, and all floating inputs. Under BatchNormalization a sample's input moves the outputs of
    others, and those changes count.

    It works with any optimizer, loss scaling, accumulation (another direction in each micro-batch), replicas (which
    draw what one device would), `sam` and its kind (both of its gradients have the penalty, with the same directions),
    `weigh_samples`, `micro_batches` and `r_drop`, on TensorFlow and JAX. Every operation of the model needs a second
    derivative. The model is saved as ever, without this.

    Reference: Hoffman, Roberts and Yaida, 2019, arXiv:1908.02729.

    Args:
        model: a Keras model with floating inputs; it need not be compiled yet.
        strength: at least 0, or a schedule of the updates done; the paper's lambda, 0.01 for its images.
        projections: how many directions, from 1 to the number of outputs of a sample; None for all, which is exact.
        seed: of the directions, which are a function of it, the optimizer's updates, the samples seen in the epoch, and
            the sample's place in the batch.

    Returns:
        The model.

    Raises:
        ValueError: for a value out of its range, or a model that has this already; in training, for more projections
            than outputs, outputs of unknown size, inputs without a floating one, or a train step that does not call
            `compute_loss`.

    >>> import keras
    >>> from keras_trainkit import training
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> x = keras.ops.ones((8, 3))
    >>> history = training.jacobian_penalty(model, 0.01, projections=2).fit(x, keras.ops.ones((8, 2)), verbose=0)
    >>> sorted(history.history)
    ['jacobian', 'loss']
    """
    checked_strength(strength)
    if projections is not None:
        projections = checks.integer("projections", projections, at_least=1)
    seed = checks.integer("seed", seed, at_least=0)

    def rule(model: Any, moment: Moment) -> tuple[Any, Any]:
        loss = moment.loss()
        norms = _squared_norms(model, moment, projections, seed)
        mean = _Reduced(reduction_of(model))(ops.zeros_like(norms), norms, sample_weight=_weights(moment))
        strong = ops.cast(strength_now(strength, moment.updates), mean.dtype)
        return loss + ops.cast(0.5 * strong * mean, loss.dtype), unscaled(mean)

    return install_penalty(model, "Jacobian penalty", "jacobian", rule)


class _Reduced(keras.losses.Loss):
    """Values of samples, reduced as Keras reduces losses."""

    def __init__(self, reduction: str) -> None:
        super().__init__(name="jacobian", reduction=reduction)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The values."""
        return y_pred


def _weights(moment: Moment) -> Any:
    """One weight for each sample: the mean over its positions and over the model's outputs."""
    leaves = [leaf for leaf in keras.tree.flatten(moment.arguments.get("sample_weight")) if leaf is not None]
    flat = [ops.mean(ops.reshape(w, (ops.shape(w)[0], -1)), axis=-1) if len(w.shape) > 1 else w for w in leaves]
    return sum(flat) / len(flat) if flat else None


def _squared_norms(model: Any, moment: Moment, projections: int | None, seed: int) -> Any:
    """For each sample the squared norm of its Jacobian, or the estimate of it."""
    x = moment.arguments["x"]
    leaves = keras.tree.flatten(x)
    if not all(leaf is None or backend.is_dense(leaf) for leaf in leaves):
        raise TypeError(f"`jacobian_penalty` needs dense inputs. Received: {[type(leaf).__name__ for leaf in leaves]}")
    moving = [i for i, leaf in enumerate(leaves) if leaf is not None and _is_floating(leaf)]
    if not moving:
        raise ValueError(
            "The model's inputs must hold at least one of a floating dtype for `jacobian_penalty`. "
            f"Received: inputs of the dtypes {[getattr(leaf, 'dtype', None) for leaf in leaves]}"
        )

    def function(inputs: list[Any]) -> list[Any]:
        # Not arrays beside the tensors of a gradient: Keras takes no mixture.
        whole = [None if leaf is None else ops.convert_to_tensor(leaf) for leaf in leaves]
        for position, value in zip(moving, inputs, strict=True):
            whole[position] = value
        outputs, _ = outputs_again(model, keras.tree.pack_sequence_as(x, whole), moment.before)
        return [o for o in keras.tree.flatten(outputs) if o is not None]

    outputs, pull = pullback(function, [leaves[i] for i in moving])
    shapes = [tuple(o.shape[1:]) for o in outputs]
    if any(size is None for shape in shapes for size in shape):
        raise ValueError(f"`jacobian_penalty` needs outputs of known shape. Received: a model of outputs {shapes}")
    sizes = [math.prod(shape) for shape in shapes]
    count = sum(sizes)
    number = count if projections is None else projections
    if number > count:
        raise ValueError(
            f"`projections` must be an integer at most the number of outputs of the model, {count}. "
            f"Received: projections={projections}"
        )
    rows, total = ops.shape(outputs[0])[0], 0.0
    for direction in directions(rows, count, number, seed, moment.word, wide_dtype(outputs[0].dtype)):
        pieces, start = [], 0
        for output, shape, size in zip(outputs, shapes, sizes, strict=True):
            piece = ops.reshape(direction[:, start : start + size], (-1, *shape))
            pieces.append(ops.cast(piece, output.dtype))
            start += size
        for gradient in pull(pieces):
            wide = ops.reshape(ops.cast(gradient, wide_dtype(gradient.dtype)), (rows, -1))
            total = total + ops.sum(ops.square(wide), axis=-1)
    return total * (count / number)


def directions(rows: Any, size: int, number: int, seed: int, word: Any, dtype: str) -> list[Any]:
    """So many vectors for each row, of length 1, orthogonal to each other, each of any direction alike.

    Args:
        rows: how many samples; an int or a scalar tensor.
        size: of each vector.
        number: at most `size`; if equal, the axes.
        seed: an int.
        word: scalar uint32 tensor, another one in each step.
        dtype: of the vectors.

    Returns:
        A list of tensors of shape `(rows, size)`.
    """
    if number == size:
        axes = ops.eye(size, dtype=dtype)
        return [ops.broadcast_to(axes[i : i + 1], (rows, size)) for i in range(size)]
    # As many rows as all replicas have, so that each draws what one device would have drawn for its rows.
    replica = backend.replica_number()
    start = 0 if replica is None else replica * rows
    found: list[Any] = []
    for index in range(number):
        shape = [rows * backend.replicas(), size]
        drawn = randomness.normal(shape, seed, word, _STREAM + index)[start : start + rows]
        vector = ops.cast(drawn, dtype)
        # Once more for what rounding has left.
        for other in (*found, *found):
            vector = vector - ops.sum(vector * other, axis=-1, keepdims=True) * other
        length = ops.sqrt(ops.sum(ops.square(vector), axis=-1, keepdims=True))
        found.append(vector / ops.maximum(length, _TINY))
    return found


def pullback(function: Callable[[list[Any]], list[Any]], inputs: list[Any]) -> tuple[list[Any], Callable[[Any], Any]]:
    """The outputs of `function`, and what makes gradients for the inputs of gradients for the outputs."""
    if not backend.ON_TENSORFLOW:
        import jax

        outputs, backwards = jax.vjp(function, inputs)
        return outputs, lambda gradients: backwards(gradients)[0]
    import tensorflow as tf

    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    zero = tf.UnconnectedGradients.ZERO
    return outputs, lambda gradients: tape.gradient(outputs, inputs, gradients, unconnected_gradients=zero)


def _is_floating(leaf: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(leaf.dtype)
