"""The averages of a model's weights, kept inside its compiled step."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.averaging.rules import MOST_SAMPLES, Average
from keras_trainkit.core import TransformOptimizer, backend, evaluation
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import wide_dtype, widened

NUMBERS = ("kind", "seen", "count", "samples", "total")


class AverageMemory(keras.layers.Layer):
    """The averages, and how far they are; a layer, because Keras saves those wherever they hang.

    It hangs on the innermost optimizer, and follows its `iterations`: weights are taken in after updates, whatever
    number of batches these took. Make it in the scope of the model's strategy, with the optimizer built.

    The numbers are the kind of the average, the updates that it has seen, how many times it took weights in, and the
    samples since the last time and before.
    """

    def __init__(self, optimizer: Any, rule: Average) -> None:
        super().__init__(trainable=False, dtype="float32")
        # In functions, so that Keras tracks neither.
        self._optimizer, self._rule = (lambda: optimizer), (lambda: rule)
        variables = backend.built_variables(optimizer)
        self.indices = [i for i, v in enumerate(variables) if not getattr(v, "overwrite_with_gradient", False)]
        self.held = [
            self.add_weight(
                shape=rule.shape(variables[i].shape), dtype=wide_dtype(variables[i].dtype), initializer="zeros",
                trainable=False, autocast=False, name=f"average_{i}",
            )
            for i in self.indices
        ]  # fmt: skip
        self.counts = [
            self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name=name)
            for name in NUMBERS
        ]
        self.built = True
        self._number("kind").assign(rule.number)
        self.align()

    @property
    def rule(self) -> Average:
        """Which average it is."""
        return self._rule()

    def follow(self, rule: Average) -> None:
        """Has the average follow a rule of the same kind and size from now on."""
        self._rule = lambda: rule

    def fits(self, rule: Average) -> bool:
        """Whether the memory is of this kind and size."""
        mine = self.rule
        return type(mine) is type(rule) and mine.per_weight == rule.per_weight

    def written(self) -> list[Any]:
        """Every variable that a step may write."""
        return [*self.held, *self.counts]

    @property
    def count(self) -> int:
        """How many times weights were taken in."""
        return int(ops.convert_to_numpy(self._number("count")))

    # -------------------------------------------------------------------------------------------- inside of the step

    @backend.plain_python
    def advance(self, data: Any) -> None:
        """Takes the weights in if the step on this batch, which has just run, has brought an update that is due."""
        rule, (_, seen, count, samples, total) = self.rule, self.counts
        if rule.counts_samples:
            rows = ops.shape(next(leaf for leaf in keras.tree.flatten(data) if leaf is not None))[0]
            arrived = backend.all_reduce_sum([ops.cast(rows, "int32")])[0]
            backend.write(samples, backend.read(samples) + arrived)
        now = self._updates()
        due = rule.stages(now) > rule.stages(backend.read(seen))

        def take_in() -> None:
            done, new, old = (backend.read(v) for v in (count, samples, total))
            for variable, weight in self._pairs():
                held = backend.read(variable)
                value = ops.cast(widened(backend.read(weight)), held.dtype)
                backend.write(variable, rule.taken_in(held, value, done, new, old))
            backend.write(count, done + 1)
            backend.write(total, _added(old, new))
            backend.write(samples, ops.zeros_like(new))

        backend.when(due, take_in, None, self.written())
        backend.write(seen, now)

    # ------------------------------------------------------------------------------------------- outside of the step

    def align(self) -> None:
        """Updates that were made since the average was last looked after do not count: a new `fit` begins."""
        # As a number: JAX gives memory away, and two variables must not have the same.
        self._number("seen").assign(int(ops.convert_to_numpy(self._updates())))

    def catch_up(self) -> None:
        """Takes the weights in if an update is due that was made outside of the step, as the end of a window is."""
        seen, count, samples, total = self.counts[1:]
        now, before = (int(ops.convert_to_numpy(value)) for value in (self._updates(), seen))
        if now == before:
            return
        if self.rule.stages(now) > self.rule.stages(before):
            done, new, old = (ops.convert_to_tensor(ops.convert_to_numpy(v)) for v in (count, samples, total))
            for variable, weight in self._pairs():
                held = backend.read(variable)
                value = ops.cast(widened(backend.read(weight)), held.dtype)
                variable.assign(self.rule.taken_in(held, value, done, new, old))
            count.assign(done + 1)
            total.assign(_added(old, new))
            samples.assign(0)
        seen.assign(now)

    def value(self, index: int, trained: Any) -> Any:
        """The average of the optimizer's `index`-th variable, whose trained value is given and stands in for none."""
        count = self.count
        if index not in self.indices or not count:
            return trained
        held = backend.read(self.held[self.indices.index(index)])
        return self.rule.value(held, ops.convert_to_tensor(count, "int32"))

    # --------------------------------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Any]:
        """All numbers and averages, in NumPy."""
        return {name: np.array(ops.convert_to_numpy(variable)) for name, variable in self.named()}

    def named(self) -> Iterator[tuple[str, Any]]:
        """(name, variable) of all that is saved."""
        yield from zip(NUMBERS, self.counts, strict=True)
        variables = backend.built_variables(self._optimizer())
        for index, variable in zip(self.indices, self.held, strict=True):
            yield f"{index}.{variable_path(variables[index]).replace('/', '.')}", variable

    def load(self, arrays: dict[str, Any]) -> None:
        """The inverse of `state`; arrays of another kind of average, or of another size, only bring a warning."""
        if not arrays:
            return
        # The index tells: the paths of a model that was loaded begin with its name.
        found = {name.partition(".")[0]: array for name, array in arrays.items()}
        own = {name.partition(".")[0]: variable for name, variable in self.named()}
        shapes = {name: tuple(np.shape(array)) for name, array in found.items()}
        fits = shapes == {name: tuple(variable.shape) for name, variable in own.items()}
        if not fits or int(found["kind"]) != self.rule.number:
            warnings.warn("The saved averages are of another kind or size: the average begins anew.", stacklevel=2)
            return
        for name, variable in own.items():
            variable.assign(found[name])

    def save_own_variables(self, store: Any) -> None:
        """Writes all, and the trained weights while the averages stand in for them.

        Optimizers of the kit write it with their own state, where loading finds it without this layer.
        """
        optimizer = self._optimizer()
        if isinstance(optimizer, TransformOptimizer):
            return
        for name, array in self.state().items():
            store[name] = array
        for key, value in evaluation.saved_aside(optimizer):
            store[key] = ops.convert_to_numpy(value)

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote; of a file without averages, nothing."""
        if len(store.keys()):
            optimizer = self._optimizer()
            arrays = {key: ops.convert_to_numpy(store[key]) for key in store.keys()}  # noqa: SIM118 (an HDF5 store is no dict)
            step = int(ops.convert_to_numpy(self._updates()))
            self.load(evaluation.loaded_aside(optimizer, arrays, step))

    # ---------------------------------------------------------------------------------------------------------- parts

    def _updates(self) -> Any:
        # With accumulation Keras's own optimizers count full windows here, too.
        return ops.cast(backend.read(self._optimizer().iterations), "int32")

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        variables = backend.built_variables(self._optimizer())
        return zip(self.held, (variables[i] for i in self.indices), strict=True)

    def _number(self, name: str) -> Any:
        return self.counts[NUMBERS.index(name)]


class CarriedMemory(keras.metrics.Metric):
    """Has a trainer on JAX, which knows the variables of metrics, carry those of the averages; it measures nothing."""

    def __init__(self, memory: AverageMemory) -> None:
        super().__init__(name="weight_averages")
        self._memory = lambda: memory

    @property
    def variables(self) -> list[Any]:
        """Those of the averages."""
        return self._memory().written()

    def update_state(self, *_: Any, **__: Any) -> None:
        """Nothing: a train step of the user's own may call it."""

    def reset_state(self) -> None:
        """Nothing: the averages go on over the epochs."""

    def result(self) -> dict[str, Any]:
        """Nothing to show."""
        return {}


