"""The gradient noise scale at a model's present weights, and the batch size that it speaks for."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend, checks
from keras_trainkit.core.numerics import squared_norm
from keras_trainkit.finders.kept import Kept, Surroundings, reseed


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """The size of gradient noise beside the gradient. Print it to see it in words.

    Attributes:
        noise_scale: tr(S) / norm(G)^2 in samples, S the covariance of the gradients of single samples, G their mean;
            infinity where the measurements cannot tell norm(G)^2 from 0.
        standard_error: of the noise scale, by the jackknife over the measurements.
        squared_norm: the estimate of norm(G)^2, without bias.
        trace: the estimate of tr(S), without bias.
        batch_size: samples of a small batch.
        big_batch_size: samples of a big one.
        measurements: shape `(n, 2)`: the estimates of norm(G)^2 and tr(S) by each big batch and the small ones in it.
    """

    noise_scale: float
    standard_error: float
    squared_norm: float
    trace: float
    batch_size: int
    big_batch_size: int
    measurements: np.ndarray

    @property
    def critical_batch_size(self) -> int | None:
        """The batch at which twice the samples save a quarter of the updates; None where it is not known."""
        return max(1, round(self.noise_scale)) if math.isfinite(self.noise_scale) else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON but for an infinity."""
        found = dataclasses.asdict(self) | {"measurements": self.measurements.tolist()}
        return found | {"critical_batch_size": self.critical_batch_size}

    def __str__(self) -> str:
        told = f"{len(self.measurements)} measurements of {self.batch_size} and {self.big_batch_size} samples"
        if self.critical_batch_size is None:
            return f"noise scale: too large to tell from {told}; take more of them, or larger batches"
        return f"noise scale: {self.noise_scale:.3g} samples, standard error {self.standard_error:.2g} ({told})"


def noise_scale(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int = 32,
    batches: int = 8,
    measurements: int = 16,
    seed: int = 0,
) -> NoiseScale:
    """Measures the gradient noise scale of McCandlish et al., 2018, arXiv:1812.06162 (section 2.2 and appendix A).

    A batch much smaller than the noise scale gives nearly pure noise, so that twice the batch allows about half the
    updates; one much larger saves hardly any. In between, about at the noise scale, lies the batch size that costs
    neither many more samples nor many more updates than needed. It holds at the present weights: it mostly grows in the
    course of training, so measure it on a model that has trained for a while. It is that of plain gradient descent;
    optimizers that precondition are known to have others of the same order.

    From the mean squared norm of the gradients of small batches, and the squared norm of the gradient of all of them
    together, norm(G)^2 and tr(S) follow without bias. Both are averaged over the measurements before they are divided.

    The gradients are those of the compiled loss with its penalties, in training mode (dropout is noise, too), without
    clipping. Nothing is trained, and model, optimizer, seeds and the position of the kit's data are afterwards what
    they were, to the bit. TensorFlow only.

    Args:
        model: a compiled model, made outside of a strategy of several replicas.
        x: arrays, from which samples are drawn with replacement; or an iterable of batches (x, y) or
            (x, y, sample_weight) of independent samples, such as a shuffled `tf.data.Dataset` or `data.Batches`.
        y: targets, with arrays.
        sample_weight: weights of the samples, with arrays, or None.
        batch_size: samples of a small batch, with arrays; else the batches have theirs, and must be of one size.
        batches: small batches in a big one, at least 2.
        measurements: big batches, at least 2. The error falls by their square root.
        seed: of the draw.

    Returns:
        A `NoiseScale`.

    Raises:
        ValueError: for a value out of its range, batches of different sizes, or fewer batches than are needed.
        RuntimeError: on another backend than TensorFlow.

    Example:

    >>> import numpy as np, keras
    >>> from keras_trainkit import finders
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    >>> model.compile("sgd", "mse")
    >>> y = np.random.default_rng(0).normal(1.0, 2.0, size=(1000, 1))  # of variance 4 around 1, and the model says 0
    >>> found = finders.noise_scale(model, np.ones((1000, 1)), y, measurements=64)
    >>> bool(abs(found.noise_scale - y.var() / y.mean() ** 2) < 5 * found.standard_error)
    True
    """
    batch_size = checks.integer("batch_size", batch_size, at_least=1)
    batches = checks.integer("batches", batches, at_least=2)
    measurements = checks.integer("measurements", measurements, at_least=2)
    seed = checks.integer("seed", seed, at_least=0)
    if not backend.ON_TENSORFLOW:
        raise RuntimeError(f"`noise_scale` needs Keras on TensorFlow. Received: {keras.backend.backend()}")
    if not isinstance(model, keras.Model) or not model.compiled or not model.built:
        raise ValueError(f"`model` must be a compiled and built Keras model. Received: model={model!r}")
    if backend.replicas_of(model) > 1:
        raise ValueError(
            "`model` must be made outside of a strategy: the noise is that of model and data, whatever the devices. "
            f"Received: a model of {backend.replicas_of(model)} replicas"
        )
    surroundings = Surroundings(model, x)
    kept = Kept(model)
    try:
        reseed(seed)
        source = _drawn((x, y, sample_weight), batch_size, seed) if y is not None else _given(x)
        gradients = _gradients(model)
        found, size = [], None
        for _ in range(measurements):
            one, size = _measurement(gradients, source, batches, size)
            found.append(one)
    finally:
        kept.put_back()
        surroundings.put_back()
    return _result(np.array(found, "float64"), int(size or 0), batches)


