"""The optimizer's state: slots by variable and name, and how they are saved, loaded and found not to fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.transform import Slot

Location = tuple[str, ...]
_OF_THE_WINDOW = ("window", "window_weight", "gradient_accumulator")


class VariableList:
    """A list that Keras does not track a second time: the optimizer tracks its variables already."""

    def __init__(self, variables: list[Any]) -> None:
        self._items = tuple(variables)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class VariableDict:
    """A dictionary that Keras does not track a second time."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self._names = tuple(variables)
        self._items = tuple(variables.values())

    def __getitem__(self, name: str) -> Any:
        return self._items[self._names.index(name)]

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def values(self) -> tuple[Any, ...]:
        return self._items

    def items(self) -> Iterator[tuple[str, Any]]:
        return zip(self._names, self._items, strict=True)


class Slots:
    """Variables by the model variable's index and the slot's location in the nested state that transforms see.

    A common slot is one variable for all model variables that have a slot at its location.
    """

    def __init__(self) -> None:
        self._by_index: dict[int, dict[Location, tuple[str, Any]]] = {}
        self._late: set[tuple[int, Location]] = set()
        self._common: dict[Location, tuple[str, Any]] = {}
        self._sharing: dict[int, list[Location]] = {}

    def add(self, index: int, location: Location, name: str, variable: Any, late: bool = False) -> None:
        """Keeps a slot; a `late` one holds no copy of the weights before the first update."""
        self._by_index.setdefault(index, {})[location] = (name, variable)
        if late:
            self._late.add((index, location))

    def add_common(self, index: int, location: Location, name: str, variable: Any) -> None:
        """Keeps the first slot at a common location; names that occur twice get a number."""
        count = sum(known.rpartition("_")[0] == name or known == name for known, _ in self._common.values())
        self._common[location] = (f"{name}_{count}" if count else name, variable)
        self._sharing.setdefault(index, []).append(location)

    def share(self, index: int, location: Location) -> bool:
        """Gives a model variable the common slot at a location; False if there is none yet."""
        if location not in self._common:
            return False
        self._sharing.setdefault(index, []).append(location)
        return True

    def variables(self, index: int) -> list[Any]:
        """The slots of one model variable alone."""
        return [variable for _, variable in self._by_index.get(index, {}).values()]

    def layout(self, index: int) -> tuple[Any, ...]:
        """Where a model variable's slots lie in the nested state, which of them are late, and which it shares."""
        own = tuple((location, (index, location) in self._late) for location in self._by_index.get(index, {}))
        return own, tuple(self._sharing.get(index, []))

    def nested(self, index: int, values: list[Any], common: list[Any], parameter: Any, step: Any) -> dict[str, Any]:
        """The state of a model variable, nested as declared, from the values of `variables` and `read_common`."""
        nested: dict[str, Any] = {}
        shared = dict(zip(self._common, common, strict=True))
        for location, value in zip(self._by_index.get(index, {}), values, strict=False):
            late = (index, location) in self._late
            _put(nested, location, ops.where(step > 1, value, ops.cast(parameter, value.dtype)) if late else value)
        for location in self._sharing.get(index, []):
            _put(nested, location, ops.cast(shared[location], parameter.dtype))
        return nested

    def read(self, index: int, parameter: Any, step: Any) -> dict[str, Any]:
        """The state of one model variable as tensors, nested as its transform declared it."""
        own = [backend.read(v) for v in self.variables(index)]
        return self.nested(index, own, self.read_common(), parameter, step)

    def read_common(self) -> list[Any]:
        """The values of all common slots."""
        return [backend.read(variable) for _, variable in self._common.values()]

    def write_common(self, found: list[tuple[int, list[Any]]]) -> None:
        """Writes each common slot once, from (index, `flat_common` of it) pairs; all that share it found the same."""
        new: dict[Location, Any] = {}
        for index, values in found:
            for location, value in zip(self._sharing.get(index, []), values, strict=True):
                # Computed for a narrower variable, it would lose digits.
                if location not in new or value.dtype == self._common[location][1].dtype:
                    new[location] = value
        for location, value in new.items():
            backend.write(self._common[location][1], value)

    def flat(self, index: int, nested: dict[str, Any]) -> list[Any]:
        """The values in the nested state that a transform returned, in the order of `variables`."""
        return [_at(nested, location) for location in self._by_index.get(index, {})]

    def flat_common(self, index: int, nested: dict[str, Any]) -> list[Any]:
        """The values of the common slots in the nested state that a transform returned."""
        return [_at(nested, location) for location in self._sharing.get(index, [])]

    def named_common(self) -> Iterator[tuple[str, Any]]:
        """(name, variable) of the common slots."""
        yield from self._common.values()

    def named(self, index: int) -> Iterator[tuple[str, Any]]:
        """(slot name, variable) of one model variable."""
        yield from self._by_index.get(index, {}).values()


