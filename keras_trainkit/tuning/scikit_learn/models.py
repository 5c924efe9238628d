"""The models of estimators: made by a function, compiled with flat parameters, kept as bytes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit import optimizers
from keras_trainkit.core import backend
from keras_trainkit.tuning.scikit_learn.parameters import META, wants_meta
from keras_trainkit.tuning.scikit_learn.targets import Meta, Target

_LOCK = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy, Keras and TensorFlow follow from `seed` inside, and go on as before after it.

    The generators are the process's: threads wait for each other.
    """
    with _LOCK:
        before = random.getstate(), np.random.get_state(), backend.operation_seeds()
        had_generator = backend.global_seeds() is not None
        generator = backend.global_seeds(make=True)
        held = np.array(keras.ops.convert_to_numpy(generator.state))
        try:
            random.seed(seed)
            np.random.seed(seed)
            if backend.ON_TENSORFLOW:
                import tensorflow as tf

                tf.random.set_seed(seed)
            generator.state.assign(np.array([seed, 0], keras.backend.standardize_dtype(generator.state.dtype)))
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            backend.set_operation_seeds(before[2])
            if had_generator:
                generator.state.assign(held)
            else:
                backend.forget_global_seeds()


def make(model: Any, arguments: dict[str, Any], meta: Meta, example: np.ndarray) -> keras.Model:
    """The model that the function returns, or a copy of the given one; its weights are there.

    Args:
        model: a function, or a model.
        arguments: for the function.
        meta: for the function, if it has an argument of this name.
        example: a batch, shape `(1, ...)`; a model that does not know its input's shape learns it from there.

    Raises:
        TypeError: if there is no function and no model, or if the function returns something else.
    """
    if isinstance(model, keras.Model):
        made = copy.deepcopy(model)
    elif callable(model):
        made = model(**arguments, **({META: meta} if wants_meta(model) else {}))
    else:
        raise TypeError(f"`model` must be a function that returns a Keras model, or a model. Received: model={model!r}")
    if not isinstance(made, keras.Model):
        raise TypeError(f"`model` must return a Keras model. Received: {made!r} from {model!r}")
    if not made.built:
        made(example, training=False)
    return made


def output_units(model: keras.Model, target: Target, example: np.ndarray) -> list[int]:
    """The number of units of each output.

    Raises:
        ValueError: if outputs or units are not what the targets need.
    """
    shapes = [tuple(output.shape) for output in _outputs(model, example)]
    kind, _, _ = target.meta
    if len(shapes) != len(target.heads) or any(len(shape) != 2 for shape in shapes):
        wanted = f"a list of {len(target.heads)} outputs" if target.several else "one output"
        raise ValueError(
            f"`model` must have {wanted} of shape (batch, units) for targets of type {kind!r}. Received: {shapes}"
        )
    for number, (shape, head) in enumerate(zip(shapes, target.heads, strict=True)):
        if shape[1] not in head.units():
            of = f"Output {number} of `model`" if target.several else "The last layer of `model`"
            wanted = " or ".join(map(str, dict.fromkeys(head.units())))
            raise ValueError(
                f"{of} must have {wanted} units for targets of type {kind!r}; a function learns it from `meta.units`. "
                f"Received: {shape[1]} units"
            )
    return [shape[1] for shape in shapes]


def _outputs(model: keras.Model, example: np.ndarray) -> list[Any]:
    known = getattr(model, "outputs", None)  # of a functional model
    outputs = known if known is not None else model(example, training=False)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def compile_model(
    model: keras.Model,
    target: Target,
    units: list[int],
    optimizer: tuple[Any, dict[str, Any]],
    loss: tuple[Any, dict[str, Any]],
    metrics: Any,
) -> list[Any]:
    """Compiles the model with what the user gave; what a compiled model has, stays where nothing else is given.

    Args:
        model: built.
        target: decides on the loss where none is given.
        units: of each output.
        optimizer: name, configuration, class or instance, None for the model's own or Adam; and arguments for it.
        loss: likewise.
        metrics: as for `compile`.

    Returns:
        The loss of each output.
    """
    losses = [loss[0]] * len(units) if not isinstance(loss[0], (list, tuple)) else list(loss[0])
    if len(losses) != len(units):
        raise ValueError(f"`loss` must be one for each of the {len(units)} outputs. Received: loss={loss[0]!r}")
    if model.compiled and loss[0] is None and not loss[1] and metrics is None:
        if optimizer[0] is not None or optimizer[1]:
            _replace_optimizer(model, *optimizer)
        own = model.loss
        return list(own) if isinstance(own, (list, tuple)) else [own] * len(units)
    made = [
        make_loss(given, loss[1], head.default_loss(count, linear))
        for given, head, count, linear in zip(losses, target.heads, units, linear_outputs(model), strict=True)
    ]
    if optimizer[0] is None and model.compiled:
        optimizer = model.optimizer, optimizer[1]
    model.compile(
        optimizer=make_optimizer(*optimizer),
        loss=made if target.several else made[0],
        metrics=fresh(metrics),
    )
    return made