def advanced(memory: AverageMemory, model: Any, state: Any, data: Any) -> Any:
    """The state of a step on JAX (trained, other, optimizer's and metrics' values) with the averages advanced."""
    trained, other, of_optimizer, of_metrics = state
    pairs = [
        *zip(model.trainable_variables, trained, strict=True),
        *zip(model.optimizer.variables, of_optimizer, strict=True),
        *zip(model.metrics_variables, of_metrics, strict=True),
    ]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        memory.advance(data)
    found = [scope.get_current_value(v) for v in model.metrics_variables]
    return trained, other, of_optimizer, [b if a is None else a for a, b in zip(found, of_metrics, strict=True)]


def attach(model: Any, optimizer: Any, rule: Average, scope: contextlib.AbstractContextManager) -> AverageMemory:
    """The averages of this kind that hang on the optimizer, or new ones."""
    memory = evaluation.source(optimizer)
    if memory is not None and memory.fits(rule):
        memory.follow(rule)
    else:
        if memory is not None:
            evaluation.put_back(optimizer)
        with scope:
            memory = AverageMemory(optimizer, rule)
        evaluation.add_source(optimizer, memory)
    if not backend.ON_TENSORFLOW:
        _carry(model, memory)
    return memory


def _carry(model: Any, memory: AverageMemory) -> None:
    carried = [metric for metric in model.metrics if isinstance(metric, CarriedMemory)]
    for metric in carried:
        if metric._memory() is memory:
            return
        backend.remove_metric(model, metric)
    metric = CarriedMemory(memory)
    backend.add_metric(model, metric)
    if not any(known is metric for known in model.metrics):
        raise ValueError(
            "`WeightAveraging` needs a model whose `metrics` are Keras's own on this backend: this one has overridden "
            "the property."
        )


def _added(one: Any, other: Any) -> Any:
    """The sum of two counts of samples, which stops at the largest int32."""
    return ops.minimum(one, MOST_SAMPLES - other) + other
