"""Makes an optimizer's state: slots one by one or in pools, slots that all variables share, averages."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, pools, state
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.core.transform import Slot, Transform
from keras_trainkit.core.weight_mask import mask_of


class StateBuilder:
    """The state of `optimizer` for `variables`, which `links` declare.

    Attributes:
        slots: by variable.
        pools: the variables whose slots lie together.
        averages: the moving average of each variable, None where there is none; empty without `use_ema`.
    """

    def __init__(self, optimizer: Any, links: Transform, variables: list[Any]) -> None:
        self._optimizer, self._links, self._variables = optimizer, links, variables
        self._averages: dict[int, Any] = {}
        self.slots = state.Slots()
        self.pools: list[pools.Pool] = []
        groups = pools.plan(self._poolable()) if backend.pools_slots(optimizer) else []
        pooled = {index for group in groups for index in group}
        for index in range(len(variables)):
            if index not in pooled:
                self._add_single(index)
        for group in groups:
            self._add_pool(group)
        self.averages = [self._averages.get(i) for i in range(len(variables))] if optimizer.use_ema else []

    def _declared(self, variable: Any) -> list[tuple[state.Location, str, Slot]]:
        return state.flatten_slots(self._links.slots(variable))

    def _add_single(self, index: int) -> None:
        variable = self._variables[index]
        if self._optimizer.use_ema and not overwritten(variable):
            self._averages[index] = self._slot(variable, "average", Slot())
        for location, name, slot in self._declared(variable):
            if slot.common:
                self._share(index, location, name, slot)
                continue
            late = _late(slot, variable)
            self.slots.add(index, location, name, self._slot(variable, name, slot, late), late)

    def _share(self, index: int, location: state.Location, name: str, slot: Slot) -> None:
        variable = self._variables[index]
        if not self.slots.share(index, location):
            dtype = _dtype(variable, slot)
            made = backend.add_slot(
                self._optimizer, variable, name, (), dtype, lambda shape, dtype: ops.full(shape, slot.initial, dtype)
            )
            self.slots.add_common(index, location, name, made)

    def _poolable(self) -> list[tuple[int, int, Any]]:
        """The variables whose slots may be pooled, for `pools.plan`."""
        found = []
        for index, variable in enumerate(self._variables):
            treatment = self._optimizer.treatment(variable_path(variable))
            if treatment is None or not treatment.joinable or self._optimizer.lazy or overwritten(variable):
                continue
            declared = self._declared(variable)
            own = [slot for _, _, slot in declared if not slot.common]
            if not own and not self._optimizer.use_ema:
                continue  # nothing would lie together, and so little is computed that joining costs more
            if _unconstrained(variable) and all(slot.shape is None for slot in own):
                late = [_late(slot, variable) for slot in own]
                dtype = keras.backend.standardize_dtype(variable.dtype)
                kind = (treatment.key, self._optimizer.decays(variable), dtype, str(declared), str(late))
                found.append((index, math.prod(variable.shape), kind))
        return found

    def _add_pool(self, indices: list[int]) -> None:
        first, own = self._variables[indices[0]], []
        for location, name, slot in self._declared(first):
            if slot.common:
                for index in indices:
                    self._share(index, location, name, slot)
                continue
            late = _late(slot, first)
            whole, parts = self._pooled_slot(indices, name, slot, late)
            own.append(whole)
            for index, part in parts.items():
                self.slots.add(index, location, name, part, late)
        averages: list[Any] = []
        if self._optimizer.use_ema and backend.pools_averages(self._optimizer):
            whole, parts = self._pooled_slot(indices, "average", Slot())
            own.append(whole)
            self._averages |= parts
        elif self._optimizer.use_ema:
            averages = [self._slot(self._variables[index], "average", Slot()) for index in indices]
            self._averages |= dict(zip(indices, averages, strict=True))
        self.pools.append(pools.Pool(indices, own, averages))

    def _slot(self, variable: Any, name: str, slot: Slot, late: bool = False) -> keras.Variable:
        shape = tuple(variable.shape) if slot.shape is None else tuple(slot.shape)

        def initial(shape: Any, dtype: Any) -> Any:
            return _first_value(variable, slot, late, shape, dtype)

        return backend.add_slot(
            self._optimizer, variable, _name(variable, name), shape, _dtype(variable, slot), initial
        )

    def _pooled_slot(
        self, indices: list[int], name: str, slot: Slot, late: bool = False
    ) -> tuple[keras.Variable, dict[int, pools.Part]]:
        """A slot of several variables, with the part of each by index."""
        members = [self._variables[i] for i in indices]
        shapes = [tuple(v.shape) for v in members]

        def initial(shape: Any, dtype: Any) -> Any:
            values = [_first_value(v, slot, late, shape, dtype) for v, shape in zip(members, shapes, strict=True)]
            return ops.concatenate([ops.reshape(value, (-1,)) for value in values])

        size = sum(math.prod(shape) for shape in shapes)
        name_of_pool, dtype = f"pool_{len(self.pools)}_{name}", _dtype(members[0], slot)
        whole = backend.add_slot(self._optimizer, members[0], name_of_pool, (size,), dtype, initial)
        parts = pools.parts(whole, shapes, [_name(v, name) for v in members])
        return whole, dict(zip(indices, parts, strict=True))


def overwritten(variable: Any) -> bool:
    """Whether the variable's gradient is its new value, as with the scales of float8."""
    return getattr(variable, "overwrite_with_gradient", False)


def _unconstrained(variable: Any) -> bool:
    """Whether nothing but a mask constrains the variable: state lies the same whether masks came before or after it."""
    mask = mask_of(variable)
    return (getattr(variable, "constraint", None) if mask is None else mask.constraint) is None


def _late(slot: Slot, variable: Any) -> bool:
    """Whether a copy of the variable must wait for the first update."""
    return slot.initial == "copy" and not backend.has_value(variable)


def _name(variable: Any, name: str) -> str:
    return f"{variable_path(variable)}_{name}".replace("/", "_")


def _dtype(variable: Any, slot: Slot) -> str:
    return slot.dtype or wide_dtype(keras.backend.standardize_dtype(variable.dtype))


def _first_value(variable: Any, slot: Slot, late: bool, shape: tuple[int, ...], dtype: Any) -> Any:
    if slot.initial == "copy" and not late:
        return ops.cast(ops.copy(backend.read(variable)), dtype)
    return ops.full(shape, 0.0 if late else slot.initial, dtype)
