"""Evaluation weights: values to evaluate, save and deploy instead of those that are trained, swapped in and out.

While they are in the variables, the optimizer keeps the training weights aside and saves them with its state, so that
they come back bit for bit, from a file, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.core.weight_mask import masked

_NAME = "training_weights"
_SOURCE = "weight_averages"


@dataclasses.dataclass(frozen=True)
class Aside:
    """The training weights of each built variable by index, and the number of updates they had seen."""

    step: int
    weights: dict[int, Any]


def source(optimizer: Any) -> Any:
    """Averages that hang on any optimizer, and give its evaluation weights in place of its own; None for none.

    They have `catch_up()`, called with the training weights in the variables before averages are asked for,
    `value(index, trained)`, `named()` and `load(arrays)`: see `averaging.memory`.
    """
    return getattr(optimizer, _SOURCE, None)


def add_source(optimizer: Any, averages: Any) -> None:
    """Hangs averages on the optimizer; those that were loaded before go into them."""
    setattr(optimizer, _SOURCE, averages)
    waiting = getattr(optimizer, "_waiting_averages", None)
    if waiting is not None:
        optimizer._waiting_averages = None
        averages.load(waiting())


def offers(optimizer: Any) -> bool:
    """Whether there are evaluation weights other than the trained ones."""
    return source(optimizer) is not None or (hasattr(optimizer, "offers_evaluation") and optimizer.offers_evaluation())


def weights(optimizer: Any, variables: list[Any] | None = None) -> list[Any]:
    """The evaluation weights of `variables`, in their dtypes; the variables' values where they have no others."""
    if not optimizer.built:
        raise ValueError(f"The optimizer `{optimizer.name}` has no evaluation weights before it is built.")
    values = _exchanged(optimizer, _trained(optimizer), to_evaluation=True)
    wanted = backend.built_variables(optimizer) if variables is None else variables
    indices = [backend.variable_index(optimizer, v) for v in wanted]
    return [values.get(i, backend.read(v)) for i, v in zip(indices, wanted, strict=True)]


def held(optimizer: Any) -> bool:
    """Whether the variables hold the evaluation weights now.

    Training weights that were kept aside before updates that did not come through here are of no more use.
    """
    aside = getattr(optimizer, "_aside", None)
    if aside is not None and optimizer.built and aside.step != _step(optimizer):
        updates = _step(optimizer) - aside.step
        warnings.warn(
            f"{updates} updates were made on the evaluation weights, and took them for the trained ones: train with "
            "`callbacks.EvaluationWeights` or `WeightAveraging`, or call the optimizer's `to_training` first.",
            stacklevel=3,
        )
        optimizer._aside = aside = None
    return aside is not None


def put_in(optimizer: Any) -> None:
    """Puts the evaluation weights into the variables."""
    if not optimizer.built or held(optimizer) or not offers(optimizer):
        return
    averages = source(optimizer)
    if averages is not None:
        averages.catch_up()
    new = _exchanged(optimizer, _trained(optimizer), to_evaluation=True)
    variables = backend.built_variables(optimizer)
    # The copies first: whatever interrupts the loop below, `put_back` finds them.
    optimizer._aside = Aside(_step(optimizer), {i: ops.copy(backend.read(variables[i])) for i in new})
    for i, value in new.items():
        # Keras on JAX gives the variable's buffer away when it evaluates, and the average must not go with it.
        variables[i].assign(ops.copy(value))


def put_back(optimizer: Any) -> None:
    """Puts the training weights into the variables.

    They come back bit for bit. Weights that were replaced from outside while the evaluation weights were in (the best
    ones of an early stop) are taken for evaluation weights, and the training weights follow from them.
    """
    if not optimizer.built or not held(optimizer):
        return
    variables, old = backend.built_variables(optimizer), optimizer._aside.weights
    expected = _exchanged(optimizer, old, to_evaluation=True)
    replaced = {
        i: backend.read(variables[i])
        for i, value in old.items()
        if backend.has_value(variables[i])
        and not (_same(variables[i], expected.get(i, value)) or _same(variables[i], value))
    }
    for i, value in (old | _exchanged(optimizer, replaced, to_evaluation=False)).items():
        variables[i].assign(value)
    optimizer._aside = None


