"""What `Batches` and `StreamBatches` share: their place in `fit`, and the position that can be saved and restored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend, checks
from keras_trainkit.data.order import Position

_NO_END = "`{}` must be given: these batches have no end of their own."


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of each batch is for this process.

    Attributes:
        first: the number of its first piece.
        pieces: how many on end it takes, one for each of its replicas.
        of: into how many pieces of the same size each batch is cut.
    """

    first: int = 0
    pieces: int = 1
    of: int = 1

    def bounds(self, length: int, piece: int) -> slice:
        """The rows of a batch of `length` that make up the process's piece of this number."""
        rows = length // self.of
        return slice((self.first + piece) * rows, (self.first + piece + 1) * rows)


class Feed(backend.Adapter):
    """Batches that `fit` takes as `x`, and that know how far training has come.

    A subclass makes the batches from a position on, and says which position follows.
    """

    endless = False

    def __init__(self, seed: int, shard: Any, maps: Any = None) -> None:
        self.seed = checks.integer("seed", seed, at_least=0)
        self.maps = _checked_maps(maps)
        self._shard = _checked_shard(shard)
        self._position = Position()
        """Where the iterator that `fit` uses began; where it will begin, before there is one."""
        self._next = Position()
        """Where the next iterator to be made begins."""
        self._watched: Any = None
        """Keras's epoch iterator in `fit`, which counts the batches."""
        self._asked: Any = None
        """The one that is about to begin an epoch, in `fit` or not."""

    # ---------------------------------------------------------------------------------------------------- subclasses

    def _steps_left(self, position: Position) -> int | None:
        """Batches from `position` to the end of its epoch; None where nobody knows."""
        raise NotImplementedError

    def _after(self, position: Position, steps: int) -> Position:
        raise NotImplementedError

    def _iterate(self, position: Position, share: Share, multiple: int) -> Iterator[Any]:
        """The batches' first pieces of the share, in NumPy, filled up to a multiple."""
        raise NotImplementedError

    def _dataset(self, share: Share) -> Any:
        """A `tf.data.Dataset` of the same, each of whose iterators begins where `_next` is by then."""
        raise NotImplementedError

    def _check_share(self, share: Share) -> None:
        """Raises ValueError for a share that the batches cannot be cut into."""

    def _description(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same, ready for JSON."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------ position

    def state(self, begun: int = 0) -> dict[str, Any]:
        """The position as plain values, ready for JSON: what `restore` takes.

        In a callback, call it where a batch or an epoch has ended: a batch that has begun counts as taken, but for the
        last `begun` ones.
        """
        return {**dataclasses.asdict(self._now(begun)), **self._described()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a position that `state` gave, here or in another process.

        The next epoch of `fit` is then what was left of the one at hand.

        Raises:
            ValueError: for the state of other data, or of batches cut otherwise.
        """
        own = ({"maps": []} if "maps" in state else {}) | self._described()
        fields = [field.name for field in dataclasses.fields(Position)]
        for name in [*fields, *own]:
            if name not in state:
                raise ValueError(f"`state` must be what `state()` gave: it lacks `{name}`. Received: state={state}")
            if name in own and state[name] != own[name]:
                raise ValueError(
                    f"`state` must be of batches made alike; here `{name}` is {own[name]!r}. "
                    f"Received: {name}={state[name]!r}"
                )
        values = [checks.integer(name, state[name], at_least=0) for name in fields]
        self._position = self._next = Position(*values)
        self._watched = None

    def _described(self) -> dict[str, Any]:
        described = self._description()
        return described | {"maps": [_name(function) for function in self.maps]} if self.maps else described

    def _through_maps(self, step: int, batch: Any) -> Any:
        """The whole batch of this step after all maps, in NumPy."""
        for function in self.maps:
            batch = function(step, batch)
        return mapped(lambda leaf: None if leaf is None else np.asarray(leaf), batch) if self.maps else batch

    def _now(self, begun: int = 0) -> Position:
        if self._watched is None:
            return self._position
        return self._after(self._position, backend.steps_taken(self._watched) - begun)

    # --------------------------------------------------------------------------------------------------------- Keras

    @property
    def num_batches(self) -> int | None:
        """Batches to the end of the epoch at hand; None if they have no end, or nobody knows."""
        return None if self.endless else self._steps_left(self._now())

    @property
    def batch_size(self) -> int | None:
        """The number of examples in each batch; None where it changes, or nobody knows."""
        return None

    has_partial_batch = None
    partial_batch_size = None

    def on_epoch_begin(self) -> None:
        """Keras calls it before it makes an epoch's iterator."""
        iterator, purpose = backend.asking()
        self._asked = iterator
        if purpose in ("evaluate", "predict"):
            if self.endless and iterator.steps_per_epoch is None:
                raise ValueError(_NO_END.format("steps"))
            self._next = self._start_of_epoch(self._now())
            self._set_steps(iterator, self._next)
        elif purpose == "build":
            self._next = self._now()
        elif iterator is not None:
            self._begin(iterator)

    def _begin(self, iterator: Any) -> None:
        if self.endless and iterator.steps_per_epoch is None:
            raise ValueError(_NO_END.format("steps_per_epoch"))
        if not self.endless and iterator.steps_per_epoch is not None and self._steps_left(self._now()) is not None:
            raise ValueError(
                "`steps_per_epoch` can be given to `fit` only for batches that go on over the end of a pass: "
                f"make them with `endless=True`. Received: steps_per_epoch={iterator.steps_per_epoch}"
            )
        if self._watched is not iterator or not backend.goes_on(iterator):
            self._position = self._next = self._now()
            self._watched = iterator
        self._set_steps(iterator, self._position)

    def _set_steps(self, iterator: Any, position: Position) -> None:
        """Tells Keras how long the epoch is that begins."""
        if not self.endless:
            backend.set_steps(iterator, self._steps_left(position))

    def _start_of_epoch(self, position: Position) -> Position:
        return dataclasses.replace(position, done=0)

    def on_epoch_end(self) -> None:
        """Keras calls it where an epoch's batches have ended, and at other times."""
        iterator, purpose = backend.asking()
        if purpose == "fit" and iterator is self._watched and not backend.goes_on(iterator) and not self.endless:
            self._position = self._after_epoch(self._position)
            self._next, self._watched = self._position, None

    def _after_epoch(self, position: Position) -> Position:
        return self._after(position, self._steps_left(position) or 0)

    def get_tf_dataset(self) -> Any:
        """What Keras on TensorFlow takes: a `tf.data.Dataset`, or what a strategy makes of one."""
        strategy = backend.asking_strategy()
        if self._shard is not None or strategy.num_replicas_in_sync == 1:
            share = self._shard or Share()
            self._check_share(share)
            return self._dataset(share)
        return backend.distributed_dataset(strategy, self._dataset_of_worker)

    def _dataset_of_worker(self, worker: int, workers: int, replicas: int) -> Any:
        pieces = replicas // workers
        share = Share(worker * pieces, pieces, replicas)
        self._check_share(share)
        return self._dataset(share)

    def get_jax_iterator(self) -> Iterator[Any]:
        """What Keras on JAX takes: an iterator over NumPy arrays."""
        share = self._shard or Share()
        multiple = share.of * backend.devices_of_batch()
        self._check_share(dataclasses.replace(share, of=multiple))
        return self._iterate(self._next, share, multiple)

    get_numpy_iterator = get_jax_iterator

    # ----------------------------------------------------------------------------------------------- without a trainer

    def __iter__(self) -> Iterator[Any]:
        """The batches left of the epoch at hand, in NumPy (all batches to come if they have no end).

        For training loops of your own: what has been taken counts as done.
        """
        start = self._position = self._next = self._now()
        self._watched = None
        share = self._shard or Share()
        self._check_share(share)
        for taken, batch in enumerate(self._iterate(start, share, share.of), 1):
            self._position = self._after(start, taken)
            yield batch
        if self._steps_left(start) is None:
            self._position = self._after_epoch(start)


def with_tuples(part: Any) -> Any:
    """The structure with tuples for lists: tf.data takes a list for one array.

    >>> with_tuples({"a": [1, [2, 3]]})
    {'a': (1, (2, 3))}
    """
    if isinstance(part, dict):
        return {name: with_tuples(value) for name, value in part.items()}
    return tuple(map(with_tuples, part)) if isinstance(part, (list, tuple)) else part


def mapped(function: Callable[[Any], Any], part: Any) -> Any:
    """The structure with the function of each leaf; None stays None."""
    return None if part is None else keras.tree.map_structure(function, part)


def unpacked(data: Any) -> tuple[Any, Any, Any]:
    """`(x, y, sample_weight)` of a batch as Keras would unpack it."""
    return keras.utils.unpack_x_y_sample_weight(data)


def packed(x: Any, y: Any, weights: Any) -> Any:
    """A batch as Keras takes it, with as few parts as it has."""
    if weights is not None:
        return x, y, weights
    return keras.utils.pack_x_y_sample_weight(x, y)


def rows_of(batch: Any) -> int:
    """How many samples a batch in NumPy has."""
    return len(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None))


def sliced(batch: Any, rows: Any) -> Any:
    """Some rows of a batch in NumPy."""
    return mapped(lambda leaf: None if leaf is None else leaf[rows], batch)


def pieces(wholes: Iterable[Any], share: Share) -> Iterator[Any]:
    """What the share has of each batch, a piece for each of its replicas."""
    for whole in wholes:
        length = rows_of(whole)
        for piece in range(share.pieces):
            yield sliced(whole, share.bounds(length, piece))


def weighted(own: Any, weights: np.ndarray | None) -> Any:
    """The user's weights times those of the rows; either may be None."""
    if weights is None:
        return own
    if own is None:
        return weights

    def product(leaf: Any) -> Any:
        return leaf * weights.reshape([-1] + [1] * (leaf.ndim - 1)).astype(leaf.dtype)

    return keras.tree.map_structure(product, own)


def _checked_shard(shard: Any) -> Share | None:
    if shard is None:
        return None
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(f"`shard` must be a pair (index, count). Received: shard={shard!r}")
    count = checks.integer("shard", shard[1], at_least=1)
    return Share(checks.integer("shard", shard[0], at_least=0, at_most=count - 1), 1, count)


def _checked_maps(maps: Any) -> list[Callable[[int, Any], Any]]:
    if maps is None:
        return []
    if not isinstance(maps, (list, tuple)) or not all(callable(function) for function in maps):
        raise TypeError(f"`maps` must be a list of functions of a step and a batch. Received: maps={maps!r}")
    return list(maps)


def _name(function: Any) -> str:
    """What tells a map from others: a dataclass shows its fields, a function would show its address."""
    return repr(function) if dataclasses.is_dataclass(function) else getattr(function, "__name__", "map")
