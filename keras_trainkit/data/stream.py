"""`StreamBatches`: generators and `tf.data` in batches, for `fit`, without losing one."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend, checks
from keras_trainkit.data.feed import (
    Feed,
    Share,
    mapped,
    packed,
    pieces,
    rows_of,
    sliced,
    unpacked,
    weighted,
    with_tuples,
)
from keras_trainkit.data.order import Position, padded_length, repeated
from keras_trainkit.data.sizes import FixedSize, check_divisible, checked_sizes

_UNKNOWN = 2**31 - 1  # steps of an epoch whose end nobody knows yet
_AT_ITS_END = (
    "`source` must hold at least one batch more. Where one generator is not enough, give a function that makes one. "
    "Received: a source that is at its end"
)
_STREAM = 0x57EA  # apart from the generators of arrays' order


class StreamBatches(Feed):
    """Batches from a generator or a `tf.data.Dataset`, each of them trained on once, on any number of replicas.

    Keras under a strategy throws away batches of a generator, those that it has taken to look at and those that were
    read ahead when an epoch ends. Here none is lost: what was taken and not trained on comes again. A batch that the
    replicas do not divide is filled up as `Batches` does it.

    Everything passes through NumPy, in one thread of Python that runs ahead of the training. Arrays in memory are
    faster in `Batches`.

    Args:
        source: one of

            - a function of the epoch (0, 1, ...) that returns an iterable of batches: x alone, `(x, y)` or
              `(x, y, sample_weight)` of arrays, or dicts of them. It is called once for each epoch (and anew when
              training goes on from the middle of one), and makes the order: let it depend on the epoch;
            - a generator or another iterator of batches, which can be gone through only once: one epoch, or any number
              with `steps_per_epoch` in `fit`;
            - a `tf.data.Dataset` of single examples, not batched and not repeated; it needs `batch_size`.

        batch_size: examples to a batch: a number, `RandomSize` or `GrowingSize`, a multiple of the replicas. None takes
            the batches as they come.
        seed: at least 0; decides order and random sizes.
        window: how many examples of a `tf.data.Dataset` to hold in memory and shuffle with each other, in an order that
            is a function of seed, epoch and place; 0 keeps the order.
        remainder: `"pad"` or `"drop"`, what becomes of a last batch that is smaller than `batch_size`.
        maps, shard: as for `Batches`.

    Raises:
        TypeError, ValueError: for a value out of its range; in training, for batches that differ in structure, or a
            generator that is at its end already.

    >>> import numpy as np
    >>> def read(epoch):
    ...     for number in range(3):
    ...         yield np.full((2, 1), number), np.full(2, epoch)
    >>> batches = StreamBatches(read)
    >>> [(x.ravel().tolist(), y.tolist()) for x, y in batches]
    [([0, 0], [0, 0]), ([1, 1], [0, 0]), ([2, 2], [0, 0])]
    >>> batches.state()["epoch"]
    1
    """

    def __init__(
        self,
        source: Any,
        *,
        batch_size: Any = None,
        seed: int = 0,
        window: int = 0,
        remainder: str = "pad",
        maps: Any = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(seed, shard, maps)
        self.sizes = None if batch_size is None else checked_sizes(batch_size)
        self.remainder = checks.one_of("remainder", remainder, ["pad", "drop"])
        self.window = checks.integer("window", window, at_least=0)
        self._once: _Replay | None = None
        if _is_dataset(source):
            if self.sizes is None:
                raise ValueError("`batch_size` must be given for a tf.data.Dataset of examples. Received: None")
            self._source = _windows(source, self.window or max(256, self.sizes.values[-1]), self.window > 0, self.seed)
        elif self.window:
            raise ValueError(f"`window` can shuffle a tf.data.Dataset only. Received: window={window}")
        elif isinstance(source, Iterator):
            self._once = _Replay(source if self.sizes is None else self._cut(source, 0))
        elif callable(source):
            self._source = source
        else:
            raise TypeError(
                "`source` must be a function of the epoch, an iterator or a tf.data.Dataset. "
                f"Received: source={source!r}"
            )

    # ------------------------------------------------------------------------------------------------------------ Feed

    @property
    def batch_size(self) -> int | None:
        """Examples in a batch; None where it changes, or nobody knows."""
        return self.sizes.size if isinstance(self.sizes, FixedSize) else None

    def _steps_left(self, position: Position) -> int | None:
        return None

    def _after(self, position: Position, steps: int) -> Position:
        return Position(position.epoch, position.done + steps, position.step + steps)

    def _after_epoch(self, position: Position) -> Position:
        if self._once is not None:
            return self._after(position, self._length)
        return Position(position.epoch + 1, 0, position.step + self._length)

    def _description(self) -> dict[str, Any]:
        size = repr(self.sizes) if self.sizes is not None and self.batch_size is None else self.batch_size
        return {"batch_size": size, "seed": self.seed, "window": self.window, "remainder": self.remainder}

    def _check_share(self, share: Share) -> None:
        if self.sizes is not None:
            check_divisible(self.sizes, share.of)

    def _begin(self, iterator: Any) -> None:
        super()._begin(iterator)
        if self._once is not None and self._once.ended_before(self._position.done):
            raise ValueError(_AT_ITS_END)

    def _set_steps(self, iterator: Any, position: Position) -> None:
        if iterator.steps_per_epoch is None:
            # Keras would warn where the data end. The number is put right as soon as it is known.
            backend.set_steps(iterator, _UNKNOWN)

    def _start_of_epoch(self, position: Position) -> Position:
        if self._once is not None:
            return position
        return Position(position.epoch, 0, position.step - position.done)

    def _iterate(self, position: Position, share: Share, multiple: int) -> Iterator[Any]:
        yield from pieces(self._wholes(position, multiple), dataclasses.replace(share, pieces=1))

    def _dataset(self, share: Share) -> Any:
        from keras_trainkit.data import pipeline

        now = self._now()
        first = next(pieces(self._made(self._read(now), now.step, share.of), share), None)
        if first is None:
            raise ValueError(_AT_ITS_END)
        return pipeline.of_batches(lambda: pieces(self._wholes(self._next, share.of), share), first)

    # ----------------------------------------------------------------------------------------------------- the batches

    def _wholes(self, position: Position, multiple: int) -> Iterator[Any]:
        return self._made(self._batches(position), position.step, multiple)

    def _made(self, batches: Iterator[Any], step: int, multiple: int) -> Iterator[Any]:
        """The batches after the maps and filled up, the first of them that of `step`."""
        for number, batch in enumerate(batches, step):
            yield self._filled(self._through_maps(number, _paired(batch)), multiple)

    def _batches(self, position: Position) -> Iterator[Any]:
        """The batches from a position on, one of them held back, so that the last one is known before it is used."""
        asked, count = self._asked, 0
        batches = self._read(position)
        held = next(batches, None)
        while held is not None:
            batch, held = held, next(batches, None)
            count += 1
            if held is None:
                self._length = count
                if asked is not None and asked is self._asked and asked.steps_per_epoch is None:
                    backend.set_steps(asked, count)
            yield batch

    def _read(self, position: Position) -> Iterator[Any]:
        if self._once is not None:
            return self._once.items(position.done, lambda: self._now().done)
        batches = iter(self._source(position.epoch))
        if self.sizes is not None:
            batches = self._cut(batches, position.step - position.done)
        return itertools.islice(batches, position.done, None)

    def _cut(self, blocks: Iterable[Any], step: int) -> Iterator[Any]:
        """Batches of the wanted sizes from blocks of any size."""
        held: list[Any] = []
        rows = 0
        for block in blocks:
            block = mapped(np.asarray, block)
            held.append(block)
            rows += rows_of(block)
            while rows >= (size := self._size(step)):
                joined = _joined(held)
                yield sliced(joined, slice(size))
                held, rows, step = [sliced(joined, slice(size, None))], rows - size, step + 1
        if rows and self.remainder == "pad":
            yield _joined(held)

    def _size(self, step: int) -> int:
        assert self.sizes is not None
        return int(self.sizes.at(np.array([step]), self.seed)[0])

    def _filled(self, batch: Any, multiple: int) -> Any:
        """The batch with rows for all replicas, and weights where batches of this kind may need them."""
        weighs = multiple > 1 or not (self.sizes is None or isinstance(self.sizes, FixedSize))
        if not weighs:
            return batch
        rows = rows_of(batch)
        if self.sizes is None:
            length = -(-rows // multiple) * multiple
        elif isinstance(self.sizes, FixedSize):
            length = padded_length(rows, self.sizes.size, self.sizes, multiple)
        else:
            length = padded_length(rows, self.sizes.values[-1], self.sizes, multiple)
        x, y, own = unpacked(batch)
        if y is None and own is None:
            raise ValueError("`source` must give targets where batches are filled up, because rows then have weights.")
        chosen, weights = repeated(rows, length)
        x, y, own = (sliced(part, chosen) for part in (x, y, own))
        return packed(x, y, weighted(own, weights))


@dataclasses.dataclass
class _Replay:
    """An iterator that can be gone through once, and of which what was not used can be had again."""

    source: Iterator[Any]

    def __post_init__(self) -> None:
        self._held: collections.deque[Any] = collections.deque()
        self._first = 0
        self._ended = False
        self._lock = threading.Lock()

    def ended_before(self, number: int) -> bool:
        """Whether there is no item of this number any more."""
        return self._ended and number >= self._first + len(self._held)

    def items(self, number: int, used: Callable[[], int]) -> Iterator[Any]:
        """The items from a number on; `used` says how many will not be asked for again."""
        while True:
            with self._lock:
                while not self._ended and number >= self._first + len(self._held):
                    try:
                        self._held.append(next(self.source))
                    except StopIteration:
                        self._ended = True
                while self._first < min(used(), number):
                    self._held.popleft()
                    self._first += 1
                if self.ended_before(number):
                    return
                item = self._held[number - self._first]
            yield item
            number += 1


def _windows(dataset: Any, window: int, shuffle: bool, seed: int) -> Callable[[int], Iterator[Any]]:
    """A function of the epoch: the examples of a `tf.data.Dataset` in blocks, each of them shuffled."""

    def blocks(epoch: int) -> Iterator[Any]:
        for number, block in enumerate(dataset.batch(window).as_numpy_iterator()):
            if shuffle:
                order = np.random.default_rng([seed, _STREAM, epoch, number]).permutation(rows_of(block))
                block = sliced(block, order)
            yield block

    return blocks


def _paired(batch: Any) -> Any:
    return mapped(np.asarray, with_tuples(batch))


def _joined(blocks: list[Any]) -> Any:
    if len(blocks) == 1:
        return blocks[0]
    return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *blocks)


def _is_dataset(source: Any) -> bool:
    return hasattr(source, "as_numpy_iterator") and hasattr(source, "element_spec")
