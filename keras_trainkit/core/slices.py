"""Gradients, dense or by rows: an embedding's gradient holds the rows of its batch only, some of them twice."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import backend

if backend.ON_TENSORFLOW:
    import tensorflow as tf


def is_sparse(gradient: Any) -> bool:
    """Whether a gradient holds some rows of its variable only."""
    return backend.ON_TENSORFLOW and isinstance(gradient, tf.IndexedSlices)


def values(gradient: Any) -> Any:
    """The numbers of a gradient: all of a dense one, the rows that a sparse one holds."""
    return gradient.values if is_sparse(gradient) else gradient


def rows(gradient: Any) -> Any:
    """Which rows of its variable a sparse gradient holds; None for a dense one, which holds all."""
    return gradient.indices if is_sparse(gradient) else None


def with_values(gradient: Any, new: Any) -> Any:
    """The gradient with other numbers in place of its own."""
    return tf.IndexedSlices(new, gradient.indices, gradient.dense_shape) if is_sparse(gradient) else new


def cast(gradient: Any, dtype: str) -> Any:
    """The gradient in `dtype`, sparse or dense."""
    return tf.cast(gradient, dtype) if is_sparse(gradient) else ops.cast(gradient, dtype)


def divided(gradient: Any, by: Any) -> Any:
    """The gradient, sparse or dense, over a number."""
    return with_values(gradient, values(gradient) / ops.cast(by, gradient.dtype))


def dense(gradient: Any, rows: int) -> Any:
    """The gradient as a full tensor; rows that occur several times are summed."""
    if is_sparse(gradient):
        return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, rows)
    return ops.convert_to_tensor(gradient)


def unique_rows(gradient: Any) -> Any:
    """A sparse gradient in which every row stands once: those that occurred several times are summed."""
    rows, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def reduced(gradients: list[Any], samples: Any = None, scalars: list[Any] | None = None) -> tuple[list[Any], list[Any]]:
    """The sums over the replicas; with `samples`, a share counts by how many of them it is the mean of.

    The second list holds the sums of `scalars`, which meet together with the gradients.
    """
    scalars, count = scalars or [], len(gradients)
    if samples is None or backend.replicas() == 1:
        sums = backend.all_reduce_sum([*gradients, *scalars])
        return sums[:count], sums[count:]
    samples = ops.cast(samples, "float32")
    weighted = [with_values(g, values(g) * ops.cast(samples, g.dtype)) for g in gradients]
    *sums, total = backend.all_reduce_sum([*weighted, *scalars, samples])
    return [divided(g, total / backend.replicas()) for g in sums[:count]], sums[count:]
