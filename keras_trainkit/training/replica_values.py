"""A batch as a strategy deals it to its replicas: counted, cut along its samples, and dealt again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Span = tuple[int, int]
"""Samples from the first number up to the second."""


def present(data: Any) -> Any:
    """`data` with None for what a dataset says is absent."""
    return keras.tree.map_structure(lambda v: None if isinstance(v, tf.experimental.Optional) else v, data)


def samples(data: Any, strategy: Any) -> list[int]:
    """How many samples each replica of this process has."""
    leaf = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
    return [_count(value) for value in strategy.experimental_local_results(leaf)]


def first(data: Any, strategy: Any) -> Any:
    """What the first replica of this process has."""

    def of_first(leaf: Any) -> Any:
        return None if leaf is None else strategy.experimental_local_results(leaf)[0]

    return keras.tree.map_structure(of_first, data)


def cut(data: Any, spans: list[Span], strategy: Any) -> Any:
    """The samples of each replica's span."""

    def part(leaf: Any) -> Any:
        if leaf is None:
            return None
        values = strategy.experimental_local_results(leaf)
        return deal([_cut(value, *span) for value, span in zip(values, spans, strict=True)], strategy)

    return keras.tree.map_structure(part, data)


def deal(values: list[Any], strategy: Any) -> Any:
    """One value for each replica, as a strategy's `run` takes them."""
    if strategy.num_replicas_in_sync == 1:
        return values[0]
    pick: Callable[[Any], Any] = lambda context: values[context.replica_id_in_sync_group]  # noqa: E731
    return strategy.experimental_distribute_values_from_function(pick)


def _count(value: Any) -> int:
    return int(value.nrows() if isinstance(value, tf.RaggedTensor) else value.shape[0])


def _cut(value: Any, start: int, stop: int) -> Any:
    if not isinstance(value, tf.SparseTensor):
        return value[start:stop]
    begin = [start] + [0] * (len(value.shape) - 1)
    return tf.sparse.slice(value, begin, [stop - start, *value.shape[1:]])


def remaining_spans(counts: list[int], done: list[int], size: int | None) -> list[list[Span]]:
    """The parts that are left of a batch, each a span for every replica, none longer than `size` if that is possible.

    Every replica takes part in every part, so there are no more of them than the replica with the fewest samples has.

    >>> remaining_spans([10], [4], 4)
    [[(4, 7)], [(7, 10)]]
    >>> remaining_spans([4, 3], [0, 0], 2)
    [[(0, 2), (0, 1)], [(2, 4), (1, 3)]]
    """
    left = [count - before for count, before in zip(counts, done, strict=True)]
    parts = 1 if size is None else -(-max(left) // size)
    parts = max(1, min([parts, *(n for n in left if n)]))
    return [
        [(d + n * i // parts, d + n * (i + 1) // parts) for d, n in zip(done, left, strict=True)] for i in range(parts)
    ]
