"""The state of an optimizer that belongs to single elements of a variable."""

from __future__ import annotations

from typing import Any

from keras_trainkit.core import TransformOptimizer, backend
from keras_trainkit.core.state import flatten_slots


def element_slots(optimizer: Any, variable: Any) -> list[tuple[Any, float]]:
    """(slot, its first value) of each slot in the variable's shape; a copy of the weights counts as 0 at first.

    Elements that are pruned get these values: momentum that an element had gathered moves nothing any more, and
    averages know nothing of it.
    """
    if not isinstance(optimizer, TransformOptimizer):
        return [(slot, 0.0) for slot in backend.slots_like(optimizer, variable)]
    index = backend.variable_index(optimizer, variable)
    declared = {name: slot.initial for _, name, slot in flatten_slots(optimizer._links.slots(variable))}
    found: list[tuple[Any, float]] = [
        (slot, 0.0 if isinstance(declared[name], str) else float(declared[name]))
        for name, slot in optimizer._slots.named(index)
        if tuple(slot.shape) == tuple(variable.shape)
    ]
    if optimizer.use_ema and optimizer._averages[index] is not None:
        found.append((optimizer._averages[index], 0.0))
    inner = getattr(optimizer, "_inner", None)
    if inner is not None:  # the copy of a Keras optimizer that `optimizers.wrap` made
        found += [(slot, 0.0) for slot in backend.slots_like(inner.value, variable)]
    return found


def refuses_rows(optimizer: Any, targets: list[Any]) -> None:
    """Raises ValueError for variables whose rows an optimizer updates apart from the others."""
    if getattr(optimizer, "lazy", False):
        tables = [target.path for target in targets if target.variable.name == "embeddings"]
        if tables:
            raise ValueError(
                f"{type(optimizer).__name__} updates single rows of embeddings, and does not look at the mask of "
                f"`{tables[0]}`; prune it with another optimizer."
            )
