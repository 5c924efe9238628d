"""Random layers that draw something else on each replica."""

from __future__ import annotations

from typing import Any, TypeVar

import keras

from keras_trainkit.core import backend

Model = TypeVar("Model", bound=keras.Model)


def separate_seeds(model: Model) -> Model:
    """Has dropout and all other random layers of a model draw anew on each replica.

    Under MirroredStrategy each replica has the same seeds, so that the masks of the first sample on every replica are
    equal, and so on: n replicas average n-fold correlated noise. With this the replica's number goes into the seed. The
    first replica draws what it drew before, and a run is still a function of its seeds. It serves every layer that
    keeps a `keras.random.SeedGenerator` as an attribute, as those of Keras and of the kit do. The model is saved as
    ever, without this: call the function again on a loaded model.

    Args:
        model: a Keras model; functional and sequential at any time, a subclassed one when its layers are there.

    Returns:
        The model.

    >>> import keras
    >>> from keras_trainkit import distribution
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5)])
    >>> distribution.separate_seeds(model) is model
    True
    """
    for layer in backend.flat_layers(model):
        for value in list(vars(layer).values()):
            if type(value) is keras.random.SeedGenerator:
                value.__class__ = _ReplicaSeeds
    return model


# Primes this far apart meet no other layer's seed but by chance.
_STRIDE = 1_000_003


class _ReplicaSeeds(keras.random.SeedGenerator):
    def next(self, ordered: bool = True) -> Any:
        """The next seed of this replica."""
        seed = super().next(ordered)
        number = backend.replica_number()
        if number is None:
            return seed
        stride = keras.ops.cast(keras.ops.stack([number * _STRIDE, 0]), backend.dtype(seed))
        return keras.ops.add(seed, stride)
