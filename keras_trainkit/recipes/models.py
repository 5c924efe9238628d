"""The models that runs train: a small convolutional net, a multilayer perceptron, or the user's own function."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.initializers import ScaledResidual
from keras_trainkit.layers import StochasticDepth
from keras_trainkit.recipes.errors import RecipeError

# From this many pixels on a side, the first convolution may halve the image without losing what is drawn in it.
_LARGE_IMAGE = 20


def build(spec: str | None, input_shape: tuple[int, ...], outputs: int) -> tuple[keras.Model, keras.Model]:
    """The model of a recipe: that of `module:function`, or without one the default for data of this shape.

    Returns:
        The model to train, and its twin to measure and save: of the same weights, and the same outputs in inference.
    """
    if spec is not None:
        model = from_function(spec, input_shape, outputs)
        return model, twin(model, input_shape)
    default = convnet if len(input_shape) == 3 else perceptron
    return default(input_shape, outputs), default(input_shape, outputs, plain=True)


def convnet(input_shape: tuple[int, ...], outputs: int, filters: int = 32, plain: bool = False) -> keras.Model:
    """A small residual net for images (height, width, channels), with about 110,000 weights; gives logits.

    Two stages, of `filters` and twice as many, with one pre-activated residual block each (He et al. 2016, arXiv
    1603.05027). In training images are moved by up to a tenth of their size, and branches are dropped at random. Batch
    normalization counts per replica. With `plain` the model has the same weights, and layers of Keras alone: what only
    training needs is left out, so that a saved file loads without this package.

    >>> convnet((8, 8, 1), outputs=10).output_shape
    (None, 10)
    """
    image = layers.Input(input_shape)
    x = layers.RandomTranslation(0.1, 0.1, fill_mode="constant", name="move")(image)
    stride = 2 if min(input_shape[:2]) >= _LARGE_IMAGE else 1
    x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
    x = _residual(x, 0.05, plain)
    x = layers.Conv2D(2 * filters, 3, strides=2, padding="same", use_bias=False)(_activated(x))
    x = _activated(_residual(x, 0.1, plain))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(image, _head(x, outputs), name="convnet")


def perceptron(input_shape: tuple[int, ...], outputs: int, units: int = 128, plain: bool = False) -> keras.Model:
    """A residual multilayer perceptron for vectors (other shapes are flattened), gives logits or one value.

    With `plain` it has the same weights, and layers of Keras alone.

    >>> perceptron((13,), outputs=1).output_shape
    (None, 1)
    """
    vector = layers.Input(input_shape)
    x = layers.Flatten()(vector) if len(input_shape) > 1 else vector
    x = layers.Dense(units, activation="gelu")(x)
    for _ in range(2):
        branch = layers.LayerNormalization()(x)
        branch = layers.Dense(units, activation="gelu")(branch)
        branch = layers.Dropout(0.1)(branch)
        branch = layers.Dense(units, kernel_initializer=_last("glorot_uniform", plain))(branch)
        x = layers.Add()([x, branch])
    return keras.Model(vector, _head(layers.LayerNormalization()(x), outputs), name="perceptron")


def from_function(spec: str, input_shape: tuple[int, ...], outputs: int) -> keras.Model:
    """The model that the user's function builds, checked.

    Args:
        spec: `module:function`; the module is looked for in the working directory first. It is called as
            `function(input_shape, outputs)`, with the shape of one encoded example and the number of classes (1 for
            regression), and returns a `keras.Model` without compiling it.
        input_shape, outputs: what to call it with.

    The model takes `(batch, *input_shape)` and gives `(batch, outputs)`: logits (no softmax) or the standardized value.
    For a saved file that loads elsewhere, custom layers are registered, as Keras asks of them.

    Raises:
        RecipeError: no such module or function, an error inside it (with its place), or a model of another shape.
    """
    function = _load(spec)
    try:
        model = function(tuple(input_shape), outputs)
    except Exception as error:
        raise RecipeError(f"the model function {spec} failed: {_one_line(error)}") from error
    if not isinstance(model, keras.Model):
        raise RecipeError(f"the model function {spec} must return a keras.Model. Received: {type(model).__name__}")
    try:
        shape = tuple(model(np.zeros((2, *input_shape), "float32"), training=False).shape)
    except Exception as error:
        raise RecipeError(
            f"the model of {spec} does not take inputs of shape {('batch', *input_shape)}: {_one_line(error)}"
        ) from error
    if shape != (2, outputs):
        raise RecipeError(f"the model of {spec} must give ('batch', {outputs}). Received: {('batch', *shape[1:])}")
    return model


def twin(model: keras.Model, input_shape: tuple[int, ...]) -> keras.Model:
    """A second model of the same configuration and weights, made as loading a saved file makes it.

    Raises:
        RecipeError: the model could be trained, but not saved and loaded.
    """
    try:
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
        copy(np.zeros((2, *input_shape), "float32"), training=False)
        copy.set_weights(model.get_weights())
    except Exception as error:
        raise RecipeError(
            f"the model {model.name!r} could not be loaded again after saving; give its classes get_config() and "
            f"register them with keras.saving.register_keras_serializable(): {_one_line(error)}"
        ) from error
    return copy


def _load(spec: str) -> Callable[..., Any]:
    module_name, _, function_name = spec.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise RecipeError(
                f"the model {spec} names no module {error.name!r} (looked in the working directory, too)"
            ) from None
        raise RecipeError(f"the module {module_name} cannot be imported: {_one_line(error)}") from error
    except Exception as error:
        raise RecipeError(f"the module {module_name} cannot be imported: {_one_line(error)}") from error
    function = getattr(module, function_name, None)
    if function is None:
        hint = checks.did_you_mean(function_name, [name for name in vars(module) if not name.startswith("_")])
        raise RecipeError(f"the module {module_name} has no function {function_name!r}{hint}")
    if not callable(function):
        raise RecipeError(f"{spec} is not a function. Received: {type(function).__name__}")
    return function


def _one_line(error: Exception) -> str:
    """An error as one line with the place in which it arose, the last one outside of installed packages if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    place = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
    # Keras's messages go on with examples.
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder=' ...')}{place}"


def _activated(x: Any) -> Any:
    return layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))


def _residual(x: Any, drop: float, plain: bool) -> Any:
    filters = x.shape[-1]
    branch = layers.Conv2D(filters, 3, padding="same", use_bias=False)(_activated(x))
    last = layers.Conv2D(filters, 3, padding="same", kernel_initializer=_last("he_normal", plain))
    merge = layers.Add() if plain else StochasticDepth(drop)
    return merge([x, last(_activated(branch))])


def _last(initializer: str, plain: bool) -> Any:
    # Nothing normalizes a branch after its last layer, so the start of training depends on that layer's scale.
    return initializer if plain else ScaledResidual(depth=2, initializer=initializer, branches=1)


def _head(x: Any, outputs: int) -> Any:
    # Logits in half precision would cost the loss its digits.
    dtype = wide_dtype(keras.config.dtype_policy().compute_dtype)
    return layers.Dense(outputs, dtype=dtype, name="head")(x)
