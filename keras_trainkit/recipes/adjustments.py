"""What a recipe changes in a model that is built already: dropout, the start of its kernels, penalties on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_trainkit import data, initializers, regularizers
from keras_trainkit.core import backend, checks
from keras_trainkit.recipes.errors import RecipeError
from keras_trainkit.recipes.recipe import Recipe

# What a layer of Keras begins with unless it is told otherwise.
_DEFAULT = keras.initializers.GlorotUniform
_TAKES_NONE = object()
_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def adjust(model: keras.Model, recipe: Recipe) -> None:
    """Changes a built model in place, as the recipe's `dropout`, `initializer` and `regularizer` say.

    Raises:
        RecipeError: there is nothing in the model that a key could change, or no part of that name.
    """
    if recipe.dropout is not None:
        set_dropout(model, recipe.dropout)
    if recipe.initializer is not None:
        reinitialize(model, recipe.initializer)
    if recipe.regularizer is not None:
        regularize(model, recipe.regularizer)


def set_dropout(model: keras.Model, rate: float) -> None:
    """Gives every layer of dropout in the model this rate; those that the model switched off stay off."""
    found = [layer for layer in backend.flat_layers(model) if isinstance(layer, _DROPOUT) and layer.rate > 0]
    if not found:
        raise RecipeError(f"`dropout` has no effect: the model {model.name!r} has no layer of dropout")
    for layer in found:
        layer.rate = rate


def reinitialize(model: keras.Model, spec: str | Mapping[str, Any]) -> None:
    """Draws the kernels anew that the model left to Keras's default; what it asks for itself stays.

    Each kernel has an initializer of its own, because one of Keras gives equal numbers whenever it is called.
    """
    found = [
        layer for layer in backend.flat_layers(model) if type(getattr(layer, "kernel_initializer", None)) is _DEFAULT
    ]
    if not found:
        raise RecipeError(
            f"`initializer` has no effect: the model {model.name!r} leaves no kernel to Keras's default initializer"
        )
    for layer in found:
        initializer = part("initializer", spec)
        kernel = layer.kernel
        try:
            kernel.assign(initializer(kernel.shape, dtype=kernel.dtype))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"`initializer`: {layer.path}: {' '.join(str(error).split())}") from error
        layer.kernel_initializer = initializer


def regularize(model: keras.Model, spec: str | Mapping[str, Any]) -> None:
    """Adds a penalty on every kernel of the model that has none of its own."""
    found = [layer for layer in backend.flat_layers(model) if getattr(layer, "kernel_regularizer", _TAKES_NONE) is None]
    if not found:
        raise RecipeError(f"`regularizer` has no effect: every kernel of the model {model.name!r} has one, or none may")
    for layer in found:
        layer.kernel_regularizer = layer.kernel.regularizer = part("regularizer", spec)


def augmentations(recipe: Recipe, classes: int | None, input_shape: tuple[int, ...]) -> list[Callable[[int, Any], Any]]:
    """The maps that batches go through, for `data.Batches`; with one, targets of classes are rows of probabilities.

    Args:
        recipe: says which.
        classes: how many there are; None for numbers to predict.
        input_shape: of one example.

    Raises:
        RecipeError: an argument that the map does not take, or label smoothing without labels.
    """
    maps: list[Callable[[int, Any], Any]] = []
    try:
        if recipe.augmentation is not None:
            name, arguments = named(recipe.augmentation)
            kind = {"mixup": data.MixUp, "cutmix": data.CutMix}[name]
            if kind is data.CutMix and len(input_shape) != 3:
                raise ValueError(f"cutmix needs images. Received: examples of shape {input_shape}")
            maps.append(kind(classes=classes, seed=recipe.seed, **arguments))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`augmentation`: {' '.join(str(error).split())}") from error
    if recipe.label_smoothing:
        if classes is None:
            raise RecipeError(
                "`label_smoothing` is for classes, and this is a regression. "
                f"Received: label_smoothing={recipe.label_smoothing}"
            )
        maps.append(data.LabelSmoothing(recipe.label_smoothing, classes=classes))
    return maps


def part(key: str, spec: str | Mapping[str, Any]) -> Any:
    """An initializer or a regularizer of the kit or of Keras, by its name in any case and its arguments.

    >>> part("regularizer", {"name": "l2", "l2": 1e-4}).get_config()["l2"]
    0.0001
    >>> type(part("initializer", "zero")).__name__
    'ZerO'
    """
    name, arguments = named(spec)
    try:
        return _class_of(key, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`{key}`: {' '.join(str(error).split())}") from error


def strength_argument(regularizer: str) -> str:
    """The argument of a regularizer that says how strong it is.

    >>> strength_argument("l2")
    'l2'
    """
    return next(iter(inspect.signature(_class_of("regularizer", regularizer)).parameters))


def _class_of(key: str, name: str) -> type:
    own, keras_own, base = {
        "initializer": (initializers, keras.initializers, keras.initializers.Initializer),
        "regularizer": (regularizers, keras.regularizers, keras.regularizers.Regularizer),
    }[key]
    known = {
        plain(each): value
        for module in (keras_own, own)
        for each, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not each.startswith("_")
    }
    if plain(name) not in known:
        hint = checks.did_you_mean(plain(name), known) or f". There are {', '.join(sorted(known))}"
        raise RecipeError(f"no {key} is called {name!r}{hint}")
    return known[plain(name)]


def named(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the further arguments of a part, however it is given."""
    if isinstance(spec, str):
        return spec, {}
    return spec["name"], {key: value for key, value in spec.items() if key != "name"}


def plain(name: str) -> str:
    """A class's name as recipes may write it.

    >>> plain("HeNormal"), plain("he_normal")
    ('henormal', 'henormal')
    """
    return name.lower().replace("_", "").replace("-", "")
