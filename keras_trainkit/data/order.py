"""The order of the examples, and how an epoch is cut into batches: NumPy alone, the same on every backend."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from keras_trainkit.data.sizes import FixedSize, Sizes, first_that_holds


@dataclasses.dataclass(frozen=True)
class Position:
    """How far training has come.

    Attributes:
        epoch: passes over the data that are done.
        done: what is done of the pass at hand: examples of arrays, batches of a stream.
        step: batches since the start of training.
    """

    epoch: int = 0
    done: int = 0
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some batches on end.

    Attributes:
        rows: the numbers of their examples, one batch after the other.
        bounds: where each batch begins in `rows`, and at last where the last one ends.
        weights: of each row, or None where all count alike.
    """

    rows: np.ndarray
    bounds: np.ndarray
    weights: np.ndarray | None = None


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in one epoch: a function of its three arguments.

    >>> epoch_order(5, seed=0, epoch=0).tolist(), epoch_order(5, seed=0, epoch=1).tolist()
    ([2, 4, 3, 0, 1], [1, 4, 3, 0, 2])
    """
    numbers = np.arange(examples, dtype="int32" if examples < 2**31 else "int64")
    np.random.default_rng([seed, epoch]).shuffle(numbers)
    return numbers


def padded_length(rows: int, size: int, sizes: Sizes, replicas: int) -> int:
    """How many rows a last batch gets that has only `rows` of its `size`.

    With one size: as many as there are, in whole copies that the replicas can share, if that is no more than a whole
    batch; else up to the next multiple of the replicas. With several sizes: the smallest of them, so that no new shape
    comes up.

    >>> [padded_length(rows, 8, FixedSize(8), replicas=2) for rows in (1, 2, 3, 4, 5, 7)]
    [2, 2, 6, 4, 6, 8]
    """
    if not isinstance(sizes, FixedSize):
        return first_that_holds(sizes, rows)
    copies = math.lcm(rows, replicas)
    return copies if copies <= size else -(-rows // replicas) * replicas


def repeated(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows fill a batch of `length`, again and again from the first on, and the weight of each.

    A row's copies share its weight, and the weights are such that the mean over the batch is the mean over the real
    rows.

    >>> repeated(2, 3)[0].tolist(), repeated(2, 3)[1].tolist()
    ([0, 1, 0], [0.75, 1.5, 0.75])
    """
    chosen = np.arange(length) % rows
    return chosen, (length / (rows * np.bincount(chosen)[chosen])).astype("float32")


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How arrays are cut into batches.

    Attributes:
        examples: the length of the arrays.
        sizes: of the batches.
        seed: decides order and sizes.
        shuffle: whether there is another order than that of the arrays.
        remainder: "pad" or "drop", for the last batch of an epoch.
    """

    examples: int
    sizes: Sizes
    seed: int
    shuffle: bool = True
    remainder: str = "pad"

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the examples in the epoch's order."""
        if self.shuffle:
            return epoch_order(self.examples, self.seed, epoch)
        return np.arange(self.examples, dtype="int32" if self.examples < 2**31 else "int64")

    def counts(self, position: Position) -> np.ndarray:
        """How many examples each of the batches left in the epoch holds."""
        left = self.examples - position.done
        most = -(-left // self.sizes.values[0])
        planned = self.sizes.at(np.arange(position.step, position.step + most), self.seed)
        ends = np.cumsum(planned)
        number = int(np.searchsorted(ends, left)) + 1
        counts = planned[:number].copy()
        if ends[number - 1] > left:
            if self.remainder == "drop":
                return counts[:-1]
            counts[-1] -= ends[number - 1] - left
        return counts

    def segment(self, position: Position, replicas: int) -> Segment:
        """What is left of the epoch, its last batch filled up."""
        counts = self.counts(position)
        rows = self.order(position.epoch)[position.done : position.done + int(counts.sum())]
        lengths = counts.copy()
        weights = None
        if len(counts):
            size = int(self.sizes.at(np.array([position.step + len(counts) - 1]), self.seed)[0])
            real = int(counts[-1])
            if real < size:
                lengths[-1] = padded_length(real, size, self.sizes, replicas)
                chosen, last = repeated(real, int(lengths[-1]))
                tail = rows[len(rows) - real :][chosen]
                rows = np.concatenate([rows[: len(rows) - real], tail])
                weights = np.concatenate([np.ones(len(rows) - len(last), "float32"), last])
        return Segment(rows, np.concatenate([[0], np.cumsum(lengths)]), weights)

    def needs_weights(self, replicas: int) -> bool:
        """Whether some batch may hold rows that do not all count alike."""
        if self.remainder == "drop":
            return False
        if not isinstance(self.sizes, FixedSize):
            return True
        rest, size = self.examples % self.sizes.size, self.sizes.size
        return bool(rest and padded_length(rest, size, self.sizes, replicas) % rest)

    def endless(self, position: Position) -> Iterator[Segment]:
        """Pass after pass from here on, without a break: what a pass leaves over begins the next one's first batch."""
        epoch, step = position.epoch, position.step
        rows = self.order(epoch)[position.done :]
        while True:
            planned = self.sizes.at(np.arange(step, step + len(rows) // self.sizes.values[0]), self.seed)
            ends = np.cumsum(planned)
            ends = ends[: np.searchsorted(ends, len(rows), side="right")]
            if len(ends):
                yield Segment(rows[: ends[-1]], np.concatenate([[0], ends]))
                rows, step = rows[ends[-1] :], step + len(ends)
            epoch += 1
            rows = np.concatenate([rows, self.order(epoch)])

    def after(self, position: Position, steps: int, endless: bool) -> Position:
        """Where training stands so many batches later; an epoch that is done makes way for the next."""
        if endless:
            planned = self.sizes.at(np.arange(position.step, position.step + steps), self.seed)
            done = position.done + int(planned.sum())
            return Position(position.epoch + done // self.examples, done % self.examples, position.step + steps)
        counts = self.counts(position)
        if steps >= len(counts):
            return Position(position.epoch + 1, 0, position.step + len(counts))
        return Position(position.epoch, position.done + int(counts[:steps].sum()), position.step + steps)
