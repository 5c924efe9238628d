"""How many examples a batch holds: one number, drawn from a set, or growing; always a function of seed and step."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_trainkit.core import checks

_DRAWS = 1024  # made at once: a generator for each draw would cost more than the batch
_STREAM = 0x5175  # apart from the generators of the order


class Sizes:
    """What `Batches` asks: the sizes that occur, and the size at each step."""

    values: list[int]
    """All sizes that may occur, smallest first."""

    def at(self, steps: np.ndarray, seed: int) -> np.ndarray:
        """The size at each of the steps, which are counted from the first batch of training on, over all epochs."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FixedSize(Sizes):
    """The same at every step."""

    size: int

    @property
    def values(self) -> list[int]:  # type: ignore[override]
        """The one size."""
        return [self.size]

    def at(self, steps: np.ndarray, seed: int) -> np.ndarray:
        """The size, as often as there are steps."""
        return np.full(len(steps), self.size, "int64")


@dataclasses.dataclass(frozen=True)
class RandomSize(Sizes):
    """A batch size drawn anew at each step, independently, from a few sizes.

    The draw is a function of the seed of the `Batches` and the step, so that all replicas, workers and backends draw
    alike, and a resumed run goes on with the same draws.

    Args:
        sizes: the sizes, each at least 1. Each is a shape of its own: where steps are compiled by shape (JAX, and
            `jit_compile=True`) so many programs are compiled.
        probabilities: of each size, at least 0; they are divided by their sum. None draws all alike.
        every: steps between draws, at least 1. With accumulation give the optimizer's `gradient_accumulation_steps`:
            then no update mixes sizes.

    Raises:
        TypeError, ValueError: for a value out of its range.

    >>> import numpy as np
    >>> RandomSize([16, 32, 64]).at(np.arange(6), seed=1).tolist()
    [16, 16, 32, 32, 32, 64]
    """

    sizes: Sequence[int]
    probabilities: Sequence[float] | None = None
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", [checks.integer("sizes", size, at_least=1) for size in self.sizes])
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"`sizes` must hold at least one size, and none twice. Received: sizes={self.sizes}")
        object.__setattr__(self, "every", checks.integer("every", self.every, at_least=1))
        if self.probabilities is None:
            return
        chances = [checks.number("probabilities", chance, at_least=0) for chance in self.probabilities]
        if len(chances) != len(self.sizes) or not sum(chances):
            raise ValueError(
                "`probabilities` must hold one number for each size, not all of them 0. "
                f"Received: probabilities={self.probabilities}"
            )
        object.__setattr__(self, "probabilities", [chance / sum(chances) for chance in chances])

    @property
    def values(self) -> list[int]:  # type: ignore[override]
        """All sizes, smallest first."""
        return sorted(self.sizes)

    def at(self, steps: np.ndarray, seed: int) -> np.ndarray:
        """The sizes drawn for these steps."""
        draws = np.asarray(steps) // self.every
        if not len(draws):
            return np.zeros(0, "int64")
        first, last = int(draws.min()) // _DRAWS, int(draws.max()) // _DRAWS
        blocks = [np.random.default_rng([seed, _STREAM, block]).random(_DRAWS) for block in range(first, last + 1)]
        uniform = np.concatenate(blocks)[draws - first * _DRAWS]
        chances = self.probabilities or [1 / len(self.sizes)] * len(self.sizes)
        chosen = np.searchsorted(np.cumsum(chances)[:-1], uniform, side="right")
        return np.array(self.sizes, "int64")[chosen]


@dataclasses.dataclass(frozen=True)
class GrowingSize(Sizes):
    """A batch size that changes at given steps, usually to a larger one.

    Growing the batch can take the place of lowering the learning rate (Smith et al., 2017, arXiv:1711.00489).

    Args:
        sizes: the sizes, each at least 1, in the order in which they come.
        steps: for each size but the first, the step at which it begins: batches since the start of training, over all
            epochs, growing. With accumulation give multiples of `gradient_accumulation_steps`.

    Raises:
        TypeError, ValueError: for a value out of its range.

    >>> import numpy as np
    >>> GrowingSize([32, 64, 128], steps=[2, 4]).at(np.arange(6), seed=0).tolist()
    [32, 32, 64, 64, 128, 128]
    """

    sizes: Sequence[int]
    steps: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", [checks.integer("sizes", size, at_least=1) for size in self.sizes])
        object.__setattr__(self, "steps", [checks.integer("steps", step, at_least=1) for step in self.steps])
        if len(self.sizes) != len(self.steps) + 1 or sorted(set(self.steps)) != self.steps:
            raise ValueError(
                "`steps` must grow, and hold one step for each size but the first. "
                f"Received: sizes={self.sizes}, steps={self.steps}"
            )

    @property
    def values(self) -> list[int]:  # type: ignore[override]
        """All sizes, smallest first."""
        return sorted(set(self.sizes))

    def at(self, steps: np.ndarray, seed: int) -> np.ndarray:
        """The sizes at these steps."""
        return np.array(self.sizes, "int64")[np.searchsorted(self.steps, steps, side="right")]


def checked_sizes(batch_size: Any) -> Sizes:
    """`batch_size` as it was given to a constructor: a number or one of the classes here."""
    if isinstance(batch_size, Sizes):
        return batch_size
    return FixedSize(checks.integer("batch_size", batch_size, at_least=1))


def check_divisible(sizes: Sizes, replicas: int) -> None:
    """Raises ValueError where a batch cannot be dealt out to the replicas evenly."""
    uneven = [size for size in sizes.values if size % replicas]
    if uneven:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of replicas, {replicas}. Received: batch_size={uneven[0]}"
        )


def first_that_holds(sizes: Sizes, rows: int) -> int:
    """The smallest size that is at least `rows`."""
    return sizes.values[bisect.bisect_left(sizes.values, rows)]
