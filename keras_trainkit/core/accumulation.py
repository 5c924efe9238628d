"""Gradient accumulation: each replica adds up its own micro-batches, and the sums meet once, where the window ends."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.building import overwritten
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.core.state import VariableList


class Window:
    """The sums of a window of micro-batches, in at least float32.

    A micro-batch counts by its samples, or as one if the optimizer is not told how many it holds. Each replica has sums
    and a weight of its own; read outside of the replicas they are those of all together.

    Args:
        optimizer: the built optimizer whose gradients these are.
        variables: its model variables.
        length: micro-batches of a full window.

    Attributes:
        count: micro-batches in the window so far, a variable.
        length: micro-batches of a full window, a variable, so that it may change without a new compilation.
        weight: how many samples, or else micro-batches, are in, a variable.
        sums: for each model variable the weighted sum of its gradients, a variable; None where there is none.
    """

    def __init__(self, optimizer: Any, variables: list[Any], length: int) -> None:
        self._optimizer = optimizer
        self.count = optimizer.add_variable((), dtype="int32", name="window")
        self.length = optimizer.add_variable((), dtype="int32", name="window_length")
        self.length.assign(length)
        self.weight = backend.add_share(optimizer, variables[0], "window_weight", (), "float32")
        self.sums = VariableList([None if overwritten(v) else self._add_sum(v) for v in variables])
        self._met: set[int] = set()
        self._pieces: Any = None

    def _add_sum(self, variable: Any) -> Any:
        name = f"{variable_path(variable)}_gradient_accumulator".replace("/", "_")
        dtype = wide_dtype(backend.dtype(variable))
        return backend.add_share(self._optimizer, variable, name, tuple(variable.shape), dtype)

    def watch_pieces(self, variables: list[Any]) -> None:
        """Makes the memory for what `add` is told of the noise of the gradients, if there is none."""
        if self._pieces is None:
            self._pieces = backend.add_share(self._optimizer, variables[0], "window_pieces", (3,), "float32")

    def add_piece(self, values: list[Any]) -> None:
        """Adds numbers of this replica's piece; `mean` gives their sums back."""
        backend.add_to(self._pieces, ops.stack(values))

    def add(self, gradients: list[Any], variables: list[Any], samples: Any = None, part: str | None = None) -> None:
        """Adds the gradients of one micro-batch, or of a part of one, on this replica alone.

        A replica's gradient is its share of the whole batch's: the shares add up to a mean. Sums and weight are kept so
        that they mean the same on any number of replicas.
        """
        known = backend.built_variables(self._optimizer)
        # What was frozen since does not move on by its momentum; what it had in this window is left out.
        self._met = {index for index in self._met if known[index].trainable}
        for gradient, variable in zip(gradients, variables, strict=True):
            index = backend.variable_index(self._optimizer, variable)
            self._met.add(index)
            if samples is not None:
                gradient = gradient * (ops.cast(samples, gradient.dtype) * backend.replicas())
            backend.add_to(self.sums[index], gradient)
        backend.add_to(self.weight, 1.0 / backend.replicas() if samples is None else samples)
        if part is None:
            self._count(1)

    def end_parts(self) -> None:
        """Counts the micro-batch whose last part has come, unless every part of the window was left out."""
        self._count(ops.cast(backend.read(self.weight) > 0, "int32"))

    def _count(self, more: Any) -> None:
        backend.write(self.count, backend.read(self.count) + more)

    def begun(self) -> Any:
        """Whether a micro-batch is in; a scalar."""
        return backend.read(self.count) > 0

    def full(self) -> Any:
        """Whether as many micro-batches are in as a window holds; a scalar."""
        return backend.read(self.count) >= backend.read(self.length)

    def variables(self) -> list[Any]:
        """The model variables that had gradients in any micro-batch; all, as long as there was none in this process."""
        known = backend.built_variables(self._optimizer)
        indices = sorted(self._met) or [i for i, total in enumerate(self.sums) if total is not None]
        return [known[i] for i in indices]

    def mean(self, variables: list[Any]) -> tuple[list[Any], list[Any]]:
        """The weighted means of the window's gradients, over the replicas, too; no other reduction is needed.

        The second list holds the sums of what `add_piece` was given.
        """
        indices = [backend.variable_index(self._optimizer, v) for v in variables]
        kept = [*(self.sums[i] for i in indices), self.weight, *([] if self._pieces is None else [self._pieces])]
        sums = backend.all_reduce_sum([backend.read(v) for v in kept])
        weight, pieces = sums[len(indices)], sums[len(indices) + 1 :]
        means = [total / ops.cast(weight, total.dtype) for total in sums[: len(indices)]]
        return means, [pieces[0][i] for i in range(3)] if pieces else []

    def empty(self) -> None:
        """Begins a new window."""
        for total in [*self.sums, self.weight, self._pieces]:
            if total is not None:
                backend.write(total, ops.zeros(total.shape, total.dtype))
        backend.write(self.count, 0)
