"""Layer-sequential unit variance: weights scaled by what the data make of them."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.initializers import report
from keras_trainkit.initializers.kernels import Kernel, generator_for, kernels, layers_in_order, other_matrices


def lsuv(
    model: keras.Model,
    data: Any,
    batch_size: int = 256,
    tolerance: float = 0.01,
    max_iterations: int = 10,
    orthonormal: bool = True,
    exclude: Sequence[str] = (),
    seed: int | None = None,
) -> report.InitializationReport:
    """Scales the weights of a model layer by layer until the output of each has variance 1 on real data.

    Each kernel is first drawn orthonormal. Then one batch goes through the model, and on its way every linear layer, in
    the order of execution, divides its kernel by the standard deviation of its output before the activation, until the
    variance is 1. Whatever the activations, widths, shortcuts and the scale of the data, no signal grows or fades
    with depth.

    Linear layers are Dense, EinsumDense (those inside attention, too) and all convolutions: plain, transposed,
    depthwise, separable (of these the pointwise kernel takes the scale). A layer that is used several times is
    scaled at its first use. Variance is that of all elements of the output together, masked positions left out.
    Embeddings, recurrent layers, frozen and quantized layers stay as they are; the notes of the result name them. So do
    biases, seeds, and BatchNormalization's statistics. The batch runs as in inference: no dropout, and batch
    normalization by the moving statistics, which in a new model change nothing. The pass is eager, once through the
    model with each layer computed some two times.

    Reference: Mishkin and Matas 2016, arXiv 1511.06422, Algorithm 1.

    Args:
        model: any model; one that is not built is built by the batch.
        data: an array, or a dictionary or list of arrays as the model takes them, of which the first `batch_size`
            samples are used; or a `tf.data.Dataset`, a `PyDataset` or another iterable, of which the first batch is
            used, and of a tuple (x, y) or (x, y, weights) only x. Some hundred samples are enough.
        batch_size: for arrays.
        tolerance: how far from 1 the variance may be, above 0; the paper says 0.1.
        max_iterations: how often a layer may be scaled; once is enough where biases are 0.
        orthonormal: whether kernels are drawn anew; otherwise the present ones are scaled, as for a trained model.
        exclude: list of regular expressions; a variable in whose path one is found stays as it is.
        seed: an int for the same kernels again.

    Returns:
        An `InitializationReport` with the variance before and after, and the iterations, of each layer.

    Raises:
        ValueError: if there is no batch; if a pattern of `exclude` is found nowhere; if the output of a layer does not
            vary or is not finite. The model is then as it was before.

    Warns:
        UserWarning: where `max_iterations` were not enough, for instance because biases alone vary by more than 1.

    >>> import keras, numpy as np
    >>> layers = [keras.layers.Dense(64, "tanh") for _ in range(20)]
    >>> model = keras.Sequential([keras.Input((8,)), *layers])
    >>> result = lsuv(model, np.random.default_rng(0).normal(size=(256, 8)), seed=1)
    >>> len(result.variables), bool(0.99 < result.variables[-1].variance < 1.01)
    (20, True)
    """
    checks.integer("batch_size", batch_size, at_least=1)
    checks.number("tolerance", tolerance, above=0)
    checks.integer("max_iterations", max_iterations, at_least=1)
    checks.boolean("orthonormal", orthonormal)
    patterns = _patterns(exclude)
    batch = _first_batch(data, batch_size)
    if not all(layer.built for layer in layers_in_order(model)):
        model(batch, training=False)
    found = [kernels(layer) for layer in layers_in_order(model)]
    _require_found(patterns, model)
    taken = [each for each in found if each and not _excluded(patterns, each)]
    steps = [_Step(each, tolerance, max_iterations) for each in taken]
    generator = generator_for(seed) if orthonormal else None
    order: list[_Step] = []
    with _everything_else_kept(model, taken), contextlib.ExitStack() as stack:
        for step in steps:
            stack.enter_context(_intercepted(step, generator, order))
        model(batch, training=False)
    rows = [row for step in order for row in step.rows()]
    late = [kernel.path for step in order if not step.converged for kernel in step.kernels]
    if late:
        warnings.warn(
            f"lsuv: after {max_iterations} iterations the variance is not within {tolerance} of 1 at "
            f"{report.listed(late)}.",
            stacklevel=2,
        )
    return report.InitializationReport("lsuv", rows, _notes(model, steps, order))


class _Step:
    """The scaling of one layer."""

    def __init__(self, kernels: list[Kernel], tolerance: float, max_iterations: int) -> None:
        self.kernels, self.layer = kernels, kernels[-1].layer
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.before, self.variance, self.iterations = math.nan, math.nan, 0

    @property
    def converged(self) -> bool:
        return abs(self.variance - 1) <= self.tolerance

    def run(self, generator: np.random.Generator | None, call: Callable[[], Any], mask: Any) -> Any:
        """Sets the kernels; returns the layer's output with them."""
        self.orthonormal = generator is not None
        if generator is not None:
            for kernel in self.kernels:
                kernel.assign_orthonormal(generator)
        output, self.variance = self._measured(call, mask)
        self.before = self.variance
        while not self.converged and self.iterations < self.max_iterations:
            scaled = self.kernels[-1].variable
            scaled.assign(ops.convert_to_numpy(scaled).astype("float64") / math.sqrt(self.variance))
            self.iterations += 1
            output, self.variance = self._measured(call, mask)
        return output

    def rows(self) -> list[report.InitializedVariable]:
        """A line for each kernel; the last one has the measurements."""
        drawn = "orthonormal" if self.orthonormal else ""
        scaled = f"{drawn}, scaled".removeprefix(", ")
        first = [report.entry(kernel.variable, drawn or "as it was") for kernel in self.kernels[:-1]]
        measured = {"variance_before": self.before, "variance": self.variance, "iterations": self.iterations}
        return [*first, report.entry(self.kernels[-1].variable, scaled, **measured)]

    def _measured(self, call: Callable[[], Any], mask: Any) -> tuple[Any, float]:
        seen: list[Any] = []
        with _before_activation(self.layer, seen):
            output = call()
        values = ops.convert_to_numpy(seen[-1] if seen else output).astype("float64")
        if mask is not None and mask.shape == values.shape[: mask.ndim]:
            values = values[mask]
        with np.errstate(invalid="ignore"):
            variance = float(np.var(values)) if values.size else 0.0
        if not (math.isfinite(variance) and variance > 0):
            raise ValueError(
                f"The output of {self.layer.name!r} ({self.kernels[-1].path}) has the variance {variance} over the "
                "batch, so that no scale makes it 1. Check the data, or leave the layer out with `exclude`."
            )
        return output, variance