def make_optimizer(identifier: Any, arguments: dict[str, Any]) -> keras.optimizers.Optimizer:
    """A new optimizer, never the given one.

    Args:
        identifier: a name of the kit or of Keras, a configuration, a class or function that makes one, or an optimizer,
            whose settings are taken; None is Adam.
        arguments: override its settings.
    """
    if identifier is None:
        identifier = "adam"
    if isinstance(identifier, str):
        if identifier.lower() in optimizers.list():
            return optimizers.get(identifier, **arguments)
        return type(keras.optimizers.get(identifier))(**arguments)
    if isinstance(identifier, dict) and "class_name" not in identifier:
        return optimizers.get(identifier | arguments)
    if isinstance(identifier, dict):
        identifier = optimizers.get(identifier)
    if isinstance(identifier, keras.optimizers.Optimizer):
        known = identifier.get_config()
        if unknown := set(arguments) - set(known):
            raise TypeError(
                f"{type(identifier).__name__} has no argument {sorted(unknown)[0]!r}. It has {sorted(known)}"
            )
        return type(identifier).from_config(known | arguments)
    if callable(identifier):
        return identifier(**arguments)
    raise TypeError(f"`optimizer` must be a name, a class or an optimizer. Received: optimizer={identifier!r}")


def make_loss(identifier: Any, arguments: dict[str, Any], default: Any) -> Any:
    """A loss from a name, class, instance or function, with the arguments given; the default for None."""
    if identifier is None:
        return type(default).from_config(default.get_config() | arguments)
    if isinstance(identifier, (str, keras.losses.Loss)) and not arguments:
        return identifier
    if isinstance(identifier, str):
        classes = {_plain(name): kind for name, kind in vars(keras.losses).items() if inspect.isclass(kind)}
        if _plain(identifier) not in classes:
            raise ValueError(
                f"`loss` must name a class of keras.losses to take arguments. Received: loss={identifier!r}"
            )
        return classes[_plain(identifier)](**arguments)
    if inspect.isclass(identifier):
        return identifier(**arguments)
    if arguments:
        raise TypeError(
            "`loss` must be a name or a class where arguments for it are given, because not all losses of Keras know "
            f"their own. Received: loss={identifier!r} and {arguments}"
        )
    return identifier


def fresh(parts: Any) -> Any:
    """Metrics or callbacks as new objects: names and functions as they are, of instances a copy, of classes one."""
    if isinstance(parts, (list, tuple)):
        return [fresh(part) for part in parts]
    if isinstance(parts, dict):
        return {key: fresh(part) for key, part in parts.items()}
    if isinstance(parts, keras.metrics.Metric):
        return type(parts).from_config(parts.get_config())
    if inspect.isclass(parts):
        return parts()
    return copy.deepcopy(parts) if isinstance(parts, keras.callbacks.Callback) else parts


def linear_outputs(model: keras.Model) -> list[bool]:
    """For each output whether its layer is linear, so that it gives logits; False where nobody can tell."""
    names = getattr(model, "output_names", None)
    layers = [model.get_layer(name) for name in names] if names else model.layers[-1:]
    found = [getattr(layer, "activation", None) is keras.activations.linear for layer in layers]
    return found or [False]


def _replace_optimizer(model: keras.Model, identifier: Any, arguments: dict[str, Any]) -> None:
    own = model.optimizer
    wrapped = getattr(own, "inner_optimizer", None)
    made = make_optimizer((own if wrapped is None else wrapped) if identifier is None else identifier, arguments)
    if wrapped is not None and not hasattr(made, "inner_optimizer"):
        made = type(own).from_config(own.get_config() | {"inner_optimizer": keras.saving.serialize_keras_object(made)})
    config = model.get_compile_config()
    config["optimizer"] = keras.saving.serialize_keras_object(made)
    with keras.saving.custom_object_scope(custom_objects(model)):
        model.compile_from_config(config)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


# ---------------------------------------------------------------------------------------------------------------- bytes


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model as bytes: architecture, weights, states of random layers, and the optimizer with its state.

    Attributes:
        content: a `.keras` file.
        random_states: of the layers that draw random numbers, which Keras does not save.
        custom_objects: classes and functions of the model that are neither Keras's nor registered, by name.
    """

    content: bytes
    random_states: list[np.ndarray]
    custom_objects: dict[str, Any]

    @classmethod
    def of(cls, model: keras.Model) -> Frozen:
        """The model as it is now."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            keras.saving.save_model(model, path)
            states = [np.array(keras.ops.convert_to_numpy(state)) for state in _random_states(model)]
            return cls(path.read_bytes(), states, custom_objects(model))

    def thaw(self) -> keras.Model:
        """A model that goes on where the other was."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            path.write_bytes(self.content)
            # Whoever unpickles trusts the file; it holds code anyway.
            model = keras.saving.load_model(path, custom_objects=self.custom_objects, safe_mode=False)
        for state, value in zip(_random_states(model), self.random_states, strict=True):
            state.assign(value)
        return model


def custom_objects(model: keras.Model) -> dict[str, Any]:
    """Classes and functions of a model that Keras would not find by itself, by the names that it looks for."""
    parts: list[Any] = [type(layer) for layer in backend.flat_layers(model)]
    parts += [getattr(layer, "activation", None) for layer in backend.flat_layers(model)]
    if model.compiled:
        parts += [type(model.optimizer), *map(_class_or_function, keras.tree.flatten(model.loss))]
        parts += [type(metric) for metric in model.metrics]
    found = {}
    for part in parts:
        name = getattr(part, "__name__", None)
        if name and part.__module__.partition(".")[0] != "keras":
            registered = keras.saving.get_registered_name(part)
            if keras.saving.get_registered_object(registered) is None:
                found[registered] = part
    return found


def _random_states(model: keras.Model) -> list[Any]:
    others = {id(variable) for variable in [*model.weights, *model.metrics_variables]}
    return [variable for variable in model.variables if id(variable) not in others]


def _class_or_function(part: Any) -> Any:
    return part if hasattr(part, "__name__") else type(part)
