"""One step of a model, measured without a trace on model and optimizer: its gradients, its memory, its time."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_trainkit.core import backend, building, slices
from keras_trainkit.core.compose import variable_path
from keras_trainkit.distribution import paper, running

ENOUGH = 32 * 2**20
"""Bytes of activations from which on the allocator's count is taken; TensorFlow's on CPUs leaves small tensors out."""

MOST = 2**16
"""Samples at most that are run for that."""

STEPS = 5


@dataclasses.dataclass(frozen=True)
class Gradient:
    """What one variable's gradient consists of.

    Attributes:
        variable: of the model.
        rows: how many rows of the variable the gradient holds, repeated ones included; None for all of it.
        index_bytes: of the number of one such row.
    """

    variable: Any
    rows: int | None = None
    index_bytes: int = 0


class Batch:
    """A batch of any size, made of a number or of the rows of one that was given.

    Args:
        model: whose inputs a number is for.
        batch: an integer, or inputs, or a tuple of inputs, targets and sample weights.

    Attributes:
        samples: in the batch that was given.
        resizable: whether the model takes other numbers of samples, too.
        targets: whether there are any.

    Raises:
        ValueError: for a number, if the model's inputs have no known shapes, and for arrays of different lengths.
    """

    def __init__(self, model: Any, batch: Any) -> None:
        if isinstance(batch, int):
            self.samples, self._rows = batch, (_zeros(model), None, None)
        else:
            given = keras.utils.unpack_x_y_sample_weight(batch)
            self._rows = tree.map_structure(_array, given)
            lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in tree.flatten(self._rows) if leaf is not None}
            if len(lengths) != 1 or 0 in lengths:
                raise ValueError(
                    "`batch` must hold arrays with as many rows as there are samples, one at least. Received: arrays "
                    f"of {', '.join(map(str, sorted(lengths)))} rows"
                )
            self.samples = lengths.pop()
        self.targets = self._rows[1] is not None
        fixed = [x.shape[0] for x in tree.flatten(getattr(model, "inputs", None) or []) if x.shape[0] is not None]
        self.resizable = not fixed

    def of(self, samples: int) -> Any:
        """Inputs, targets and sample weights of so many samples, as tensors; the rows repeat."""
        rows = tree.map_structure(lambda a: None if a is None else a[np.arange(samples) % len(a)], self._rows)
        return tree.map_structure(lambda a: None if a is None else ops.convert_to_tensor(a), rows)

    def bytes(self, samples: int) -> int:
        """Of so many samples."""
        return sum(leaf[:1].nbytes * samples for leaf in tree.flatten(self._rows) if leaf is not None)


def _zeros(model: Any) -> Any:
    if not getattr(model, "inputs", None):
        raise ValueError(
            "`batch` may be a number only for functional and sequential models, whose inputs have known shapes. Pass "
            "a batch of arrays as `fit` would get it, (x, y) say."
        )
    sequential = isinstance(model, keras.Sequential)
    return tree.map_structure(_zero, model.inputs[0] if sequential else model.input)


def _zero(spec: Any) -> np.ndarray:
    if None in spec.shape[1:] or spec.dtype == "string":
        raise ValueError(
            "`batch` may be a number only for inputs of numbers with known shapes: pass a batch of arrays as `fit` "
            f"would get it, (x, y) say. Received: an input of shape={tuple(spec.shape)}, dtype={spec.dtype}"
        )
    return np.zeros((1, *spec.shape[1:]), np.float32 if spec.dtype == "bfloat16" else spec.dtype)


def _array(leaf: Any) -> Any:
    if leaf is None:
        return None
    array = np.asarray(leaf)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


class Step:
    """Forward pass in training mode, loss and backward pass of a model, as a function of tensors.

    Neither weights nor the state of other layers (statistics, random seeds) change. The loss is the one that the model
    was compiled with, where there are targets, and else the mean square of its outputs.

    Args:
        model: a built model.
        batch: to run it on.
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._criterion = _criterion(model) if batch.targets and getattr(model, "loss", None) is not None else None
        self.variables = [v for v in model.trainable_variables if not building.overwritten(v)]
        self._others = [v for v in model.variables if not any(v is known for known in self.variables)]
        self._function = running.traced(self._gradients)

    def _loss(self, values: list[Any], others: list[Any], batch: Any) -> Any:
        inputs, targets, weights = batch
        known = zip([*self.variables, *self._others], [*values, *others], strict=True)
        with keras.StatelessScope(state_mapping=list(known), collect_losses=True):
            outputs = self._model(inputs, training=True)
            if self._criterion is None:
                floats = [ops.cast(y, "float32") for y in tree.flatten(outputs)]
                loss = sum(ops.mean(ops.square(y)) for y in floats)
            else:
                loss = self._criterion.compute_loss(None, targets, outputs, weights)
            return sum((ops.cast(term, loss.dtype) for term in self._model.losses), loss)

    def _gradients(self, values: list[Any], others: list[Any], batch: Any) -> list[Any]:
        return running.gradients(lambda values: self._loss(values, others, batch), values)

    def _arguments(self, samples: int) -> tuple[Any, Any, Any]:
        return (
            [backend.read(v) for v in self.variables],
            [backend.read(v) for v in self._others],
            self._batch.of(samples),
        )

    def run(self, samples: int) -> list[Any]:
        """The gradients of so many samples."""
        with backend.names_kept():
            return self._function(*self._arguments(samples))

    def gradients(self, samples: int) -> list[Gradient]:
        """What the variables' gradients consist of; variables without one are left out. Nothing is computed."""
        with backend.names_kept():
            found = running.outline(self._function, *self._arguments(samples))
        pairs = [(v, g) for v, g in zip(self.variables, found, strict=True) if g is not None]
        return [
            Gradient(v, g.values.shape[0] or v.shape[0], g.indices.dtype.size) if slices.is_sparse(g) else Gradient(v)
            for v, g in pairs
        ]

    def activations(self, samples: int) -> int:
        """The most bytes that so many samples need at one time, beyond the variables and the gradients."""
        measured = samples
        with backend.names_kept():
            found = running.peak_bytes(self._function, self._arguments(measured), STEPS)
            while backend.ON_TENSORFLOW and found < ENOUGH and measured < MOST and self._batch.resizable:
                measured = min(MOST, measured * min(8, 1 + 5 * ENOUGH // (4 * max(found, 1))))
                found = running.peak_bytes(self._function, self._arguments(measured), STEPS)
        return round(found * samples / measured) + self._batch.bytes(samples)

    def seconds(self, samples: int) -> float:
        """The median time of so many samples."""
        with backend.names_kept():
            arguments = self._arguments(samples)
            return _median(lambda: running.wait(self._function(*arguments)))


def _criterion(model: Any) -> keras.Model:
    """A model without layers that has the model's loss. The model's own would be built by its first use."""
    with backend.names_kept():
        made = keras.Model()
        if hasattr(model, "output_names"):
            made.output_names = model.output_names
        made.compile(loss=model.loss)
    return made


def update_seconds(optimizer: Any, variables: list[Any], gradients: list[Any], steps: int = 1) -> float:
    """The median time in which a twin of the optimizer applies gradients `steps` times, to stand-ins of the variables.

    Those take as much memory as the variables and the slots do, until it returns.
    """
    pairs = [(v, g) for v, g in zip(variables, gradients, strict=True) if g is not None]
    with backend.names_kept():
        twin, stand_ins = paper.twin_of(optimizer), [_stand_in(v) for v, _ in pairs]
        twin.build(stand_ins)
        apply = running.updater(twin, stand_ins)
        gradients = [g for _, g in pairs]

        def update() -> None:
            for _ in range(steps):
                apply(gradients)

        return _median(update)


def _stand_in(variable: Any) -> keras.Variable:
    """A variable of the same path, shape and dtype: optimizers treat variables by these."""
    *scopes, name = variable_path(variable).split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable("zeros", tuple(variable.shape), backend.dtype(variable), name=name)


def _median(function: Callable[[], Any]) -> float:
    function()  # traces, and compiles
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
