"""Data maps: functions of whole batches, which may draw random numbers; soft labels, and what all maps share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend, checks
from keras_trainkit.data.feed import mapped, packed, unpacked

_STREAM = 0x3A95  # apart from the generators of orders and sizes
_PLACEHOLDER = 8  # for a size that a graph does not know


@dataclasses.dataclass(frozen=True)
class BatchMap:
    """A function of step and batch, `map(step, (x, y, sample_weight))`, whose draws follow from seed and step.

    A subclass overrides `apply`. Arrays give arrays, tensors of TensorFlow tensors, so that it stands in the `map` of
    a `tf.data.Dataset` that was batched and then counted with `enumerate()`.
    """

    def __call__(self, step: Any, batch: Any) -> Any:
        """The batch, mapped.

        Args:
            step: the number of the batch since the start of training, an integer.
            batch: `(x, y)` or `(x, y, sample_weight)`.
        """
        leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
        if any(type(leaf).__module__.startswith("tensorflow") for leaf in leaves):
            return backend.plain_python(_on_tensors)(self._on_arrays, step, batch)
        return self._on_arrays(int(step), batch)

    def apply(self, step: int, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        """`(x, y, sample_weight)` of structures of arrays; the last may be None."""
        raise NotImplementedError

    def _on_arrays(self, step: int, batch: Any) -> Any:
        x, y, weights = unpacked(mapped(_array, batch))
        if y is None:
            raise ValueError(f"`y` must be given: {type(self).__name__} maps targets. Received: y=None")
        return packed(*self.apply(step, x, y, weights))


@dataclasses.dataclass(frozen=True)
class OneHot(BatchMap):
    """Whole-number labels as rows of zeros with a one.

    Args:
        classes: how many, at least 2; or a structure of such numbers like that of `y`, with None for targets that stay.

    Raises:
        TypeError, ValueError: for a value out of its range; in use, for labels that are not from 0 to `classes` - 1.

    >>> import numpy as np
    >>> x, y = OneHot(3)(0, (np.zeros((2, 1)), np.array([2, 0])))
    >>> y.tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    classes: Any

    def __post_init__(self) -> None:
        check_classes(self.classes)

    def apply(self, step: int, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        """Maps the targets alone."""
        return x, soft_targets(y, self.classes), weights


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(BatchMap):
    """Targets moved towards the uniform distribution: (1 - smoothing) y + smoothing / classes.

    Floating targets of shape `(n,)` or `(n, 1)` without `classes` are probabilities of one class against the other, and
    move towards 1/2. For one-hot targets this equals the argument `label_smoothing` of Keras's crossentropies, which is
    simpler where it is there; `SparseCategoricalCrossentropy` has none. It goes with integer labels, before or after
    `MixUp` and `CutMix` with the same result.

    Reference: Szegedy et al., 2015, arXiv:1512.00567.

    Args:
        smoothing: from 0 to 1.
        classes: as for `OneHot`; needed for integer labels. The targets are one-hot rows then: use
            `CategoricalCrossentropy`, and `CategoricalAccuracy`.

    Raises:
        TypeError, ValueError: as for `OneHot`.

    >>> import numpy as np
    >>> x, y = LabelSmoothing(0.2, classes=4)(0, (np.zeros((1, 1)), np.array([1])))
    >>> [round(float(share), 4) for share in y[0]]
    [0.05, 0.85, 0.05, 0.05]
    """

    smoothing: float = 0.1
    classes: Any = None

    def __post_init__(self) -> None:
        checks.number("smoothing", self.smoothing, at_least=0, at_most=1)
        check_classes(self.classes)

    def apply(self, step: int, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        """Maps the targets alone."""

        def smooth(target: np.ndarray) -> np.ndarray:
            several = target.ndim > 1 and target.shape[-1] > 1
            middle = 1 / target.shape[-1] if several else 0.5
            return ((1 - self.smoothing) * target + self.smoothing * middle).astype(target.dtype)

        return x, mapped(smooth, soft_targets(y, self.classes)), weights


def generator(kind: int, seed: int, step: int) -> np.random.Generator:
    """Random numbers for one map at one step."""
    return np.random.default_rng([seed, _STREAM, kind, step])


def check_classes(classes: Any) -> None:
    """Raises for what is no number of classes, nor a structure of them."""
    for number in keras.tree.flatten(classes):
        if number is not None:
            checks.integer("classes", number, at_least=2)


def soft_targets(y: Any, classes: Any) -> Any:
    """Targets as floating numbers: labels as rows, what is floating already as it is."""
    leaves, numbers = keras.tree.flatten(y), keras.tree.flatten(classes)
    numbers = numbers * len(leaves) if len(numbers) == 1 else numbers
    if len(numbers) != len(leaves):
        raise ValueError(
            f"`classes` must be one number, or one for each of the {len(leaves)} targets. Received: classes={classes}"
        )
    return keras.tree.pack_sequence_as(y, [_soft(leaf, n) for leaf, n in zip(leaves, numbers, strict=True)])


def _soft(target: np.ndarray, classes: int | None) -> np.ndarray:
    integer = target.dtype.kind in "iub"
    if not integer and target.dtype.kind != "f":
        raise TypeError(f"`y` must hold numbers. Received: targets of dtype {target.dtype}")
    if classes is None:
        if integer:
            raise ValueError(
                "`classes` must be given for integer labels; numbers to predict and probabilities must be floating. "
                f"Received: classes=None, and targets of dtype {target.dtype}"
            )
        return target
    if target.ndim > 1 and target.shape[-1] == classes and (not integer or _is_one_hot(target)):
        return target.astype(keras.config.floatx()) if integer else target
    labels = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    wrong = (labels < 0) | (labels >= classes) | (labels != np.floor(labels))
    if wrong.any():
        raise ValueError(
            f"`y` must hold labels from 0 to {classes - 1}, or rows of {classes} numbers. "
            f"Received: {labels[wrong][0]}, in targets of shape {target.shape}"
        )
    return np.eye(classes, dtype=keras.config.floatx())[labels.astype("int64")]


def _is_one_hot(target: np.ndarray) -> bool:
    return bool((target.min() >= 0) and (target.sum(axis=-1) == 1).all())


def _array(leaf: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else leaf)


def _on_tensors(function: Callable[[int, Any], Any], step: Any, batch: Any) -> Any:
    import tensorflow as tf

    def placeholder(leaf: Any) -> np.ndarray:
        sizes = [_PLACEHOLDER if size is None else size for size in leaf.shape[1:]]
        return np.zeros([2, *sizes], leaf.dtype.as_numpy_dtype)

    leaves = keras.tree.flatten(batch)
    example = function(0, keras.tree.map_structure(placeholder, batch))
    specs = keras.tree.flatten(example)

    def run(step: Any, *arrays: Any) -> list[np.ndarray]:
        found = function(int(step), keras.tree.pack_sequence_as(batch, list(arrays)))
        return [np.asarray(leaf, spec.dtype) for leaf, spec in zip(keras.tree.flatten(found), specs, strict=True)]

    found = tf.numpy_function(run, [tf.cast(step, tf.int64), *leaves], [tf.as_dtype(spec.dtype) for spec in specs])
    known = all(size is not None for leaf in leaves for size in leaf.shape[1:])
    for tensor, spec in zip(found, specs, strict=True):
        tensor.set_shape([leaves[0].shape[0], *(spec.shape[1:] if known else [None] * (spec.ndim - 1))])
    return keras.tree.pack_sequence_as(example, found)
