"""`Batches`: arrays in seeded batches, for `fit`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import checks
from keras_trainkit.data.feed import Feed, Share, mapped, packed, pieces, sliced, unpacked, weighted, with_tuples
from keras_trainkit.data.order import Cutting, Position, Segment
from keras_trainkit.data.sizes import FixedSize, check_divisible, checked_sizes


class Batches(Feed):
    """Arrays in batches whose order is a function of seed and epoch, on every backend and any number of replicas.

    Give it to `fit` (or `evaluate`) as `x`, alone: `model.fit(Batches(x, y, batch_size=64, seed=1), epochs=10)`. It
    knows its position: a second `fit` begins with the next epoch, one that was cut short is gone on with, and `state`
    and `restore` carry the position from one process to another, from the middle of an epoch, too.

    Under a strategy every replica gets as many rows as any other. The last batch of an epoch, which may be smaller than
    the others, keeps its own size on one device. On several it is filled up with copies of its own rows, which share
    their weight, so that the gradient is the mean over the real rows (of losses that are means over the batch, as
    Keras's are by default). BatchNormalization counts rows without their weights: its statistics are exact if every row
    is there equally often (always on one device, and where a whole number of copies fits into a batch); else some rows
    count once more than others. With several batch sizes the last batch is filled up to the smallest that holds it.
    Metrics that are not among the `weighted_metrics` count copies as examples, and in the epoch's mean loss a batch
    counts by its rows, copies included. Where none of this may be, take `remainder="drop"` or `endless`.

    Args:
        x: an array of shape `(n, ...)`, or a tuple, list or dict of such arrays; text, too.
        y: targets, likewise; None if the model has none.
        sample_weight: weights of the examples, shape `(n,)`; or one such array for each output.
        batch_size: examples to a batch, over all replicas together; a number, `RandomSize` or `GrowingSize`. It must be
            a multiple of the number of replicas.
        seed: at least 0; decides the order, and random sizes.
        shuffle: False keeps the order of the arrays, for validation.
        remainder: what becomes of a last batch that is too small: `"pad"` fills it up, `"drop"` leaves it out (other
            examples in each epoch).
        endless: go on over the end of a pass, so that all batches are whole, and what is left over begins the next
            pass. `fit` then needs `steps_per_epoch`, and its epochs are no passes.
        maps: functions of the step and a batch, such as `MixUp`; each whole batch goes through them, in NumPy, before
            it is filled up and dealt to replicas. The step counts batches since the start of training.
        shard: a pair (index, count): gives only this share of each batch, for a process among several that no strategy
            knows of. Workers of a strategy take their shares by themselves.

    Raises:
        TypeError, ValueError: for a value out of its range, arrays of different lengths, or no example at all; in
            `fit`, for a batch size that the replicas do not divide.

    >>> import numpy as np
    >>> batches = Batches(np.arange(5), np.arange(5) * 10, batch_size=2, seed=1)
    >>> [y.tolist() for x, y in batches], [y.tolist() for x, y in batches]
    ([[40, 0], [10, 20], [30]], [[10, 40], [0, 30], [20]])
    >>> batches.state()["epoch"]
    2
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: Any = 32,
        seed: int = 0,
        shuffle: bool = True,
        remainder: str = "pad",
        endless: bool = False,
        maps: Any = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(seed, shard, maps)
        self.sizes = checked_sizes(batch_size)
        self.endless = checks.boolean("endless", endless)
        parts = {"x": x, "y": y, "sample_weight": sample_weight}
        self._parts = {name: _arrays(name, part) for name, part in parts.items()}
        leaves = {name: keras.tree.flatten(part) for name, part in self._parts.items() if part is not None}
        lengths = {len(leaf) for part in leaves.values() for leaf in part}
        if len(lengths) != 1:
            raise ValueError(
                "`x`, `y` and `sample_weight` must hold arrays of one length. Received: "
                + ", ".join(f"{name} of {[len(leaf) for leaf in part]}" for name, part in leaves.items())
            )
        self.examples = lengths.pop()
        if not self.examples:
            raise ValueError("`x` must hold at least one example. Received: an array of length 0")
        self._cutting = Cutting(
            self.examples,
            self.sizes,
            self.seed,
            checks.boolean("shuffle", shuffle),
            checks.one_of("remainder", remainder, ["pad", "drop"]),
        )
        if remainder == "drop" and self.examples < self.sizes.values[-1]:
            raise ValueError(
                f"`batch_size` must be at most the number of examples, {self.examples}, with remainder='drop'. "
                f"Received: batch_size={self.sizes.values[-1]}"
            )
        self._tensors: Any = None

    # -------------------------------------------------------------------------------------------------------- Feed

    @property
    def batch_size(self) -> int | None:
        """Examples in a batch; None where it changes."""
        return self.sizes.size if isinstance(self.sizes, FixedSize) else None

    def _steps_left(self, position: Position) -> int | None:
        return None if self.endless else len(self._cutting.counts(position))

    def _after(self, position: Position, steps: int) -> Position:
        return self._cutting.after(position, steps, self.endless)

    def _description(self) -> dict[str, Any]:
        cutting = self._cutting
        return {
            "examples": self.examples,
            "batch_size": repr(self.sizes) if self.batch_size is None else self.batch_size,
            "seed": self.seed,
            "shuffle": cutting.shuffle,
            "remainder": cutting.remainder,
            "endless": self.endless,
        }

    def _check_share(self, share: Share) -> None:
        check_divisible(self.sizes, share.of)
        if self._parts["y"] is None and self._weighs(share.of):
            raise ValueError(
                "`y` must be given where the last batch is filled up, because rows then have weights: give it, or take "
                "remainder='drop' or endless=True. Received: y=None"
            )

    def _weighs(self, multiple: int) -> bool:
        return not self.endless and self._cutting.needs_weights(multiple)

    def _segments(self, position: Position, multiple: int) -> Iterator[Segment]:
        if self.endless:
            return self._cutting.endless(position)
        return iter([self._cutting.segment(position, multiple)])

    def _iterate(self, position: Position, share: Share, multiple: int) -> Iterator[Any]:
        if self.maps:
            yield from pieces(self._mapped(position, multiple), dataclasses.replace(share, pieces=1))
            return
        weighs = self._weighs(multiple)
        for segment in self._segments(position, multiple):
            for begin, end in zip(segment.bounds[:-1], segment.bounds[1:], strict=True):
                own = share.bounds(int(end - begin), 0)
                span = slice(int(begin) + own.start, int(begin) + own.stop)
                yield self._batch(segment, span, weighs)

    def _mapped(self, position: Position, multiple: int) -> Iterator[Any]:
        """Whole batches after the maps, which see the real rows alone."""
        weighs, step = self._weighs(multiple), position.step
        for segment in self._segments(position, multiple):
            for begin, end in zip(segment.bounds[:-1], segment.bounds[1:], strict=True):
                span = slice(int(begin), int(end))
                real = span.stop - span.start
                if segment.weights is not None and end == segment.bounds[-1]:
                    real = len(np.unique(segment.rows[span]))  # those that fill it up are the first ones again
                batch = self._through_maps(step, self._batch(segment, slice(span.start, span.start + real), False))
                x, y, own = unpacked(sliced(batch, np.arange(span.stop - span.start) % real))
                weights = _weights(segment, span) if weighs else None
                yield packed(x, y, weighted(own, weights))
                step += 1

    def _batch(self, segment: Segment, span: slice, weighs: bool) -> Any:
        rows, weights = segment.rows[span], None
        if weighs:
            weights = _weights(segment, span)
        take = functools.partial(np.take, indices=rows, axis=0)
        x, y, own = (mapped(take, part) for part in self._parts.values())
        return packed(x, y, weighted(own, weights))

    def _dataset(self, share: Share) -> Any:
        from keras_trainkit.data import pipeline

        if self.maps:
            first = next(pieces(self._mapped(self._now(), share.of), share))
            return pipeline.of_batches(lambda: pieces(self._mapped(self._next, share.of), share), first)
        if self._tensors is None:
            self._tensors = pipeline.tensors(self._parts)
        size = self.batch_size
        whole = size is not None and (self.endless or self._cutting.remainder == "drop" or self.examples % size == 0)
        return pipeline.of_arrays(
            self._tensors,
            lambda: self._segments(self._next, share.of),
            share,
            self.examples,
            size,
            rows=size // share.of if size is not None and whole else None,
            weighs=self._weighs(share.of),
            endless=self.endless,
        )


def _weights(segment: Segment, span: slice) -> np.ndarray:
    return np.ones(span.stop - span.start, "float32") if segment.weights is None else segment.weights[span]


def _arrays(name: str, part: Any) -> Any:
    """The part with NumPy arrays for leaves; text as Python strings, which every kind of tensor takes."""

    def leaf(value: Any) -> np.ndarray:
        array = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else np.asarray(value)
        if not array.ndim:
            raise ValueError(f"`{name}` must hold arrays with a row for each example. Received: {value!r}")
        if array.dtype == "float64":
            return array.astype(keras.config.floatx())  # what Keras computes in
        return array.astype(object) if array.dtype.kind == "U" else array

    if _is_list_of_values(part):
        return leaf(part)
    return mapped(leaf, with_tuples(part))


def _is_list_of_values(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and all(isinstance(value, (str, bytes, int, float)) for value in part)
