"""Labels to numbers, outputs to probabilities and labels."""

import keras
import numpy as np
import pytest

from keras_trainkit.tuning import Meta
from keras_trainkit.tuning.scikit_learn.targets import (
    Numbers,
    Target,
    classification_target,
    gives_logits,
    wants_one_hot,
)

SPARSE = keras.losses.SparseCategoricalCrossentropy()


def own_loss(y_true, y_pred):
    return keras.ops.mean(y_pred)


@pytest.mark.parametrize(
    ("loss", "one_hot"),
    [
        ("sparse_categorical_crossentropy", False),
        (SPARSE, False),
        (keras.losses.sparse_categorical_crossentropy, False),
        (own_loss, False),
        ("categorical_crossentropy", True),
        (keras.losses.CategoricalFocalCrossentropy(), True),
        (keras.losses.kl_divergence, True),
        ("mse", True),
    ],
)
def test_which_losses_want_rows(loss, one_hot):
    assert wants_one_hot(loss) is one_hot


def test_logits_are_what_the_loss_says():
    assert gives_logits(keras.losses.BinaryCrossentropy(from_logits=True))
    assert not any(map(gives_logits, [SPARSE, "binary_crossentropy", own_loss, keras.losses.Huber()]))


def test_labels_are_encoded_as_the_loss_wants_them():
    (labels,) = classification_target(np.array(["b", "a", "c", "a"])).heads
    y = np.array(["c", "a"])
    assert labels.encode(y, SPARSE, 3).tolist() == [2, 0]
    assert labels.encode(y, "categorical_crossentropy", 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    (two,) = classification_target(np.array([5, 7, 5])).heads
    assert two.encode(np.array([7, 5]), None, 1).tolist() == [[1], [0]]
    with pytest.raises(ValueError, match=r"classes of the first fit.*\['d'\]"):
        labels.encode(np.array(["a", "d"]), SPARSE, 3)


def test_all_classes_may_be_told_before_they_come():
    target = classification_target(np.array([1, 1]), classes=[3, 1, 2])
    assert target.classes.tolist() == [1, 2, 3] and target.meta == ("multiclass", 1, 3)


@pytest.mark.parametrize("logits", [False, True])
def test_outputs_of_one_unit(logits):
    (labels,) = classification_target(np.array(["no", "yes"])).heads
    outputs = np.array([[-2.0], [0.0], [1.0]]) if logits else np.array([[0.2], [0.5], [0.6]])
    found = labels.probabilities(outputs, logits)
    expected = 1 / (1 + np.exp(-outputs[:, 0])) if logits else outputs[:, 0]
    np.testing.assert_allclose(found, np.stack([1 - expected, expected], axis=1))
    assert labels.decide(outputs, logits).tolist() == ["no", "no", "yes"]


def test_outputs_of_several_units():
    (labels,) = classification_target(np.array([10, 20, 30])).heads
    outputs = np.array([[1.0, 800.0, 3.0], [2.0, 1.0, 0.0]])
    found = labels.probabilities(outputs, True)
    np.testing.assert_allclose(found[0], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(found[1], np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum())
    np.testing.assert_array_equal(labels.probabilities(found, False), found)
    assert labels.decide(outputs, True).tolist() == [20, 10]


def test_a_single_class_is_certain():
    (labels,) = classification_target(np.array([4, 4])).heads
    assert labels.units() == (1, 1) and labels.probabilities(np.array([[0.1]]), False).tolist() == [[1.0]]
    assert labels.decide(np.array([[0.1], [0.9]]), False).tolist() == [4, 4]


def test_matrices_of_labels_and_of_classes():
    indicator = classification_target(np.array([[0, 1], [1, 1]], "int8"))
    (head,) = indicator.heads
    assert indicator.meta == ("multilabel-indicator", 2, [2, 2])
    assert head.decide(np.array([[0.7, 0.5]]), False).dtype == "int8"
    assert head.decide(np.array([[0.7, -0.5]]), True).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="2 columns"):
        head.codes(np.array([[0, 1, 1], [1, 0, 0]]))
    several = classification_target(np.array([[0, 5], [1, 6], [2, 5]]))
    assert several.meta == ("multiclass-multioutput", 2, [3, 2])
    first, second = several.encode(np.array([[2, 6]]), [SPARSE, None], [3, 1])
    assert first.tolist() == [2] and second.tolist() == [[1]]
    with pytest.raises(ValueError, match="2 columns"):
        several.columns(np.zeros((3, 4)))


def test_numbers_keep_shape_and_type():
    y = np.zeros(4, "float32")
    assert Numbers(y).encode(y, None, 1).shape == (4, 1)
    assert Numbers(y).decide(np.zeros((4, 1), "float64")).dtype == "float32"
    assert Numbers(y).decide(np.zeros((4, 1))).shape == (4,)
    assert Numbers(np.zeros((4, 1), int)).decide(np.zeros((4, 1), "float32")).dtype == "float64"
    assert Target([Numbers(np.zeros((4, 2)))]).meta == ("continuous-multioutput", 2, None)
    with pytest.raises(ValueError, match="2 outputs"):
        Numbers(np.zeros((4, 2))).encode(y, None, 2)


@pytest.mark.parametrize(
    ("meta", "units", "activation"),
    [
        (Meta((3,), "binary", 1, 2), 1, "sigmoid"),
        (Meta((3,), "multiclass", 1, 5), 5, "softmax"),
        (Meta((3,), "multilabel-indicator", 4, [2] * 4), 4, "sigmoid"),
        (Meta((3,), "multiclass-multioutput", 2, [3, 2]), [3, 1], ["softmax", "sigmoid"]),
        (Meta((3,), "continuous-multioutput", 2, None), 2, None),
    ],
)
def test_what_a_function_is_told(meta, units, activation):
    assert (meta.units, meta.activation, meta.n_features) == (units, activation, 3)
    assert Meta((2, 4, 3), "continuous", 1, None).n_features == 24
