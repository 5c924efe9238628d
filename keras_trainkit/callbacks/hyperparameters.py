"""Schedules for hyperparameters other than the learning rate."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.resolve_spans import resolved_for
from keras_trainkit.core import backend, checks
from keras_trainkit.layers.drawing import Dropping
from keras_trainkit.schedules import Constant
from keras_trainkit.training import train_functions

_SPATIAL = (keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D)
_WITH_RATE = (keras.layers.Dropout, *_SPATIAL, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
_OF_LAYERS = ("dropout", "noise", "regularization")
_SATURATION = -1.6732632423543772 * 1.0507009873554805  # of SELU: where AlphaDropout puts what it drops


@keras.saving.register_keras_serializable("keras_trainkit")
class HyperparameterSchedule(keras.callbacks.Callback):
    """Has hyperparameters follow schedules: momentum, weight decay, any beta, dropout rates, regularization.

    Each value is computed inside the compiled step from the number of updates done, as the learning rate is. So nothing
    is traced anew from step to step, replicas agree, `steps_per_execution` does not blur it, and a resumed run has the
    values of the uninterrupted one. Lengths such as "0.9run" are resolved when `fit` starts. Any schedule will do, the
    kit's, Keras's or your own; a number stays what it is.

    - Arguments of an optimizer of the kit, by name (`momentum`, `beta_1`, `beta_2`, `weight_decay`, `epsilon`, ...).
      Momentum must have been above 0 when the optimizer was made. Debiasing goes by the value of the step at hand, as
      in torch, though the average was made with others.
    - `dropout`: the rate of Keras's `Dropout`, `SpatialDropout`, `AlphaDropout` and `GaussianDropout` layers, from 0 to
      below 1, of all or by name; by name also that of the kit's layers that drop (`StochasticDepth`, `DropBlock2D`,
      `DropConnect` and others), whose rates often differ from layer to layer.
    - `noise`: the `stddev` of Keras's `GaussianNoise` layers, of all or by name.
    - `regularization`: a factor for what the regularizers of the model's weights and of its layers' activities add to
      the loss, whatever they are. For an l2 of 1e-4 that is to rise from 0, give a schedule that rises to 1.

    When `fit` starts and ends the step is traced once; then the model is as before, with its own constants, and so it
    is saved at any time. If `fit` ends in an error they go on following their schedules until another `fit` with this
    callback ends.

    On JAX the optimizer's arguments can follow schedules; layers cannot, because there the forward pass does not see
    how many updates were done. The kit's layers take schedules themselves: see `layers.ScheduledDropout`.

    Args:
        dropout: a schedule for all dropout layers, or a dictionary from regular expressions, looked for in the layers'
            names, to schedules; the first that is found counts.
        regularization: a schedule of factors.
        noise: a schedule for all layers of noise, or a dictionary as for `dropout`.
        **arguments: schedules by the names of the optimizer's arguments.

    Raises:
        TypeError: at construction, for what is no schedule and no number; when training begins, for an argument of an
            optimizer that is none of the kit's.
        ValueError: when training begins, for an argument that cannot follow a schedule, or a model without such layers
            or regularizers; on JAX for `dropout`, `noise` and `regularization`.

    >>> from keras_trainkit import schedules
    >>> cycle = schedules.OneCycle(0.1, total_steps="1run")
    >>> callback = HyperparameterSchedule(momentum=cycle.momentum(), dropout=schedules.Linear(0.5, "1run", 0.1))
    >>> sorted(callback.schedules)
    ['dropout', 'momentum']
    """

    def __init__(self, dropout: Any = None, regularization: Any = None, noise: Any = None, **arguments: Any) -> None:
        super().__init__()
        given = {**arguments, "dropout": dropout, "regularization": regularization, "noise": noise}
        self.schedules: dict[str, Any] = {
            name: _checked(name, value) for name, value in given.items() if value is not None
        }
        self._following: dict[str, Any] = {}
        self._undo: list[Callable[[], None]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self._end()
        following = {name: self._resolved(value) for name, value in self.schedules.items()}
        of_layers = {name: following[name] for name in _OF_LAYERS if name in following}
        if of_layers and keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"`{next(iter(of_layers))}` can follow a schedule with Keras on TensorFlow alone: elsewhere the "
                f"forward pass does not see how many updates were done. Keras runs on {keras.backend.backend()}"
            )
        for name, schedule in of_layers.items():
            regularizes = name == "regularization"
            self._undo += _regularize_by(self.model, schedule) if regularizes else _draw_by(self.model, name, schedule)
        arguments = {name: schedule for name, schedule in following.items() if name not in of_layers}
        if arguments:
            optimizer = optimizers.of_the_kit(self)
            if self.model.built and not optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            optimizer.follow_schedules(arguments)
            self._undo.append(lambda: optimizer.follow_schedules({}))
        self._following = following
        self._undo.append(backend.when_fit_fails(self._end))
        train_functions.trace_anew(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        self._end()

    def values(self) -> dict[str, float]:
        """The value of each hyperparameter for the next update, while `fit` runs; several dropout rates by pattern."""
        updates = optimizers.innermost(self.model.optimizer).iterations
        found: dict[str, float] = {}
        for name, schedule in self._following.items():
            of_name = {f"{name}/{key}": one for key, one in schedule.items()} if isinstance(schedule, dict) else {}
            found |= {
                key: float(ops.convert_to_numpy(one(updates))) for key, one in (of_name or {name: schedule}).items()
            }
        return found

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs.update(self.values())

    def get_config(self) -> dict[str, Any]:
        """The schedules by name, serialized."""
        return {
            name: {key: keras.optimizers.schedules.serialize(one) for key, one in schedule.items()}
            if isinstance(schedule, dict)
            else keras.optimizers.schedules.serialize(schedule)
            for name, schedule in self.schedules.items()
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HyperparameterSchedule:
        """The callback from what `get_config` gave."""
        read = keras.optimizers.schedules.deserialize
        return cls(
            **{
                name: read(value) if "class_name" in value else {key: read(one) for key, one in value.items()}
                for name, value in config.items()
            }
        )

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved_for(self, one) for key, one in value.items()}
        return resolved_for(self, value)

    def _end(self) -> None:
        undos, self._undo, self._following = self._undo, [], {}
        for undo in undos:
            undo()
        if undos:
            train_functions.trace_anew(self.model)


def _checked(name: str, value: Any) -> Any:
    if name in ("dropout", "noise") and isinstance(value, Mapping):
        return {str(pattern): _checked(f"{name}[{pattern!r}]", one) for pattern, one in value.items()}
    if isinstance(value, LearningRateSchedule):
        return value
    if isinstance(value, (str, Mapping, type)) or callable(value):
        raise TypeError(f"`{name}` must be a schedule or a number. Received: {name}={value!r}")
    return Constant(checks.number(name, value, at_least=0))


def _now(model: Any, schedule: Any, dtype: Any) -> Any:
    """What the schedule says now, inside a step."""
    updates = optimizers.innermost(model.optimizer).iterations
    return ops.cast(schedule(backend.read(updates)), dtype)


def _draw_by(model: Any, name: str, schedule: Any) -> list[Callable[[], None]]:
    """Has layers of dropout or noise follow schedules; returns what ends it."""
    patterns = schedule if isinstance(schedule, dict) else {"": schedule}
    of_keras, own = ((keras.layers.GaussianNoise,), "stddev") if name == "noise" else (_WITH_RATE, "rate")
    kinds = (*of_keras, Dropping) if name == "dropout" and isinstance(schedule, dict) else of_keras
    layers = [layer for layer in backend.flat_layers(model) if isinstance(layer, kinds)]
    undo: list[Callable[[], None]] = []
    unused = set(patterns)
    for layer in layers:
        pattern = next((one for one in patterns if re.search(one, layer.name)), None)
        if pattern is not None:
            unused.discard(pattern)
            if isinstance(layer, Dropping):
                layer.follow_rate(functools.partial(_now, model, patterns[pattern], "float32"))
                undo.append(functools.partial(layer.follow_rate, None))
                continue
            if not getattr(layer, own):
                for end in undo:
                    end()
                raise ValueError(
                    f"`{name}` can follow a schedule only in layers made with a {own} above 0: the layer "
                    f"{layer.name!r} has no random numbers. Received: {own}=0"
                )
            # On this one object, not on Keras's class; its `rate`, which is saved, stays.
            layer.call = _scheduled_call(model, layer, patterns[pattern])
            undo.append(functools.partial(delattr, layer, "call"))
    if unused:
        for end in undo:
            end()
        names = ", ".join(layer.name for layer in layers) or "none"
        raise ValueError(f"`{name}` finds no layer for {sorted(unused)}. The model's {name} layers: {names}")
    return undo


def _scheduled_call(model: Any, layer: Any, schedule: Any) -> Callable[..., Any]:
    def call(inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        # Keras's own functions take rates that Python knows.
        rate = _now(model, schedule, "float32")
        if isinstance(layer, (keras.layers.GaussianDropout, keras.layers.GaussianNoise)):
            return _with_normal_noise(layer, inputs, rate)
        drawn = keras.random.uniform(_noise_shape(layer, inputs), seed=layer.seed_generator)
        if isinstance(layer, keras.layers.AlphaDropout):
            return _kept_or_saturated(inputs, drawn >= rate, rate)
        scaled = inputs / ops.cast(ops.maximum(1 - rate, keras.config.epsilon()), inputs.dtype)
        return ops.where(drawn >= rate, scaled, ops.zeros_like(inputs))

    return call


def _with_normal_noise(layer: Any, inputs: Any, rate: Any) -> Any:
    drawn = keras.random.normal(ops.shape(inputs), dtype="float32", seed=layer.seed_generator)
    if isinstance(layer, keras.layers.GaussianNoise):
        return inputs + ops.cast(drawn * rate, inputs.dtype)
    return inputs * ops.cast(1 + drawn * ops.sqrt(rate / ops.maximum(1 - rate, keras.config.epsilon())), inputs.dtype)


def _kept_or_saturated(inputs: Any, kept: Any, rate: Any) -> Any:
    """Klambauer et al. 2017, arXiv 1706.02515: mean 0 and variance 1 stay what they are."""
    scale = 1 / ops.sqrt(ops.maximum((1 - rate) * (1 + rate * _SATURATION**2), keras.config.epsilon()))
    moved = ops.where(kept, inputs, ops.full_like(inputs, _SATURATION))
    return ops.cast(scale, inputs.dtype) * moved - ops.cast(scale * _SATURATION * rate, inputs.dtype)


def _noise_shape(layer: Any, inputs: Any) -> Any:
    """Where Keras's dropout layers draw one number for several elements: over the positions of a channel."""
    shape = ops.shape(inputs)
    if not isinstance(layer, _SPATIAL):
        given = layer.noise_shape or [None] * len(shape)
        return tuple(size if own is None else own for own, size in zip(given, shape, strict=True))
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    channels = 1 if first else len(shape) - 1
    return tuple(size if axis in (0, channels) else 1 for axis, size in enumerate(shape))


