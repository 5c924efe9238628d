"""What the compiled step hands out when it meets a value that is not finite: the batch, and weights of the moment."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend, slices

GRADIENTS, WEIGHTS = 0, 1


@dataclasses.dataclass
class Share:
    """What one replica saw.

    Attributes:
        kind: `GRADIENTS` if it was loss or gradients, found before the update; `WEIGHTS` if it was weights, after it.
        replica: its number.
        iterations: the updates done before the step.
        bad: whether this replica itself saw it.
        loss: its loss.
        scale: what the loss was multiplied with.
        batch: its part of the batch, flat.
        weights: of all variables of the model: values before the step, or now.
        gradients: of each trainable variable, None where there was none.
    """

    kind: int
    replica: int
    iterations: int
    bad: bool
    loss: float
    scale: float
    batch: list[Any]
    weights: list[Any]
    gradients: list[Any]


class Desk:
    """Takes the shares of all replicas, and gives out events that are complete."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._shares: dict[int, list[Share]] = {}
        self._lock = threading.Lock()

    def put(self, share: Share) -> None:
        """Called from within the compiled step, in any thread."""
        with self._lock:
            self._shares.setdefault(share.replica, []).append(share)

    def take(self) -> list[Share] | None:
        """The shares of one event by replica, once all are there."""
        if not self._shares:
            return None
        with self._lock:
            if len(self._shares) < self._replicas or not all(self._shares.values()):
                return None
            return [self._shares[replica].pop(0) for replica in sorted(self._shares)]


class Courier:
    """Builds the part of the graph that runs only at an event, and carries tensors out to the desk."""

    def __init__(self, desk: Desk, structure: Any) -> None:
        leaves = keras.tree.flatten(structure)
        self._leaves = [leaf for leaf in leaves if leaf is not None and backend.is_dense(leaf)]
        self._desk = desk

    def send(
        self, kind: int, iterations: Any, bad: Any, loss: Any, scale: Any, weights: list[Any], gradients: list[Any]
    ) -> None:
        """Sends; call it inside of a conditional."""
        import tensorflow as tf

        replica = backend.replica_number()
        there = [g is not None for g in gradients]
        numbers = [0 if replica is None else replica, iterations, bad]
        head = [ops.cast(number, "int64") for number in numbers] + [ops.cast(n, "float64") for n in (loss, scale)]
        sent = [slices.values(g) for g in gradients if g is not None]
        counts = len(self._leaves), len(weights)
        receive = _receiver(self._desk, kind, counts, there)
        tf.numpy_function(receive, [*head, *self._leaves, *weights, *sent], [])


def _receiver(desk: Desk, kind: int, counts: tuple[int, int], there: list[bool]) -> Callable[..., None]:
    def receive(replica: Any, iterations: Any, bad: Any, loss: Any, scale: Any, *arrays: Any) -> None:
        held = [np.array(array) for array in arrays]
        leaves, weights = counts
        sent = iter(held[leaves + weights :])
        gradients = [next(sent) if is_there else None for is_there in there]
        desk.put(
            Share(
                kind, int(replica), int(iterations), bool(bad), float(loss), float(scale),
                held[:leaves], held[leaves : leaves + weights], gradients,
            )
        )  # fmt: skip

    return receive


def all_finite(tensors: list[Any]) -> Any:
    """Whether all floating tensors are finite; a scalar.

    One fast pass that adds up squares settles it, unless they overflow; only then each element is asked.
    """
    import tensorflow as tf

    tensors = [t for t in tensors if t is not None and "float" in backend.dtype(t)]
    if not tensors:
        return ops.convert_to_tensor(True)
    wide = [ops.cast(t, "float64" if backend.dtype(t) == "float64" else "float32") for t in tensors]
    total = sum(ops.cast(backend.sum_of_squares(t), "float32") for t in wide)
    return tf.cond(
        ops.isfinite(total),
        lambda: tf.constant(True),
        lambda: ops.all(ops.stack([ops.all(ops.isfinite(t)) for t in tensors])),
    )
