"""ScaleByVariable: factors find their variables by path, or by order where paths are others."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, transforms

FACTORS = [["first/kernel", [2, 3], 0.5], ["first/bias", [3], 2.0], ["second/kernel", [3, 3], 0.0]]


def layer(name, inputs, bias):
    made = keras.layers.Dense(3, use_bias=bias, name=name, kernel_initializer="zeros")
    made.build((None, inputs))
    return made.trainable_variables


def variables(first="first", second="second"):
    return [*layer(first, 2, True), *layer(second, 3, False)]


def moves(chosen, factors):
    optimizer = optimizers.SGD(1.0, after=[transforms.ScaleByVariable(factors)])
    optimizer.build(chosen)
    optimizer.apply([-ops.ones(v.shape) for v in chosen])
    return [float(np.asarray(ops.convert_to_numpy(v)).reshape(-1)[0]) for v in chosen]


def test_by_path_whatever_the_order_and_for_some_of_them():
    assert moves(variables(), FACTORS) == [0.5, 2.0, 0.0]
    assert moves(variables()[::-1], FACTORS) == [0.0, 2.0, 0.5]
    assert moves(variables()[1:2], FACTORS) == [2.0]


def test_by_order_where_paths_are_others():
    assert moves(variables("dense_7", "dense_8"), FACTORS) == [0.5, 2.0, 0.0]
    # One known path does not help if another is not: the numbers of Keras's names have moved on.
    assert moves(variables("zeroth", "first"), FACTORS) == [0.5, 2.0, 0.0]


def test_many_variables_need_few_patterns():
    chosen = variables()
    fitted = transforms.ScaleByVariable([[p, s, 0.5] for p, s, _ in FACTORS]).fitted(chosen)
    assert len(fitted.rules) == 1 and fitted.matched(chosen)[2][2] == 0.5


def test_it_survives_json_and_shows_itself():
    link = transforms.ScaleByVariable(FACTORS)
    text = json.dumps(keras.saving.serialize_keras_object(link))
    assert keras.saving.deserialize_keras_object(json.loads(text)) == link
    assert link.report(variables()).splitlines()[1].split() == ["first/kernel", "0.5"]


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ([], "at least one row"),
        ([["a", [1]]], "rows of \\[path, shape, factor\\]"),
        ([["a", 1, 1.0]], "rows of \\[path, shape, factor\\]"),
        ([["a", [1], -1.0]], "`factors` must be a number at least 0"),
        ([["a", [1], 1.0], ["a", [1], 2.0]], "must not differ for variables of one path"),
    ],
)
def test_bad_factors(factors, words):
    with pytest.raises(ValueError, match=words):
        transforms.ScaleByVariable(factors)


def test_variables_of_another_model_are_refused():
    with pytest.raises(ValueError, match="must hold all variables of the model. Not found: `other/kernel` \\[4, 3\\]"):
        moves(layer("other", 4, False), FACTORS)
