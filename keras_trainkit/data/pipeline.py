"""The batches as `tf.data` pipelines; imported on TensorFlow only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_trainkit.data.feed import Share, mapped, packed


def tensors(parts: dict[str, Any]) -> dict[str, Any]:
    """The arrays as tensors, each once."""
    with tf.device("CPU:0"):
        return {name: mapped(tf.convert_to_tensor, part) for name, part in parts.items()}


def of_arrays(
    parts: dict[str, Any], segments: Callable[[], Iterable[Any]], share: Share, weighs: bool, rows: int | None
) -> tf.data.Dataset:
    """The pieces of the share, gathered from tensors as the segments say.

    Each iterator asks for `segments` anew. Python runs once for a segment, which is all that is left of an epoch.

    Args:
        parts: x, y and sample_weight as tensors, None for what there is not.
        segments: gives `Segment`s.
        share: which part of each batch.
        weighs: whether rows have weights of their own.
        rows: of each piece, if it is always the same.
    """
    number = tf.int64
    spec: list[Any] = [tf.TensorSpec([None], number), tf.TensorSpec([None], number)]
    if weighs:
        spec.append(tf.TensorSpec([None], tf.float32))

    def arrays() -> Any:
        for segment in segments():
            found = [segment.rows.astype("int64"), segment.bounds.astype("int64")]
            if weighs:
                weights = segment.weights
                found.append([1.0] * len(segment.rows) if weights is None else weights)
            yield tuple(found)

    def cut(order: Any, bounds: Any, *weights: Any) -> tf.data.Dataset:
        def piece(index: Any) -> tuple[Any, ...]:
            batch = index // share.pieces
            begin = bounds[batch]
            length = (bounds[batch + 1] - begin) // share.of
            start = begin + (share.first + index % share.pieces) * length
            return tuple(values[start : start + length] for values in (order, *weights))

        steps = tf.shape(bounds, number)[0] - 1
        return tf.data.Dataset.range(steps * share.pieces).map(piece)

    def gather(chosen: Any, *weights: Any) -> Any:
        chosen = tf.ensure_shape(chosen, [rows])
        found = {name: mapped(lambda values: tf.gather(values, chosen), part) for name, part in parts.items()}
        own = found["sample_weight"]
        return packed(found["x"], found["y"], _weighted(own, weights[0]) if weights else own)

    chosen = tf.data.Dataset.from_generator(arrays, output_signature=tuple(spec)).flat_map(cut)
    return chosen.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def of_batches(batches: Callable[[], Iterable[Any]], first: Any) -> tf.data.Dataset:
    """What an iterable of NumPy batches gives, each like `first` but for the number of rows."""

    def spec(leaf: Any) -> tf.TensorSpec:
        tensor = tf.convert_to_tensor(leaf)
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    signature = keras.tree.map_structure(spec, first)
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)


def _weighted(own: Any, weights: Any) -> Any:
    if own is None:
        return weights

    def product(leaf: Any) -> Any:
        shaped = tf.reshape(weights, [-1] + [1] * (leaf.shape.rank - 1))
        return leaf * tf.cast(shaped, leaf.dtype)

    return keras.tree.map_structure(product, own)