@contextlib.contextmanager
def training_weights(optimizer: Any) -> Iterator[None]:
    """The training weights inside, what was there before outside."""
    swapped = held(optimizer)
    if swapped:
        put_back(optimizer)
    yield
    if swapped:
        put_in(optimizer)


def saved(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """(key in the saved file, value) of what is kept aside, and of averages."""
    yield from saved_aside(optimizer)
    averages = source(optimizer)
    if averages is not None:
        for name, variable in averages.named():
            yield f"{_SOURCE}.{name}", variable


def saved_aside(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """(key in the saved file, value) of what is kept aside."""
    if held(optimizer):
        variables = backend.built_variables(optimizer)
        for index, value in optimizer._aside.weights.items():
            yield f"{index}.{_NAME}.{variable_path(variables[index]).replace('/', '.')}", value


def loaded(optimizer: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Takes what is kept aside, and averages, out of the arrays of a file, and returns the others."""
    step = int(ops.convert_to_numpy(arrays["iteration"])) if "iteration" in arrays else 0
    rest = loaded_aside(optimizer, arrays, step)
    prefix = f"{_SOURCE}."
    found = {key.removeprefix(prefix): ops.convert_to_numpy(rest[key]) for key in rest if key.startswith(prefix)}
    averages = source(optimizer)
    if averages is not None:
        averages.load(found)
    elif found:
        optimizer._waiting_averages = lambda: found  # in a function, so that Keras does not track the dictionary
    return {key: value for key, value in rest.items() if not key.startswith(prefix)}


def loaded_aside(optimizer: Any, arrays: dict[str, Any], step: int) -> dict[str, Any]:
    """Takes what is kept aside out of the arrays of a file, and returns the others; `step` updates were done."""
    aside = {key: value for key, value in arrays.items() if key.split(".")[1:2] == [_NAME]}
    found = {int(key.split(".")[0]): ops.convert_to_numpy(value) for key, value in aside.items()}
    optimizer._aside = Aside(step, found) if found else None
    return {key: value for key, value in arrays.items() if key not in aside}


def _trained(optimizer: Any) -> dict[int, Any]:
    if held(optimizer):
        return optimizer._aside.weights
    return {
        i: backend.read(v)
        for i, v in enumerate(backend.built_variables(optimizer))
        if not getattr(v, "overwrite_with_gradient", False)
    }


def _exchanged(optimizer: Any, values: dict[int, Any], to_evaluation: bool) -> dict[int, Any]:
    """Evaluation weights from training weights, or training weights from evaluation weights."""
    variables, averages, new = backend.built_variables(optimizer), source(optimizer), {}
    for i, value in values.items():
        dtype = variables[i].dtype
        wide = ops.cast(value, wide_dtype(dtype))
        if averages is not None:
            changed = averages.value(i, wide) if to_evaluation else wide
        elif not hasattr(optimizer, "_links"):
            changed = wide  # one of Keras's, whose averages have gone
        elif optimizer.use_ema:
            changed = backend.read(optimizer._averages[i]) if to_evaluation and _step(optimizer) > 0 else wide
        else:
            state = optimizer._slots.read(i, wide, _step(optimizer) + 1)
            changed = optimizer._links.exchange(wide, state, variable_path(variables[i]), to_evaluation)
        new[i] = masked(variables[i], ops.cast(changed, dtype))
    return new


def _step(optimizer: Any) -> int:
    return int(ops.convert_to_numpy(optimizer.iterations))


def _same(variable: Any, value: Any) -> bool:
    return bool(ops.convert_to_numpy(ops.all(ops.equal(backend.read(variable), ops.cast(value, variable.dtype)))))