@contextlib.contextmanager
def _intercepted(step: _Step, generator: np.random.Generator | None, order: list[_Step]) -> Iterator[None]:
    """Has the layer scale itself at its first call with values; what is called in a traced loop has none."""
    original = step.layer.call

    def call(*arguments: Any, **keywords: Any) -> Any:
        def again() -> Any:
            return original(*arguments, **keywords)

        if step in order or not all(_has_values(leaf) for leaf in keras.tree.flatten((arguments, keywords))):
            return again()
        mask = backend.mask_of(arguments[0]) if arguments else None
        output = step.run(generator, again, None if mask is None else ops.convert_to_numpy(mask))
        order.append(step)
        return output

    step.layer.call = call
    try:
        yield
    finally:
        del step.layer.call


@contextlib.contextmanager
def _before_activation(layer: Any, seen: list[Any]) -> Iterator[None]:
    """Takes down what the layer gives to its activation."""
    if "activation" not in vars(layer):
        yield
        return
    activation = layer.activation

    def record(x: Any) -> Any:
        seen.append(x)
        return x if activation is None else activation(x)

    # Past `__setattr__`, where Keras would track an activation that is a layer.
    vars(layer)["activation"] = record
    try:
        yield
    finally:
        vars(layer)["activation"] = activation


@contextlib.contextmanager
def _everything_else_kept(model: Any, taken: list[list[Kernel]]) -> Iterator[None]:
    """Puts back what a call may change in inference (seeds, statistics); after an error the kernels, too."""
    own = {id(kernel.variable) for each in taken for kernel in each}
    saved = [(v, ops.convert_to_numpy(v)) for v in model.variables if id(v) in own or not v.trainable]
    try:
        yield
    except BaseException:
        own = set()
        raise
    finally:
        for variable, value in saved:
            if id(variable) not in own:
                variable.assign(value)


def _has_values(leaf: Any) -> bool:
    if not hasattr(leaf, "shape"):
        return True
    try:
        ops.convert_to_numpy(leaf)
    except (AttributeError, NotImplementedError, TypeError):  # a symbol of TensorFlow's graph, a tracer of JAX
        return False
    return True


def _first_batch(data: Any, batch_size: int) -> Any:
    leaves = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else [data]
    if leaves and all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        x = keras.tree.map_structure(lambda leaf: leaf[:batch_size], data)
    else:
        batches = (data[i] for i in range(len(data))) if isinstance(data, keras.utils.PyDataset) else iter(data)
        taken = list(itertools.islice(batches, 1))
        if not taken:
            raise ValueError(f"`data` must hold at least one batch. Received: data={data!r}")
        (batch,) = taken
        x = keras.utils.unpack_x_y_sample_weight(batch)[0] if isinstance(batch, tuple) else batch
    # A tf.data batch is foreign to other backends.
    return x if backend.ON_TENSORFLOW else keras.tree.map_structure(np.asarray, x)


def _patterns(exclude: Sequence[str]) -> list[str]:
    if isinstance(exclude, str):
        raise TypeError(f"`exclude` must be a list of regular expressions. Received: exclude={exclude!r}")
    return list(exclude)


def _require_found(patterns: list[str], model: Any) -> None:
    for pattern in patterns:
        if not any(re.search(pattern, v.path) for v in model.variables):
            raise ValueError(f"`exclude` holds a pattern that no variable's path has. Received: {pattern!r}")


def _excluded(patterns: list[str], of_layer: list[Kernel]) -> bool:
    return any(re.search(pattern, kernel.path) for pattern in patterns for kernel in of_layer)


def _notes(model: Any, steps: list[_Step], order: list[_Step]) -> list[str]:
    taken = {id(kernel.variable) for step in order for kernel in step.kernels}
    known = {kernel.path for step in steps for kernel in step.kernels if id(kernel.variable) not in taken}
    left = [*other_matrices(model), *sorted(known)]
    return [f"Left as they are: {report.listed(left)}."] if left else []
