"""Weights that are held at zero: a mask that acts as the variable's constraint."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend


@keras.saving.register_keras_serializable("keras_trainkit")
class WeightMask(keras.constraints.Constraint):
    """Holds some elements of a variable at zero, and the others to a constraint of the user's, if there is one.

    Any optimizer of Keras applies it after each update, inside the compiled step. Those of the kit also take it off the
    gradients, so that norms, moments and averages know nothing of the elements that are gone. `callbacks.
    MagnitudePruning` makes it and `pruning.strip` takes it off; it is saved with the layer that it was given to, one
    bit for each element.

    Args:
        mask: array of truth values in the shape of the variable: true where elements live.
        constraint: another constraint, applied to the elements that live.

    Attributes:
        mask: a variable of truth values; it may change while a compiled step runs.

    >>> import numpy as np
    >>> float(keras.ops.sum(WeightMask(np.array([True, False, True]))(np.array([1.0, 2.0, 4.0], "float32"))))
    5.0
    """

    def __init__(self, mask: Any, constraint: Any = None) -> None:
        self.constraint = keras.constraints.get(constraint)
        values = np.asarray(mask, bool)
        with backend.eager_scope():
            first = backend.First(lambda *_: ops.convert_to_tensor(values))
            self.mask = keras.Variable(first, shape=values.shape, dtype="bool", trainable=False, name="mask")

    def __call__(self, w: Any) -> Any:
        """`w`, a tensor or variable of the mask's shape, with zeros where elements are gone."""
        w = backend.read(w)
        return self.applied(w) if self.constraint is None else self.applied(self.constraint(self.applied(w)))

    def applied(self, values: Any) -> Any:
        """A tensor with zeros where elements are gone; chosen and not multiplied, because 0 times a NaN is not 0."""
        return ops.where(backend.read(self.mask), values, ops.zeros_like(values))

    def get_config(self) -> dict[str, Any]:
        """The mask, a bit for each element, compressed, as text; its shape; and the other constraint."""
        mask = np.asarray(ops.convert_to_numpy(self.mask))
        packed = base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode("ascii")
        constraint = None if self.constraint is None else keras.constraints.serialize(self.constraint)
        return {"mask": packed, "shape": list(mask.shape), "constraint": constraint}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightMask:
        """The constraint from what `get_config` gave."""
        bits = np.frombuffer(zlib.decompress(base64.b64decode(config["mask"])), np.uint8)
        shape = tuple(config["shape"])
        return cls(np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape), config["constraint"])


def mask_of(variable: Any) -> WeightMask | None:
    """The mask that holds elements of the variable at zero, or None."""
    constraint = getattr(variable, "constraint", None)
    return constraint if isinstance(constraint, WeightMask) else None


def masked(variable: Any, values: Any) -> Any:
    """`values`, of the variable's shape, with zeros where the variable's elements are held at zero."""
    mask = mask_of(variable)
    return values if mask is None else mask.applied(values)
