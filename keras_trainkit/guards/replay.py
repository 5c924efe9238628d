"""A step once more, layer by layer and without a trace in the model: what each layer gave, and got back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, slices
from keras_trainkit.core.compose import variable_path
from keras_trainkit.guards.figures import figures
from keras_trainkit.training.interception import intercepted


@dataclasses.dataclass
class Call:
    """One call of a layer."""

    layer: Any
    inputs: list[Any]
    outputs: list[Any]


def layer_calls(model: Any, calls: list[Call]) -> contextlib.ExitStack:
    """Notes each call of each layer in `calls`, inner layers before those around them, until it is closed."""
    stack = contextlib.ExitStack()
    for layer in {id(layer): layer for layer in backend.flat_layers(model) if layer is not model}.values():

        def call(original: Any, *arguments: Any, _layer: Any = layer, **keywords: Any) -> Any:
            outputs = original(*arguments, **keywords)
            calls.append(Call(_layer, _tensors([arguments, keywords]), _tensors(outputs)))
            return outputs

        stack.enter_context(intercepted(layer, "call", call))
    return stack


@contextlib.contextmanager
def substituted(pairs: list[tuple[Any, Any]]) -> Iterator[Any]:
    """Variables have other values inside, and what is written is forgotten."""
    with keras.StatelessScope(state_mapping=pairs) as scope:
        yield scope


def replay(model: Any, batch: Any, values: list[Any], scale: float = 1.0) -> dict[str, Any]:
    """Forward and backward pass of a training step, run op by op.

    Args:
        model: the compiled model.
        batch: what `train_step` was given, as arrays.
        values: one array for each of `model.variables`.
        scale: what the loss is multiplied with.

    Returns:
        A dictionary with `loss`, and `layers`: for each call in its order the layer's name and class, and figures of
        its outputs, its inputs, their gradients, and its own weights' gradients.
    """
    import tensorflow as tf

    x, y, weights = keras.utils.unpack_x_y_sample_weight(keras.tree.map_structure(_tensor, batch))
    given = [
        ops.convert_to_tensor(value, dtype=backend.dtype(v)) for v, value in zip(model.variables, values, strict=True)
    ]
    trained = {id(v) for v in model.trainable_variables}
    watched = [(v, tensor) for v, tensor in zip(model.variables, given, strict=True) if id(v) in trained]
    calls: list[Call] = []
    with tf.GradientTape(persistent=True) as tape:
        for _, tensor in watched:
            tape.watch(tensor)
        with substituted(list(zip(model.variables, given, strict=True))), layer_calls(model, calls):
            prediction = model(x, training=True) if backend.takes_training(model) else model(x)
            loss = model.compute_loss(x=x, y=y, y_pred=prediction, sample_weight=weights)
            loss = ops.cast(loss, "float32")
            scaled = loss * scale
    own = _gradients(tape, scaled, [tensor for _, tensor in watched])
    by_variable = {id(v): gradient for (v, _), gradient in zip(watched, own, strict=True)}
    layers = [_described(call, model.name, tape, scaled, by_variable) for call in calls]
    return {"loss": figures(loss), "layers": layers}


def variable_figures(model: Any, values: list[Any]) -> list[dict[str, Any]]:
    """Figures of all variables of a model, whose values are given, by path."""
    return [
        {"path": variable_path(v), "trainable": bool(v.trainable)} | figures(value)
        for v, value in zip(model.variables, values, strict=True)
    ]


def _described(call: Call, model_name: str, tape: Any, loss: Any, by_variable: dict[int, Any]) -> dict[str, Any]:
    gradients = {
        variable_path(v): figures(by_variable[id(v)])
        for v in backend.variables_of_its_own(call.layer)
        if by_variable.get(id(v)) is not None
    }
    return {
        "name": (getattr(call.layer, "path", None) or call.layer.name).removeprefix(f"{model_name}/"),
        "class": type(call.layer).__name__,
        "inputs": [figures(t) for t in call.inputs],
        "outputs": [figures(t) for t in call.outputs],
        "output_gradients": [figures(g) for g in _gradients(tape, loss, call.outputs) if g is not None],
        "input_gradients": [figures(g) for g in _gradients(tape, loss, call.inputs) if g is not None],
        "weight_gradients": gradients,
    }


def _gradients(tape: Any, target: Any, sources: list[Any]) -> list[Any]:
    found = [slices.values(g) if g is not None else None for g in tape.gradient(target, sources)] if sources else []
    return [None if g is None else ops.convert_to_numpy(g) for g in found]


def _tensors(structure: Any) -> list[Any]:
    import tensorflow as tf

    return [t for t in keras.tree.flatten(structure) if tf.is_tensor(t) and t.dtype.is_floating and backend.is_dense(t)]


def _tensor(value: Any) -> Any:
    import tensorflow as tf

    return None if value is None else tf.convert_to_tensor(value)
