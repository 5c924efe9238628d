"""BatchNormalization's moving statistics, recomputed for weights that were not trained at."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend, checks


def refresh_batch_statistics(model: keras.Model, data: Any, batches: int | None = None, batch_size: int = 32) -> int:
    """Recomputes the moving mean and variance of each BatchNormalization layer as population statistics of its inputs.

    The model runs once over the batches; its layers of `keras.layers.BatchNormalization` and
    `layers.GhostBatchNormalization` normalize by the batch, or by its ghost batches, as in training, and all else works
    as in inference (no dropout). Each layer's new mean and variance are those of all its inputs of all batches
    together, whatever their sizes, summed in float64; masked positions do not count. They replace what exponential
    averages left behind from weights of long ago, and suit averaged weights (x of Schedule-Free, moving averages),
    which no training step has ever run. Frozen layers stay as they are, and so does everything else: weights, seeds,
    metrics, the optimizer. It runs eagerly, so take no more data than the statistics need; some thousand samples do.

    Reference: Wu and Johnson, 2021, arXiv:2105.07576, section 3 ("precise" batch normalization).

    Args:
        model: a built model.
        data: an array or a dictionary of arrays, which `batch_size` cuts; or a `tf.data.Dataset`, a `PyDataset` or
            another iterable of batches. Of a batch (x, y) or (x, y, weights) only x is used.
        batches: how many to take; all when left out.
        batch_size: for arrays.

    Returns:
        The number of batches used; 0 if the model has no such layer that can be trained.

    Raises:
        ValueError: if there is no batch.
    """
    layers = _layers(model)
    if batches is not None:
        checks.integer("batches", batches, at_least=1)
    checks.integer("batch_size", batch_size, at_least=1)
    if not layers:
        return 0
    before = batch_normalization_statistics(model)
    moments = {id(layer): _Moments() for layer in layers}
    count = 0
    try:
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_by_batch(layer, moments[id(layer)]))
            for batch in itertools.islice(_batches(data, batch_size), batches):
                model(batch, training=False)
                count += 1
    finally:
        set_batch_normalization_statistics(model, before)
    if not count:
        raise ValueError(f"`data` must hold at least one batch. Received: data={data!r}")
    for layer in layers:
        if moments[id(layer)].count:  # a layer that the model's call does not reach keeps its own
            layer.moving_mean.assign(moments[id(layer)].mean)
            layer.moving_variance.assign(moments[id(layer)].square / moments[id(layer)].count)
    return count


def batch_normalization_statistics(model: keras.Model) -> list[tuple[Any, Any]]:
    """The moving mean and variance of each layer that `refresh_batch_statistics` would change, in NumPy."""
    numpy = keras.ops.convert_to_numpy
    return [(numpy(layer.moving_mean), numpy(layer.moving_variance)) for layer in _layers(model)]


def set_batch_normalization_statistics(model: keras.Model, statistics: list[tuple[Any, Any]]) -> None:
    """Puts back what `batch_normalization_statistics` returned."""
    for layer, (mean, variance) in zip(_layers(model), statistics, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)


class _Moments:
    """Mean and summed squared deviation per channel, merged batch by batch (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.square = 0, 0.0, 0.0

    def add(self, rows: np.ndarray) -> None:
        count, mean = len(rows), rows.mean(axis=0)
        square = np.square(rows - mean).sum(axis=0)
        total, apart = self.count + count, mean - self.mean
        self.square = self.square + square + np.square(apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total


@contextlib.contextmanager
def _by_batch(layer: Any, moments: _Moments) -> Iterator[None]:
    """Has the layer normalize by the batch, whatever it is told, and takes its inputs down."""
    original = layer.call

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        axis = layer.axis % len(inputs.shape)
        values = keras.ops.convert_to_numpy(inputs)
        rows = np.moveaxis(values.astype("float64"), axis, -1).reshape(-1, values.shape[axis])
        if mask is not None:
            kept = np.broadcast_to(
                np.expand_dims(keras.ops.convert_to_numpy(mask), tuple(range(np.ndim(mask), values.ndim - 1))),
                tuple(np.delete(values.shape, axis)),
            )
            rows = rows[kept.reshape(-1)]
        if len(rows):
            moments.add(rows)
        return original(inputs, training=True, mask=mask)

    layer.call = call
    try:
        yield
    finally:
        del layer.call


def _layers(model: keras.Model) -> list[Any]:
    kind = keras.layers.BatchNormalization
    return [x for x in backend.flat_layers(model) if isinstance(x, kind) and x.built and x.trainable]


def _batches(data: Any, batch_size: int) -> Iterable[Any]:
    leaves = list(data.values()) if isinstance(data, dict) else [data]
    if leaves and all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        for start in range(0, leaves[0].shape[0], batch_size):
            yield keras.tree.map_structure(lambda leaf, at=start: leaf[at : at + batch_size], data)
        return
    for batch in (data[i] for i in range(len(data))) if isinstance(data, keras.utils.PyDataset) else data:
        x = keras.utils.unpack_x_y_sample_weight(batch)[0] if isinstance(batch, (tuple, list)) else batch
        # A tf.data batch is foreign to other backends.
        yield x if backend.ON_TENSORFLOW else keras.tree.map_structure(np.asarray, x)
