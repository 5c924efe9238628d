"""What each regularizer adds to the loss of a model at this moment."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, tables


@dataclasses.dataclass(frozen=True)
class Contribution:
    """One of a model's additional losses.

    Attributes:
        kind: `"weight"` for the regularizer of a variable, `"activity"` for that of a layer's output, `"add_loss"` for
            what a layer adds by itself.
        name: the path of the variable or layer.
        regularizer: what it is, with its configuration; empty for `"add_loss"`.
        value: what it adds to the loss.
    """

    kind: str
    name: str
    regularizer: str
    value: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary` found; `print` shows it as a table.

    Attributes:
        rows: a `Contribution` for each of `model.losses`, in their order.
        total: their sum, added up in their dtype and order, as `sum(model.losses)` is.
        unseen: paths of layers whose output is regularized, or that add losses, where there was no data to see by how
            much.
    """

    rows: list[Contribution]
    total: float
    unseen: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        head = ["kind", "of", "regularizer", "contribution", "share"]
        whole = sum(abs(row.value) for row in self.rows)
        lines = [
            [row.kind, row.name, row.regularizer, f"{row.value:.6g}", f"{abs(row.value) / whole:.1%}" if whole else ""]
            for row in self.rows
        ]
        text = tables.aligned([head, *lines, ["total", "", "", f"{self.total:.6g}", ""]])
        if self.unseen:
            text.append(f"Not counted, because they need `inputs`: {', '.join(self.unseen)}.")
        return "\n".join(text)


def summary(model: keras.Layer, inputs: Any = None, training: bool = False) -> Summary:
    """What each regularizer contributes to the model's loss now: to be seen beside the loss itself.

    A row stands for one of `model.losses`, as Keras counts them: the regularizer of each trainable variable once,
    however many layers share it, and that of a frozen variable not at all; the activity regularizer of a layer, and
    what it adds with `add_loss`, once for each call and output. Under `callbacks.HyperparameterSchedule` the values are
    those of the update at hand. On several replicas Keras gives each a fair share of these values.

    Args:
        model: a built model, or a layer. Models inside of it are counted, too.
        inputs: one batch, as for `model(inputs)`, which is called once; without it the regularizers of the weights
            alone are counted.
        training: whether to call it as in training: then dropout is on, and BatchNormalization's averages and the
            random seeds move.

    Returns:
        A `Summary`: `rows`, and a `total` that is exactly `sum(model.losses)`, if `inputs` were given or nothing needs
        them.

    Raises:
        TypeError: if `model` is no model or layer.
        ValueError: if it is not built and there are no `inputs`.

    >>> from keras_trainkit import regularizers
    >>> layers = [keras.layers.Dense(2, kernel_initializer="ones", kernel_regularizer="l2", name="first"),
    ...           keras.layers.ActivityRegularization(l1=0.5, name="second")]
    >>> model = keras.Sequential([keras.Input((3,)), *layers], name="net")
    >>> print(regularizers.summary(model, keras.ops.ones((4, 3))))
    kind      of                regularizer         contribution  share
    activity  second            L1L2(l1=0.5, l2=0)  3             98.0%
    weight    net/first/kernel  L2(l2=0.01)         0.06          2.0%
    total                                           3.06
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"`model` must be a model or a layer of Keras. Received: model={model!r}")
    if inputs is None:
        if not model.built:
            raise ValueError("`model` must be built, or `inputs` be given, for there to be weights.")
        found = _of_weights(model)
        layers = [layer for layer in backend.flat_layers(model) if _adds(layer)]
        return _summed(found, [_path(layer) for layer in layers])
    with _recorded(model) as positions:
        model(inputs, training=training)
    found = []
    for number, layer in enumerate(backend.flat_layers(model)):
        found += _of_layer(layer, positions.get(number, []))
    return _summed(found + _of_weights(model), [])


Found = tuple[str, str, str, Any]


def _summed(found: list[Found], unseen: list[str]) -> Summary:
    rows = [Contribution(kind, name, text, float(ops.convert_to_numpy(loss))) for kind, name, text, loss in found]
    losses = [loss for *_, loss in found]
    total = float(ops.convert_to_numpy(functools.reduce(ops.add, losses))) if losses else 0.0
    return Summary(rows, total, unseen)


def _of_weights(model: Any) -> list[Found]:
    return [
        ("weight", variable.path, described(variable.regularizer), variable.regularizer(variable))
        for variable in model.trainable_weights
        if variable.regularizer is not None
    ]


def _of_layer(layer: Any, of_activity: list[int]) -> list[Found]:
    """The losses that a layer holds since its last calls; those at the positions are its activity regularizer's."""
    return [
        ("activity", _path(layer), described(layer.activity_regularizer), loss)
        if position in of_activity
        else ("add_loss", _path(layer), "", loss)
        for position, loss in enumerate(backend.own_losses(layer))
    ]


@contextlib.contextmanager
def _recorded(model: Any) -> Iterator[dict[int, list[int]]]:
    """Notes, by the layer's number, which of its losses are its activity regularizer's."""
    regularized = [
        (number, layer, layer.activity_regularizer)
        for number, layer in enumerate(backend.flat_layers(model))
        if layer.activity_regularizer is not None
    ]
    positions: dict[int, list[int]] = {}
    try:
        for number, layer, own in regularized:
            layer.activity_regularizer = _Recorder(layer, own, positions.setdefault(number, []))
        yield positions
    finally:
        for _, layer, own in regularized:
            layer.activity_regularizer = own


class _Recorder:
    """An activity regularizer that notes which of the layer's losses comes next: its own."""

    def __init__(self, layer: Any, own: Any, positions: list[int]) -> None:
        self._layer, self._own, self._positions = layer, own, positions

    def __call__(self, output: Any) -> Any:
        self._positions.append(len(backend.own_losses(self._layer)))
        return self._own(output)


def _adds(layer: Any) -> bool:
    return layer.activity_regularizer is not None or bool(backend.own_losses(layer))


def _path(layer: Any) -> str:
    return layer.path or layer.name


def described(regularizer: Any) -> str:
    """A regularizer's name and configuration in a line; the name alone for a function."""
    name = getattr(regularizer, "__name__", type(regularizer).__name__)
    try:
        config = regularizer.get_config()
    except (AttributeError, NotImplementedError):
        return name
    return f"{name}({', '.join(f'{key}={_text(value)}' for key, value in config.items())})"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return described(value) if isinstance(value, keras.regularizers.Regularizer) else repr(value)
