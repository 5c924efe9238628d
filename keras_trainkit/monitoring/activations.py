"""What the layers of a model put out in training: mean, spread, zeros and dead units, computed inside the step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import widened
from keras_trainkit.monitoring.counting import inner_optimizer
from keras_trainkit.training.interception import intercepted
from keras_trainkit.training.train_functions import variables_of

_SHAPING = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.Softmax)


class Activations:
    """Measures the outputs of a model's layers at every so many updates, on TensorFlow.

    It goes around the model's `train_step` between `attach` and `detach`, and while a step is traced it looks at what
    the layers return; nothing of Keras is changed for others. Micro-batches of one update, replicas, and the calls of
    a layer that is called several times count together. Elements that a mask hides do not count.

    Args:
        model: a compiled model whose layers exist.
        every: updates from one to the next that is measured.

    Attributes:
        able: whether there is any layer to watch.
        layers: those that are watched: layers that hold no others, and have weights or are activations; of recurrent
            layers the outermost.
    """

    def __init__(self, model: Any, every: int) -> None:
        self.model, self.every = model, every
        self.layers = watched_layers(model)
        self.able = bool(self.layers)
        self._channels = [_channels(layer) for layer in self.layers]
        self._own: tuple[Any, ...] = ()
        with variables_of(model):
            self._at = self._share((), "int64", -1)
            self._moments = self._share((len(self.layers), 4), "float64")
            self._active = self._share((sum(self._channels),), "float32")

    @staticmethod
    def _share(shape: tuple[int, ...], dtype: str, value: int = 0) -> Any:
        return keras.Variable(
            lambda shape, dtype: ops.full(shape, value, dtype),
            shape,
            dtype,
            trainable=False,
            aggregation="sum",
            synchronization="on_read",
            name="activations",
        )

    def attach(self) -> None:
        """Goes around the model's train step; the next train function measures."""
        if self._own:
            return
        own = vars(self.model)
        had, original = "train_step" in own, self.model.train_step
        step = self._around(original)
        own["train_step"] = step
        self._own = (step, original if had else None)

    def detach(self) -> None:
        """Gives the model its own train step again, unless somebody else has put another one in its place."""
        if self._own and vars(self.model).get("train_step") is self._own[0]:
            del vars(self.model)["train_step"]
            if self._own[1] is not None:
                vars(self.model)["train_step"] = self._own[1]
        self._own = ()

    def values(self) -> dict[str, dict[str, float]]:
        """`activation_mean`, `activation_std`, `zero_fraction` and, behind a ReLU, `dead_fraction` by layer.

        They are of the last update that was measured; a unit is dead if it was zero for all samples of the batch.
        """
        moments, active = ops.convert_to_numpy(self._moments), ops.convert_to_numpy(self._active)
        ends = np.cumsum([0, *self._channels])
        found = {}
        for layer, (count, total, squares, zeros), begin, end in zip(
            self.layers, moments, ends[:-1], ends[1:], strict=True
        ):
            if count == 0:
                continue
            mean = total / count
            of = {
                "activation_mean": float(mean),
                "activation_std": float(np.sqrt(np.maximum(squares / count - mean**2, 0))),
                "zero_fraction": float(zeros / count),
            }
            found[name_of(layer)] = of | (
                {"dead_fraction": float(np.mean(active[begin:end] == 0))} if end > begin else {}
            )
        return found

    # ---------------------------------------------------------------------------------------------------- in the step

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @backend.plain_python
        def train_step(*arguments: Any, **keywords: Any) -> Any:
            if self._own[:1] != (train_step,):  # another step that was put around it keeps it on the model
                return original(*arguments, **keywords)
            outputs: list[tuple[int, Any]] = []
            here = backend.place()

            def handler(index: int) -> Callable[..., Any]:
                def call(inner: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
                    result = inner(*arguments, **keywords)
                    # What is made inside of a loop or a conditional cannot be read outside of it.
                    if backend.place() is here:
                        outputs.extend((index, value) for value in keras.tree.flatten(result)[:1])
                    return result

                return call

            done = backend.read(inner_optimizer(self.model.optimizer).iterations)
            with contextlib.ExitStack() as stack:
                for index, layer in enumerate(self.layers):
                    stack.enter_context(intercepted(layer, "call", handler(index)))
                result = original(*arguments, **keywords)
            self._measure(ops.cast(done, "int64"), outputs)
            return result

        return train_step

    def _measure(self, done: Any, outputs: list[tuple[int, Any]]) -> None:
        outputs = [(index, value) for index, value in outputs if _measurable(value)]
        if not outputs:
            return

        def measure() -> None:
            rows: dict[int, Any] = {}
            counts: dict[int, Any] = {}
            for index, value in outputs:
                weight = _weight(value)
                rows[index] = rows.get(index, 0) + _moments(value, weight)
                if self._channels[index] and value.shape[_axis(self.layers[index], value)] == self._channels[index]:
                    counts[index] = counts.get(index, 0) + _active(value, weight, _axis(self.layers[index], value))
            moments = [rows.get(i, ops.zeros((4,), "float64")) for i in range(len(self.layers))]
            # A layer that was not called has no dead units: its count of values is 0, too.
            active = [counts.get(i, ops.zeros((n,))) for i, n in enumerate(self._channels)]
            begun = ops.equal(backend.read(self._at), done)
            for variable, new in ((self._moments, ops.stack(moments)), (self._active, ops.concatenate(active))):
                old = backend.read(variable)
                backend.write(variable, ops.where(begun, old, ops.zeros_like(old)) + ops.cast(new, old.dtype))
            backend.write(self._at, done)

        due = ops.equal((done + 1) % self.every, 0)
        backend.when(due, measure, None, [self._at, self._moments, self._active])


def watched_layers(model: Any) -> list[Any]:
    """The innermost layers of a model that have weights or are activations, each once."""
    everything = backend.flat_layers(model)
    recurrent = [layer for layer in everything if isinstance(layer, keras.layers.RNN)]
    inside = {id(part) for layer in recurrent for part in backend.flat_layers(layer) if part is not layer}
    found = {}
    for layer in everything:
        innermost = isinstance(layer, keras.layers.RNN) or len(backend.flat_layers(layer)) == 1
        if innermost and id(layer) not in inside and (layer.weights or isinstance(layer, _SHAPING)):
            found[id(layer)] = layer
    return list(found.values())


def name_of(layer: Any) -> str:
    """The path of a layer: that of its variables, where it has some."""
    for parts in (variable_path(variable).split("/") for variable in layer.weights):
        if layer.name in parts:
            return "/".join(parts[: parts.index(layer.name) + 1])
    return layer.path or layer.name


def _rectifies(layer: Any) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not np.any(layer.negative_slope) and not layer.threshold
    return getattr(layer, "activation", None) in (keras.activations.relu, keras.activations.relu6)


def _channels(layer: Any) -> int:
    """The units of a layer that ends in a ReLU; 0 for all others, and where it cannot be known beforehand."""
    if not _rectifies(layer) or isinstance(layer, keras.layers.RNN):
        return 0
    with contextlib.suppress(AttributeError, ValueError):
        shape = keras.tree.flatten(layer.output)[0].shape
        return shape[_axis(layer, layer.output)] or 0
    for own in ("units", "filters"):
        if isinstance(getattr(layer, own, None), int):
            return getattr(layer, own)
    bias = getattr(layer, "bias", None)
    return bias.shape[0] if bias is not None and len(bias.shape) == 1 else 0


def _axis(layer: Any, value: Any) -> int:
    layout = getattr(layer, "data_format", None) or keras.config.image_data_format()
    spatial = len(value.shape) >= 4 or (len(value.shape) == 3 and hasattr(layer, "data_format"))
    return 1 if spatial and layout == "channels_first" else len(value.shape) - 1


def _measurable(value: Any) -> bool:
    return hasattr(value, "dtype") and backend.is_dense(value) and "float" in backend.dtype(value) and value.shape != ()


def _weight(value: Any) -> Any:
    """1 where an element counts, 0 where the mask of the output hides it; None where all count."""
    mask = backend.mask_of(value)
    if mask is None:
        return None
    mask = ops.reshape(mask, [*ops.shape(mask), *[1] * (len(value.shape) - len(mask.shape))])
    return ops.broadcast_to(ops.cast(mask, widened(value).dtype), ops.shape(value))


def _moments(value: Any, weight: Any) -> Any:
    """Number of elements, their sum, sum of squares, and how many are zero, in float64."""
    value = widened(value)
    if weight is None:
        weight, count = 1.0, ops.cast(ops.size(value), value.dtype)
    else:
        count = ops.sum(weight)
    mean = ops.sum(weight * value) / ops.maximum(count, 1)
    around = ops.sum(weight * ops.square(value - mean))
    zeros = ops.sum(weight * ops.cast(ops.equal(value, 0), value.dtype))
    count, mean, around, zeros = (ops.cast(number, "float64") for number in (count, mean, around, zeros))
    # In float64 nothing is lost where the mean is large against the spread.
    return ops.stack([count, count * mean, around + count * mean**2, zeros])


def _active(value: Any, weight: Any, axis: int) -> Any:
    """How many elements of each channel are not zero."""
    some = ops.cast(ops.not_equal(value, 0), "float32")
    some = some if weight is None else some * ops.cast(weight, "float32")
    return ops.sum(some, axis=[a for a in range(len(value.shape)) if a != axis])
