"""What a recipe changes in a built model: dropout, the start of kernels, penalties; and maps of its batches."""

import keras
import numpy as np
import pytest

from keras_trainkit import data
from keras_trainkit.initializers import ZerO
from keras_trainkit.recipes import Recipe, RecipeError, adjustments
from keras_trainkit.regularizers import GroupLasso

L = keras.layers


def net(**dense):
    inner = keras.Sequential([keras.Input((6,)), L.Dense(6, **dense, name="inside"), L.Dropout(0.4)], name="inner")
    layers = [inner, L.Dropout(0.0), L.BatchNormalization(), L.Dense(2, kernel_initializer="ones", name="own")]
    return keras.Sequential([keras.Input((6,)), *layers], name="net")


def rates(model):
    return [model.layers[0].layers[1].rate, model.layers[1].rate]


def test_dropout_is_that_of_all_layers_that_drop():
    model = net()
    adjustments.adjust(model, Recipe(dropout=0.2))
    assert rates(model) == [0.2, 0.0]
    x = keras.ops.ones((64, 6))
    dropped = model.layers[0].layers[1](x, training=True)
    assert set(np.round(np.unique(dropped), 3)) == {0.0, 1.25}
    with pytest.raises(RecipeError, match="`dropout` has no effect: the model 'dry'"):
        adjustments.adjust(keras.Sequential([keras.Input((2,)), L.Dense(1)], name="dry"), Recipe(dropout=0.2))


def test_kernels_begin_anew_where_the_model_left_the_default():
    model = net()
    adjustments.adjust(model, Recipe(initializer={"name": "variance_scaling", "scale": 100.0}))
    inside, own = model.layers[0].layers[0], model.layers[-1]
    assert np.std(inside.kernel) > 2 and np.all(np.asarray(own.kernel) == 1)
    assert inside.kernel_initializer.scale == 100.0  # a saved model says what it began with
    adjustments.adjust(net(), Recipe(initializer="he_normal"))
    with pytest.raises(RecipeError, match="leaves no kernel to Keras's default"):
        adjustments.adjust(net(kernel_initializer="zeros"), Recipe(initializer="he_normal"))


def test_two_kernels_of_one_shape_begin_differently():
    model = keras.Sequential([keras.Input((5,)), L.Dense(5), L.Dense(5)])
    adjustments.reinitialize(model, "orthogonal")
    first, second = (np.asarray(layer.kernel) for layer in model.layers)
    assert np.allclose(first @ first.T, np.eye(5), atol=1e-5)
    assert np.abs(first - second).max() > 0.1


def test_penalties_are_in_the_loss_of_training():
    model = net()
    before = len(model.losses)
    adjustments.adjust(model, Recipe(regularizer={"name": "l2", "l2": 0.5}))
    kernels = [model.layers[0].layers[0].kernel, model.layers[-1].kernel]
    assert before == 0
    expected = sum(0.5 * float(np.sum(np.asarray(kernel) ** 2)) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_one_of_its_own_stays():
    model = net(kernel_regularizer="l1")
    adjustments.adjust(model, Recipe(regularizer="grouplasso"))
    assert type(model.layers[0].layers[0].kernel_regularizer) is keras.regularizers.L1
    assert type(model.layers[-1].kernel.regularizer) is GroupLasso
    with pytest.raises(RecipeError, match="`regularizer` has no effect"):
        adjustments.regularize(model, "l2")


@pytest.mark.parametrize(
    ("key", "spec", "words"),
    [
        ("initializer", "he_norml", "no initializer is called 'he_norml'. Did you mean 'henormal'"),
        ("regularizer", "l3", "no regularizer is called 'l3'"),
        ("regularizer", {"name": "l2", "strength": 1}, "`regularizer`: .*strength"),
        ("initializer", {"name": "variance_scaling", "scale": -1.0}, "`initializer`: "),
    ],
)
def test_parts_that_are_not_there(key, spec, words):
    with pytest.raises(RecipeError, match=words):
        adjustments.part(key, spec)


def test_parts_of_the_kit_and_of_keras():
    assert type(adjustments.part("initializer", "ZerO")) is ZerO
    assert adjustments.part("regularizer", {"name": "group-lasso", "factor": 0.25}).factor == 0.25
    assert [adjustments.strength_argument(name) for name in ("l1", "grouplasso", "l1l2")] == ["l1", "factor", "l1"]


def test_maps_follow_the_recipe():
    recipe = Recipe(augmentation={"name": "mixup", "alpha": 0.4}, label_smoothing=0.1, seed=3)
    mix, smooth = adjustments.augmentations(recipe, 3, (8,))
    assert mix == data.MixUp(0.4, classes=3, seed=3) and smooth == data.LabelSmoothing(0.1, classes=3)
    assert adjustments.augmentations(Recipe(), 3, (8,)) == []
    assert adjustments.augmentations(Recipe(augmentation="mixup"), None, (8,))[0].classes is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"augmentation": "cutmix"}, r"`augmentation`: cutmix needs images. Received: examples of shape \(8,\)"),
        ({"augmentation": {"name": "mixup", "alpha": 0}}, "`augmentation`: `alpha` must be"),
        ({"label_smoothing": 0.1}, "`label_smoothing` is for classes"),
    ],
)
def test_maps_that_do_not_go(keys, words):
    with pytest.raises(RecipeError, match=words):
        adjustments.augmentations(Recipe(**keys), None, (8,))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dropout": 1.0}, "`dropout` must be a number at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "`label_smoothing` must be"),
        ({"augmentation": "mixip"}, "Did you mean 'mixup'"),
        ({"regularizer": {"l2": 1e-4}}, "`regularizer` as a mapping needs a `name`"),
        ({"initializer": 3}, "`initializer` must be a name or a mapping"),
    ],
)
def test_recipes_say_what_is_wrong_without_keras(keys, words):
    with pytest.raises(RecipeError, match=words):
        Recipe(**keys)


def test_none_is_none():
    recipe = Recipe(regularizer="none", augmentation="none", initializer=None)
    assert recipe == Recipe() and Recipe.from_dict(recipe.to_dict()) == recipe
