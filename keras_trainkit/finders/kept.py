"""What training changes, kept and put back to the bit: for trials after which nothing must be left."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.data.feed import Feed
from keras_trainkit.resuming import snapshot

_ATTRIBUTES = ("train_function", "stop_training", "history")


class Kept:
    """The state of a model, its optimizer, its metrics and its random layers, at the moment this is made.

    Args:
        model: a compiled model; its variables, and those of its metrics and its optimizer, must be there.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._facts, self._values = snapshot.take(model)

    def put_back(self) -> None:
        """Gives the model its state back; it may be done several times."""
        snapshot.put_back(self._facts, self._values, self._model, with_metrics=True)


class Surroundings:
    """What a `fit` changes besides variables: generators of random numbers, attributes, the position in the data.

    Args:
        model: a compiled model.
        data: what `fit` is to be given; of the kit's data the position is kept.
    """

    def __init__(self, model: Any, data: Any = None) -> None:
        self._model = model
        self._attributes = {name: vars(model)[name] for name in _ATTRIBUTES if name in vars(model)}
        self._data = data if isinstance(data, Feed) else None
        self._position = {} if self._data is None else self._data.state()
        self._generators = random.getstate(), np.random.get_state(), backend.operation_seeds()
        seeds = backend.global_seeds()
        self._seeds = None if seeds is None else (seeds.state, np.array(ops.convert_to_numpy(seeds.state)))

    def put_back(self) -> None:
        """Gives all of it back."""
        for name in _ATTRIBUTES:
            if name in self._attributes:
                setattr(self._model, name, self._attributes[name])
            elif name in vars(self._model):
                delattr(self._model, name)
        if self._data is not None:
            self._data.restore(self._position)
        of_python, of_numpy, of_operations = self._generators
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        backend.set_operation_seeds(of_operations)
        if self._seeds is not None:
            self._seeds[0].assign(self._seeds[1])
        else:
            backend.forget_global_seeds()


def reseed(seed: int) -> None:
    """Sets the generators of random numbers by which data are shuffled; those of layers stay."""
    random.seed(seed)
    np.random.seed(seed)
    if backend.ON_TENSORFLOW:
        import tensorflow as tf

        tf.random.set_seed(seed)
