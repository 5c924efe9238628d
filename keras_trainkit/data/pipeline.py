"""The batches as `tf.data` pipelines; imported on TensorFlow only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_trainkit.data.feed import Share, mapped, packed
from keras_trainkit.data.order import Segment


def tensors(parts: dict[str, Any]) -> dict[str, Any]:
    """The arrays as tensors, each once."""
    with tf.device("CPU:0"):
        return {name: mapped(tf.convert_to_tensor, part) for name, part in parts.items()}


def of_arrays(
    parts: dict[str, Any],
    segments: Callable[[], Iterable[Segment]],
    share: Share,
    examples: int,
    size: int | None,
    rows: int | None,
    weighs: bool,
    endless: bool,
) -> tf.data.Dataset:
    """The pieces of the share, gathered from tensors as the segments say.

    Each iterator asks for `segments` anew. Python runs once for a segment, which is all that is left of an epoch.

    Args:
        parts: x, y and sample_weight as tensors, None for what there is not.
        segments: gives `Segment`s.
        share: which part of each batch.
        examples: length of the tensors.
        size: of the batches, if all but the last of a segment are alike.
        rows: of each piece, if all are alike.
        weighs: whether rows have weights of their own.
        endless: whether more than one segment comes.
    """
    alike = size is not None
    rank = 2 if alike else 1
    indices = tf.TensorSpec([None] * rank, tf.int32 if examples < 2**31 else tf.int64)
    spec = [indices, tf.TensorSpec([None] * rank, tf.float32)] if weighs else [indices]
    # Of batches that are alike there are two matrices, a row for each piece: whole batches, and the last one.
    spec = [*spec, *spec] if alike else [*spec, tf.TensorSpec([None], tf.int64)]

    def arrays() -> Iterator[Any]:
        for segment in segments():
            yield tuple(_matrices(segment, share, size, weighs) if size is not None else _vectors(segment, weighs))

    def deal(*found: Any) -> tf.data.Dataset:
        if not alike:
            return _cut(found[:-1], found[-1], share)
        half = len(found) // 2
        whole, last = (tf.data.Dataset.from_tensor_slices(part) for part in (found[:half], found[half:]))
        return whole.concatenate(last)

    def gather(chosen: Any, *weights: Any) -> Any:
        if rows is not None:
            chosen = tf.ensure_shape(chosen, [rows])
        found = {name: mapped(lambda values: tf.gather(values, chosen), part) for name, part in parts.items()}
        own = found["sample_weight"]
        return packed(found["x"], found["y"], _weighted(own, weights[0]) if weights else own)

    if endless:
        found = tf.data.Dataset.from_generator(arrays, output_signature=tuple(spec))
    else:
        # One call of Python, where a generator takes four.
        found = tf.data.Dataset.range(1).map(lambda _: _from_python(lambda: next(arrays()), spec))
    chosen = found.flat_map(deal)
    batches = chosen.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.with_options(_options()).prefetch(tf.data.AUTOTUNE)


def _from_python(function: Callable[[], Any], spec: list[Any]) -> tuple[Any, ...]:
    values = tf.numpy_function(function, [], [part.dtype for part in spec])
    return tuple(tf.ensure_shape(value, part.shape) for value, part in zip(values, spec, strict=True))


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # They have nothing to gain here, and take their time whenever an iterator is made.
    options.experimental_optimization.apply_default_optimizations = False
    return options


def _vectors(segment: Segment, weighs: bool) -> list[Any]:
    return [segment.rows, *([_weights(segment)] if weighs else []), segment.bounds.astype("int64")]


def _matrices(segment: Segment, share: Share, size: int, weighs: bool) -> list[Any]:
    """Rows (and weights) of the whole batches and of the last one, cut into the pieces of the share."""
    whole = len(segment.rows) // size * size

    def pieces(values: Any) -> list[Any]:
        last = len(values) - whole
        parts = (values[:whole].reshape(-1, share.of, size // share.of), values[whole:])
        parts = (parts[0], parts[1].reshape(min(last, 1), share.of, last // share.of))
        own = slice(share.first, share.first + share.pieces)
        return [part[:, own].reshape(len(part) * share.pieces, part.shape[-1]) for part in parts]

    rows = pieces(segment.rows)
    if not weighs:
        return rows
    weights = pieces(_weights(segment))
    return [rows[0], weights[0], rows[1], weights[1]]


def _weights(segment: Segment) -> Any:
    return np.ones(len(segment.rows), "float32") if segment.weights is None else segment.weights


def _cut(vectors: Any, bounds: Any, share: Share) -> tf.data.Dataset:
    """The pieces of batches that differ in size."""

    def piece(index: Any) -> tuple[Any, ...]:
        batch = index // share.pieces
        begin = bounds[batch]
        length = (bounds[batch + 1] - begin) // share.of
        start = begin + (share.first + index % share.pieces) * length
        return tuple(values[start : start + length] for values in vectors)

    steps = tf.shape(bounds, tf.int64)[0] - 1
    return tf.data.Dataset.range(steps * share.pieces).map(piece)


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