def _put(nested: dict[str, Any], location: Location, value: Any) -> None:
    for key in location[:-1]:
        nested = nested.setdefault(key, {})
    nested[location[-1]] = value


def _at(nested: Any, location: Location) -> Any:
    for key in location:
        nested = nested[key]
    return nested


def flatten_slots(declared: dict[str, Any]) -> list[tuple[Location, str, Slot]]:
    """Each slot's location, its short name, and its declaration; a short name that occurs twice gets a number.

    >>> [name for _, name, _ in flatten_slots({"0": {"trace": 0.0}, "2": {"trace": 0.0, "slow": "copy"}})]
    ['trace', 'trace_1', 'slow']
    """
    found: list[tuple[Location, str, Slot]] = []
    counts: dict[str, int] = {}

    def walk(node: dict[str, Any], location: Location) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, (*location, key))
                continue
            count = counts.get(key, 0)
            counts[key] = count + 1
            slot = value if isinstance(value, Slot) else Slot(value)
            found.append(((*location, key), f"{key}_{count}" if count else key, slot))

    walk(declared, ())
    return found


def named_variables(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """(key in the saved file, variable) for all that must survive; an empty accumulation window need not."""
    yield "iteration", backend.iterations_variable(optimizer)
    rate = backend.learning_rate_variable(optimizer)
    if rate is not None:
        yield "learning_rate", rate
    if not optimizer.built:
        return
    window = optimizer._window
    part_full = window is not None and int(ops.convert_to_numpy(window.count)) > 0
    if part_full:
        yield "window", window.count
        yield "window_weight", window.weight
    for index, variable in enumerate(backend.built_variables(optimizer)):
        for name, slot in _slots_of(optimizer, index, window if part_full else None):
            yield f"{index}.{name}.{variable_path(variable).replace('/', '.')}", slot
    for name, variable in optimizer._slots.named_common():
        yield f"common.{name}", variable
    for position, variable in enumerate(optimizer.inner_variables()):
        yield f"inner.{position}.{variable.path.replace('/', '.')}", variable


def load(optimizer: Any, arrays: dict[str, Any]) -> None:
    """Puts saved arrays into the optimizer, or keeps them until `build`."""
    if optimizer.built:
        _assign(optimizer, _named(optimizer, arrays))
        return
    optimizer._pending = _Pending({key: ops.convert_to_numpy(value) for key, value in arrays.items()})


def load_pending(optimizer: Any) -> None:
    """Puts arrays in place that were loaded before the optimizer was built."""
    pending = getattr(optimizer, "_pending", None)
    if pending is not None:
        del optimizer._pending
        _assign(optimizer, _named(optimizer, pending.arrays))


class _Pending:
    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays


def _slots_of(optimizer: Any, index: int, window: Any) -> Iterator[tuple[str, Any]]:
    if len(optimizer._averages) and optimizer._averages[index] is not None:
        yield "average", optimizer._averages[index]
    if window is not None and window.sums[index] is not None:
        yield "gradient_accumulator", window.sums[index]
    yield from optimizer._slots.named(index)


def _named(optimizer: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays by our keys; a file of one of Keras's optimizers holds them by number, in the order of its variables."""
    if not arrays or not all(key.isdigit() for key in arrays):
        return arrays
    keys = _keras_order(optimizer)
    if len(keys) != len(arrays):
        raise ValueError(
            f"The saved state of a Keras optimizer does not fit `{optimizer.name}` ({type(optimizer).__name__}): it "
            f"holds {len(arrays)} arrays, not the {len(keys)} of {', '.join(_describe(key) for key in keys[:8])}"
            f"{' ...' if len(keys) > 8 else ''}. To load the weights alone, load them before `compile`."
        )
    named = {key: arrays[str(i)] for i, key in enumerate(keys)}
    flipped = {name[1:] for group in optimizer.keras_slots for name in group if name.startswith("-")}
    named = {key: -np.asarray(a) if _address(key)[1] in flipped else a for key, a in named.items()}
    every = optimizer.gradient_accumulation_steps
    if every:  # Keras counts micro-batches, we count updates
        count = int(ops.convert_to_numpy(named["iteration"]))
        named |= {"iteration": np.asarray(count // every), "window": np.asarray(count % every)}
        named["window_weight"] = np.asarray(count % every, "float32")
    return named


def _keras_order(optimizer: Any) -> list[str]:
    """Our keys, in the order in which Keras's optimizer of the same name lists its variables."""
    keys = [key for key, _ in _all_named(optimizer)]
    slots = [key for key in keys if "." in key]
    names = sorted({key.split(".")[1] for key in slots})
    groups = [["average"], ["gradient_accumulator"]]
    groups += [[name.removeprefix("-") for name in group] for group in optimizer.keras_slots]
    unknown = set(names) - {name for group in groups for name in group}
    if unknown:
        raise ValueError(
            f"The saved state of a Keras optimizer does not fit `{optimizer.name}` ({type(optimizer).__name__}), which "
            f"has slots that Keras's has not: {', '.join(f'`{name}`' for name in sorted(unknown))}. To load the "
            "weights alone, load them before `compile`."
        )
    ordered: list[str] = [key for key in ("iteration", "learning_rate") if key in keys]
    for group in groups:
        members = [key for key in slots if key.split(".")[1] in group]
        ordered += sorted(members, key=lambda key: (int(key.split(".")[0]), group.index(key.split(".")[1])))
    return ordered


def _assign(optimizer: Any, arrays: dict[str, Any]) -> None:
    fresh = not any("." in key for key in arrays)
    saved = {_address(key): (key, value) for key, value in arrays.items()}
    wanted = {_address(key): (key, variable) for key, variable in _all_named(optimizer)}
    problems = []
    for address, (key, variable) in wanted.items():
        if address not in saved:
            # An untrained optimizer has no slots in its file, an empty window no accumulators, a schedule no rate.
            if not fresh and address[1] not in (*_OF_THE_WINDOW, "learning_rate"):
                problems.append(f"the file lacks {_describe(key)}")
        elif tuple(saved[address][1].shape) != tuple(variable.shape):
            shape = tuple(saved[address][1].shape)
            problems.append(f"{_describe(key)} has shape {tuple(variable.shape)}, and {shape} in the file")
    for address, (key, _) in saved.items():
        if address not in wanted and address[1] != "learning_rate":
            problems.append(f"the optimizer has no {_describe(key)}")
    if problems:
        more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
        raise ValueError(
            f"The saved state does not fit the optimizer `{optimizer.name}` ({type(optimizer).__name__}): "
            f"{'; '.join(problems[:8])}{more}. Make the optimizer with the arguments it was saved with. To load the "
            "weights alone, load them before `compile`."
        )
    for address, (_, variable) in wanted.items():
        if address in saved:
            variable.assign(saved[address][1])
        elif address[1] in _OF_THE_WINDOW:
            variable.assign(ops.zeros(variable.shape, variable.dtype))


def _all_named(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """`named_variables`, with the window's whether it is empty or not."""
    yield from ((key, v) for key, v in named_variables(optimizer) if _address(key)[1] not in _OF_THE_WINDOW)
    if optimizer._window is not None:
        yield "window", optimizer._window.count
        yield "window_weight", optimizer._window.weight
        for index, total in enumerate(optimizer._window.sums):
            if total is not None:
                path = variable_path(backend.built_variables(optimizer)[index])
                yield f"{index}.gradient_accumulator.{path.replace('/', '.')}", total


def _address(key: str) -> tuple[str, str]:
    """Where a key belongs: layers' names may differ from process to process, so the path does not count."""
    index, _, rest = key.partition(".")
    return (index, rest.partition(".")[0]) if rest else ("", key)


def _describe(key: str) -> str:
    index, _, rest = key.partition(".")
    if not rest:
        return f"`{key}`"
    slot, _, path = rest.partition(".")
    if index == "common":
        return f"slot `{slot}` of all variables"
    if index == "inner":
        return f"variable {slot} of the optimizer as a whole (`{path.replace('.', '/')}`)"
    return f"slot `{slot}` of variable {index} (`{path.replace('.', '/')}`)"
