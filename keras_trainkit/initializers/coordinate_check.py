"""The coordinate check: do activations, and what training adds to them, keep their size as the width grows?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend, checks
from keras_trainkit.core.tables import aligned
from keras_trainkit.initializers import mup_shapes
from keras_trainkit.initializers.mup import mup

_IN_A_LOOP = (keras.layers.RNN, keras.layers.TimeDistributed)  # their inner layers' outputs are never there as numbers


@dataclasses.dataclass(frozen=True)
class CoordinateCheck:
    """How large activations were over widths and steps. Print it to see slopes and verdicts.

    Attributes:
        layers: the names of the layers that have weights, in the order of their calls.
        widths: the widths.
        sizes: the mean absolute output of each layer, an array of shape (layers, widths, steps + 1), the mean over the
            seeds; the first step is the start.
        changes: the mean absolute difference to the start, an array of the same shape.
        losses: the loss before each step, an array of shape (widths, seeds, steps).
        fixed: for each layer whether its output has as many elements at every width, as that of the last layer has.
        tolerance: how steep a slope may be that counts as none.
    """

    layers: list[str]
    widths: list[int]
    sizes: np.ndarray
    changes: np.ndarray
    losses: np.ndarray
    fixed: list[bool]
    tolerance: float

    def slopes(self, of: str = "changes", step: int = -1) -> np.ndarray:
        """The slope of log size over log width for each layer: 0 is steady, 1 grows with the width.

        Args:
            of: `"changes"` or `"sizes"`.
            step: which; the last by default, 0 is the start.

        Returns:
            An array of shape (layers,), with NaN where nothing moved or a value is not finite.
        """
        values = getattr(self, checks.one_of("of", of, ("changes", "sizes")))[:, :, step]
        x = np.log2(self.widths) - np.mean(np.log2(self.widths))
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.log2(values) @ x / (x @ x)
        return np.where(np.isfinite(values).all(axis=1) & (values > 0).all(axis=1), slopes, np.nan)

    def verdicts(self) -> list[str]:
        """For each layer `"steady"`, `"grows"`, `"shrinks"`, `"does not move"` or `"not finite"`.

        Both a layer's output and what training adds to it count; but where the output has as many elements at every
        width, it may shrink: in the maximal update parametrization wider models begin with smaller last outputs.
        """
        pairs = zip(self.slopes(), self.slopes("sizes"), strict=True)
        return [self._verdict(self.changes[i, :, -1], *pair, self.fixed[i]) for i, pair in enumerate(pairs)]

    def _verdict(self, changes: np.ndarray, change: float, size: float, fixed: bool) -> str:
        if not np.isfinite(changes).all():
            return "not finite"
        if math.isnan(change):
            return "does not move"
        if max(change, size) > self.tolerance:
            return "grows"
        return "shrinks" if (change if fixed else min(change, size)) < -self.tolerance else "steady"

    @property
    def steady(self) -> bool:
        """Whether all layers are."""
        return all(verdict == "steady" for verdict in self.verdicts())

    def __str__(self) -> str:
        ends = [f"change at {width}" for width in (self.widths[0], self.widths[-1])]
        rows = [["layer", *ends, "slope of change", "slope of size", ""]]
        for name, changes, change, size, verdict in zip(
            self.layers, self.changes, self.slopes(), self.slopes("sizes"), self.verdicts(), strict=True
        ):
            rows.append(
                [name, f"{changes[0, -1]:.3g}", f"{changes[-1, -1]:.3g}", f"{change:+.2f}", f"{size:+.2f}", verdict]
            )
        return "\n".join(aligned(rows))

    def plot(self, file: str | Path | None = None) -> Any:
        """Draws sizes and changes over the width; see `plot_coordinate_checks`, which puts several side by side."""
        # Looked up late, because matplotlib is not always installed.
        from keras_trainkit.initializers.coordinate_drawing import plot_coordinate_checks

        return plot_coordinate_checks({"": self}, file)


def coordinate_check(
    build: Callable[[int], keras.Model],
    widths: Sequence[int],
    optimizer: Any,
    data: Any,
    loss: Any,
    *,
    base: int | None = None,
    roles: dict[str, str] | None = None,
    rule: str | None = None,
    steps: int = 4,
    seeds: int = 3,
    tolerance: float = 0.25,
) -> CoordinateCheck:
    """Trains models of several widths for a few steps, and tells how the sizes of their activations go with the width.

    In the maximal update parametrization neither a layer's output nor what training adds to it depends on the width
    (the check of Yang et al., 2022, arXiv:2203.03466, appendix D.1). If one grows, wide models will want a smaller
    learning rate; if the change shrinks, that layer stops learning in wide models.

    Every model trains on the same batch. Outputs are taken from a call in inference mode after each step, but that
    batch normalization goes by the batch. The queries of Keras's attention layers count times the root of how far their
    heads have grown, because what should be steady is the product with the keys over the head size, and Keras divides
    it by the root alone. Models, names and random numbers outside are left as they are.

    Args:
        build: function from a width to a new model, which is built.
        widths: at least two different ones; powers of two over a factor of 8 or more show most.
        optimizer: an optimizer, of which each model gets a copy; or a function from the new model to an optimizer,
            which may change the model's values, so that it can be your own parametrization that is checked.
        data: a pair (x, y) of one batch, some hundred samples.
        loss: what `compile` takes.
        base: the width of the base model for `mup`; None to check the models as `build` makes them, which is the
            standard parametrization.
        roles: for `mup`.
        rule: for the `optimizer` of what `mup` returns.
        steps: of training, at least 1. Few: later on, what the model has learned differs from width to width.
        seeds: how many models of each width, at least 1.
        tolerance: how steep a slope may be that counts as none, above 0. Orders that the theory knows are multiples of
            one half.

    Returns:
        A `CoordinateCheck`.

    Raises:
        TypeError, ValueError: for an argument out of its range, or models of different layers.

    >>> import keras, numpy as np
    >>> from keras_trainkit import optimizers
    >>> def build(width):
    ...     return keras.Sequential(
    ...         [keras.Input((8,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(width, "relu"),
    ...          keras.layers.Dense(1)])
    >>> batch = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    >>> check = coordinate_check(
    ...     build, [16, 64], optimizers.SGD(0.1), (batch, batch[:, :1]), "mse", base=16, steps=2, seeds=1)
    >>> check.sizes.shape
    (3, 2, 3)
    """
    widths = _widths(widths)
    steps = checks.integer("steps", steps, at_least=1)
    seeds = checks.integer("seeds", seeds, at_least=1)
    tolerance = checks.number("tolerance", tolerance, above=0)
    if base is None and (roles is not None or rule is not None):
        raise ValueError("`roles` and `rule` go with `base`. Received: base=None")
    if base is not None:
        checks.integer("base", base, at_least=1)
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise TypeError(f"`data` must be a pair (x, y) of one batch. Received: data={type(data)}")

    def made(width: int, seed: int) -> tuple[keras.Model, Any]:
        # Keras draws the seeds of its initializers from Python's random numbers, which `names_kept` puts back.
        with backend.names_kept():
            random.seed(seed)
            model = _built(build, width)
            own = _optimizer(optimizer, model)
            if base is not None:
                own = mup(model, _built(build, base), roles).optimizer(own, rule)
            return model, own

    runs = [_Runs(functools.partial(made, width), data, loss, steps) for width in widths]
    results = [[run.train(seed) for seed in range(seeds)] for run in runs]
    layers = runs[0].names
    for width, run in zip(widths, runs, strict=True):
        if len(run.names) != len(layers):
            raise ValueError(
                f"`build` must make models of the same layers. Received: {len(layers)} calls at width {widths[0]}, "
                f"{len(run.names)} at {width}"
            )
    # From (widths, seeds, steps + 1, layers).
    sizes, changes = (
        np.moveaxis(np.array([[result[i] for result in row] for row in results]).mean(axis=1), -1, 0) for i in (0, 1)
    )
    heads = np.array([run.heads for run in runs]).T  # ones where there are none
    sizes, changes = (values * np.sqrt(heads / heads[:, :1])[:, :, None] for values in (sizes, changes))
    losses = np.array([[result[2] for result in row] for row in results])
    fixed = [len(set(counts)) == 1 for counts in zip(*(run.elements for run in runs), strict=True)]
    return CoordinateCheck(layers, widths, sizes, changes, losses, fixed, tolerance)


class _Runs:
    """Runs of one width from several seeds. The train step of the first serves them all: it takes long to compile."""

    def __init__(self, make: Callable[[int], tuple[keras.Model, Any]], data: Any, loss: Any, steps: int) -> None:
        self.make, self.data, self.loss, self.steps = make, data, loss, steps
        self.model: Any = None
        self.names: list[str] = []
        self.elements: list[int] = []
        self.heads: list[int] = []

    def train(self, seed: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """Sizes and changes, of shape (steps + 1, layers), and the losses."""
        fresh, optimizer = self.make(seed)
        if self.model is None:
            self.model = fresh
            fresh.compile(optimizer, self.loss)
        else:
            self.model.set_weights(fresh.get_weights())
            self._restart()
        first = self._outputs()
        sizes, changes, losses = [_means(first)], [[0.0] * len(first)], []
        for _ in range(self.steps):
            self.model.reset_metrics()  # older versions of Keras return the mean of all batches so far
            logs = self.model.train_on_batch(*self.data, return_dict=True)
            losses.append(float(logs["loss"]))
            now = self._outputs()
            sizes.append(_means(now))
            changes.append(_means([a - b for a, b in zip(now, first, strict=True)]))
        return np.array(sizes), np.array(changes), losses

    def _restart(self) -> None:
        """Puts the optimizer back to where it was before its first step."""
        used = self.model.optimizer
        new = type(used).from_config(used.get_config())
        new.build(self.model.trainable_variables)
        for variable, value in zip(used.variables, new.variables, strict=True):
            variable.assign(value)

    def _outputs(self) -> list[np.ndarray]:
        """The output of each call of a layer with weights."""
        taken: list[tuple[Any, np.ndarray]] = []
        queries = mup_shapes.queries(self.model)
        with contextlib.ExitStack() as stack:
            for layer in _leaves(self.model):
                stack.enter_context(_listened(layer, taken))
            self.model(self.data[0], training=False)
        self.names = _numbered([layer.path or layer.name for layer, _ in taken])
        self.elements = [values.size for _, values in taken]
        self.heads = [values.shape[-1] if id(layer.weights[0]) in queries else 1 for layer, values in taken]
        return [values for _, values in taken]


@contextlib.contextmanager
def _listened(layer: Any, taken: list[tuple[Any, np.ndarray]]) -> Iterator[None]:
    original, by_batch = layer.call, isinstance(layer, keras.layers.BatchNormalization)

    def call(*arguments: Any, **keywords: Any) -> Any:
        outputs = original(*arguments, **(keywords | {"training": True} if by_batch else keywords))
        values = keras.ops.convert_to_numpy(keras.tree.flatten(outputs)[0])
        taken.append((layer, values.astype("float64")))
        return outputs

    # Past `__setattr__`, where Keras would track it.
    vars(layer)["call"] = call
    try:
        yield
    finally:
        del vars(layer)["call"]


def _leaves(layer: Any) -> list[Any]:
    """The layers with weights that are made of no others."""
    inner = [] if isinstance(layer, _IN_A_LOOP) else [one for one in backend.sublayers(layer) if one.weights]
    if not inner:
        return [layer] if layer.weights else []
    found = [leaf for one in inner for leaf in _leaves(one)]
    return list({id(leaf): leaf for leaf in found}.values())


def _numbered(names: list[str]) -> list[str]:
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if count == 1 else f"{name}, call {count}" for name, count in zip(names, counts, strict=True)]


def _means(arrays: list[np.ndarray]) -> list[float]:
    return [float(np.mean(np.abs(array))) for array in arrays]


def _built(build: Callable[[int], keras.Model], width: int) -> keras.Model:
    model = build(width)
    if not isinstance(model, keras.Model) or not model.trainable_variables:
        raise TypeError(f"`build` must return a built Keras model. Received: {model!r} for width {width}")
    return model


def _optimizer(optimizer: Any, model: keras.Model) -> Any:
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return type(optimizer).from_config(optimizer.get_config())
    found = optimizer(model) if callable(optimizer) else None
    if not isinstance(found, keras.optimizers.Optimizer):
        raise TypeError(f"`optimizer` must be an optimizer, or a function that returns one. Received: {optimizer!r}")
    return found


def _widths(widths: Sequence[int]) -> list[int]:
    found = sorted({checks.integer("widths", width, at_least=1) for width in widths})
    if len(found) < 2:
        raise ValueError(f"`widths` must hold at least two different widths. Received: widths={widths}")
    return found
