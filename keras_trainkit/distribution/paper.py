"""Models and optimizers on paper: what variables they will have, before any of them takes memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_trainkit.core import backend


def model_made_by(make: Callable[[], Any]) -> Any:
    """What the function makes, its variables without values; it leaves no trace in Keras's names and seeds."""
    with backend.on_paper(), _values_refused("model", "leave `compile` out of it, or pass the model itself"):
        return make()


def slots_of(optimizer: Any, variables: list[Any], scope: Any = None) -> list[Any]:
    """The variables that such an optimizer has when it is built to train `variables`, without values.

    `scope` is a context manager around the building. The optimizer itself is not changed.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: for an optimizer that makes a variable from a value.
    """
    with backend.names_kept():
        twin = twin_of(optimizer)
        paper = backend.on_paper()
        with scope or contextlib.nullcontext(), paper, _values_refused("optimizer", "take the kit's of the same name"):
            twin.build(variables)
    return list(twin.variables)


def twin_of(optimizer: Any) -> Any:
    """A new optimizer with the same configuration, not built.

    Raises:
        TypeError: for what is no optimizer.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"`optimizer` must be an optimizer. Received: optimizer={optimizer!r}")
    config = optimizer.get_config()
    if "inner_optimizer" in config:  # the learning rate inside of it may be a function, too
        return type(optimizer)(**config | {"inner_optimizer": twin_of(optimizer.inner_optimizer)})
    if "learning_rate" in config:
        config["learning_rate"] = backend.learning_rate_argument(optimizer)  # Keras makes no lambda from its text
    return type(optimizer).from_config(config)


@contextlib.contextmanager
def _values_refused(name: str, instead: str) -> Iterator[None]:
    """Says in our words that Keras makes no variable from a value on paper."""
    try:
        yield
    except ValueError as error:
        if "stateless scope" not in str(error):
            raise
        raise ValueError(
            f"`{name}` makes a variable from a value, and not from a shape and an initializer, which cannot be done on "
            f"paper: {instead}."
        ) from error
