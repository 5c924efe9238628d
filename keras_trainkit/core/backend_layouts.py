"""The private names of Keras that the kit leans on where variables lie on several devices; a part of backend.py.

tests/core/test_backend_canaries.py names the one that has gone when a new version breaks this file.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras.src.backend.common import global_state


class First:
    """The first value of a variable as Keras's initializers give theirs.

    On JAX Keras compiles the initializers of large variables that are split, and a plain function it cannot compile.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return self._function(shape, dtype)


def axes_of(variable: Any) -> tuple[Any, ...] | None:
    """The name of the mesh's axis over which each axis of the variable is split, or None for all where none is known.

    An axis that is whole is None, one that is split over several axes of the mesh a tuple.
    """
    layout = getattr(variable, "_layout", None)
    named = getattr(layout, "axes", getattr(layout, "spec", None))
    return None if named is None else (*named, *[None] * (len(variable.shape) - len(named)))


def layout_like(reference: Any, shape: Sequence[int]) -> Any:
    """The layout of a slot of `shape` that belongs to the model variable `reference`; None where that has none.

    A slot of the variable's shape has its layout. Each axis of another is split as the first axis of the variable that
    has its size and is not taken yet, or whole. It never is None beside a variable that has a layout: Keras would look
    the slot's own path up in the layout map, whose patterns may find the variable's name in it.
    """
    layout: Any = getattr(reference, "_layout", None)
    axes = axes_of(reference)
    if axes is None or tuple(shape) == tuple(reference.shape):
        return layout
    free = list(zip(reference.shape, axes, strict=True))
    found = []
    for size in shape:
        match = next((pair for pair in free if pair[0] == size), None)
        if match is not None:
            free.remove(match)
        found.append(None if match is None else match[1])
    if hasattr(layout, "device_mesh"):
        return keras.distribution.TensorLayout(found, layout.device_mesh)
    import jax

    return jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(*found))


@contextlib.contextmanager
def laid_out(layouts: list[tuple[Any, Any]]) -> Iterator[None]:
    """Has the variables of these pairs say that they have these layouts, without moving their values."""
    before = [getattr(variable, "_layout", None) for variable, _ in layouts]
    try:
        for variable, layout in layouts:
            variable._layout = layout
        yield
    finally:
        for (variable, _), layout in zip(layouts, before, strict=True):
            variable._layout = layout


@contextlib.contextmanager
def names_kept() -> Iterator[None]:
    """What is made inside leaves no trace: made again outside, it has the same names and the same random seeds.

    Keras numbers names through, and draws the seeds of initializers from Python's random numbers.
    """
    kept = {name: copy.copy(global_state.get_global_attribute(name)) for name in _COUNTED}
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
        for name, value in kept.items():
            global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def on_paper() -> Iterator[None]:
    """`names_kept` in which variables have paths, shapes and dtypes, and no values.

    Keras refuses variables that are made from a value and not from an initializer, such as an optimizer's counter.
    """
    with names_kept(), keras.StatelessScope(initialize_variables=False):
        yield


_COUNTED = ("object_name_uids", "uninitialized_variables")
"""What Keras counts up with each object made: numbers in names, and the variables that wait for a value."""


def sublayers(layer: Any) -> list[Any]:
    """The layers directly inside of a layer, in the order of a functional model's computation or of their making."""
    return layer._flatten_layers(include_self=False, recursive=False)