def _result(found: np.ndarray, size: int, batches: int) -> NoiseScale:
    norm, trace = found.mean(axis=0)
    count = len(found)
    without = (found.sum(axis=0) - found) / (count - 1)
    value, error = math.inf, math.inf
    if norm > 0:
        value = max(float(trace / norm), 0.0)
        with np.errstate(divide="ignore"):
            left_out = without[:, 1] / without[:, 0]
        if (without[:, 0] > 0).all():
            error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    return NoiseScale(value, error, float(norm), float(trace), size, size * batches, found)


def _measurement(
    gradients: Callable[[Any], list[Any]], source: Iterator[Any], batches: int, size: int | None
) -> tuple[list[float], int]:
    """Estimates of norm(G)^2 and tr(S) from as many small batches, and their size."""
    total, small = None, 0.0
    for _ in range(batches):
        batch = next(source, None)
        if batch is None:
            raise ValueError("`x` has fewer batches than `batches` times `measurements`.")
        here = int(keras.tree.flatten(batch)[0].shape[0])
        if size is not None and here != size:
            raise ValueError(f"`x` must have batches of one size. Received: batches of {size} and of {here} samples")
        size = here
        found = gradients(batch)
        small += float(squared_norm(found)) / batches
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    big = float(squared_norm([value / batches for value in total or []]))
    few, many = float(size or 0), float((size or 0) * batches)
    return [(many * big - few * small) / (many - few), (small - big) / (1 / few - 1 / many)], int(few)


def _gradients(model: Any) -> Callable[[Any], list[Any]]:
    """A function from a batch to the gradients of its loss, dense and at least in float32."""
    import tensorflow as tf

    variables = model.trainable_variables
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)

    def gradients(batch: Any) -> list[Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            options = {"training": True} if backend.takes_training(model) else {}
            loss = model.compute_loss(x=x, y=y, y_pred=model(x, **options), sample_weight=weight, training=True)
            scale = model.optimizer.dynamic_scale.value if scales and model.optimizer.built else tf.constant(1.0)
            loss = tf.cast(loss, "float32") * tf.cast(scale, "float32")
        found = tape.gradient(loss, [variable.value for variable in variables], unconnected_gradients="zero")
        return [tf.cast(tf.convert_to_tensor(value), "float32") / tf.cast(scale, "float32") for value in found]

    return tf.function(gradients, autograph=False)


def _drawn(arrays: Any, size: int, seed: int) -> Iterator[Any]:
    """Batches of samples drawn with replacement, so that they are independent."""
    rng = np.random.default_rng(seed)
    x, y, weight = (keras.tree.map_structure(lambda v: None if v is None else np.asarray(v), part) for part in arrays)
    count = len(keras.tree.flatten(y)[0])
    while True:
        rows = rng.integers(0, count, size)
        parts = (x, y) if weight is None else (x, y, weight)
        yield keras.tree.map_structure(functools.partial(np.take, indices=rows, axis=0), parts)


def _given(x: Iterable[Any]) -> Iterator[Any]:
    """The batches of an iterable, pass after pass as long as there are any."""
    while True:
        empty = True
        for batch in x:
            empty = False
            yield batch
        if empty:
            return