def _regularize_by(model: Any, schedule: Any) -> list[Callable[[], None]]:
    """Multiplies what weights' regularizers say by a schedule; returns what ends it."""
    undo: list[Callable[[], None]] = []
    for variable in model.trainable_weights:
        regularizer = variable.regularizer
        if regularizer is not None:
            variable.regularizer = Scheduled(model, regularizer, schedule)
            undo.append(functools.partial(setattr, variable, "regularizer", regularizer))
    for layer in backend.flat_layers(model):
        regularizer = layer.activity_regularizer
        if regularizer is not None:
            layer.activity_regularizer = Scheduled(model, regularizer, schedule)
            layer.get_config = _config_with(layer, regularizer)
            undo.append(functools.partial(setattr, layer, "activity_regularizer", regularizer))
            undo.append(functools.partial(delattr, layer, "get_config"))
    if not undo:
        raise ValueError(
            "`regularization` finds no weight with a regularizer in the model, and no layer with one for its activity"
        )
    return undo


def _config_with(layer: Any, regularizer: Any) -> Callable[[], dict[str, Any]]:
    """The layer's `get_config`, as it is with this activity regularizer: it is the layer's attribute that is saved."""

    def get_config() -> dict[str, Any]:
        following, layer.activity_regularizer = layer.activity_regularizer, regularizer
        try:
            return type(layer).get_config(layer)
        finally:
            layer.activity_regularizer = following

    return get_config


class Scheduled(keras.regularizers.Regularizer):
    """A regularizer times what a schedule says. It is never saved: layers keep their own."""

    def __init__(self, model: Any, own: Callable[[Any], Any], schedule: Any) -> None:
        self._model, self._own, self._schedule = model, own, schedule

    def __call__(self, x: Any) -> Any:
        penalty = self._own(x)
        return penalty * _now(self._model, self._schedule, penalty.dtype)

    def get_config(self) -> dict[str, Any]:
        """What it multiplies, for who asks what it is."""
        return {"regularizer": self._own}
