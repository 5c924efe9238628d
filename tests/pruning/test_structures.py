"""Masks against the slow twin, element for element."""

import keras
import numpy as np
import pruning_twin as twin
import pytest
from keras import ops

from keras_trainkit.pruning.geometry import geometry_of, select
from keras_trainkit.pruning.structures import Filters, NOfM, Unstructured, structure_from

RNG = np.random.default_rng(20)


def drawn(*shape):
    """Values with many equal magnitudes, exact zeros among them, and a mask that has lost some already."""
    values = (RNG.integers(-6, 7, shape) / 4).astype("float32")
    return values, RNG.random(shape) > 0.2


def dense(shape):
    return geometry_of(keras.layers.Dense(1), keras.Variable(np.zeros(shape, "float32"), name="kernel"))


def found(structure, values, old, share):
    geometries = [dense(v.shape) for v in values]
    counts = structure.counts([v.shape for v in values], geometries, share)
    masks = structure.masks(
        [ops.convert_to_tensor(v) for v in values], [ops.convert_to_tensor(m) for m in old], geometries,
        ops.convert_to_tensor(np.array(counts, "int32")),
    )  # fmt: skip
    return [ops.convert_to_numpy(mask) for mask in masks]


SHARES = [0.0, 0.1, 0.37, 0.5, 0.75, 0.99]


@pytest.mark.parametrize("share", SHARES)
def test_unstructured_by_layer(share):
    pairs = [drawn(12, 7), drawn(3, 3, 4, 5)]
    masks = found(Unstructured(), [v for v, _ in pairs], [m for _, m in pairs], share)
    for (values, old), mask in zip(pairs, masks, strict=True):
        np.testing.assert_array_equal(mask, twin.unstructured(values, old, share))
        assert (~mask).sum() == max(twin.count(share, values.size), (~old).sum())


@pytest.mark.parametrize("share", SHARES)
def test_unstructured_over_all_layers(share):
    pairs = [drawn(12, 7), drawn(3, 3, 4, 5)]
    values, old = [v for v, _ in pairs], [m for _, m in pairs]
    for mask, expected in zip(
        found(Unstructured(True), values, old, share), twin.everywhere(values, old, share), strict=True
    ):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.5])
@pytest.mark.parametrize(("shape", "axis"), [((8, 5), 0), ((3, 2, 8, 5), 2)])
def test_two_of_four(share, shape, axis):
    values, old = drawn(*shape)
    (mask,) = found(NOfM(2, 4), [values], [old], share)
    np.testing.assert_array_equal(mask, twin.n_of_m(values, old, share, 2, 4, axis))
    groups = np.moveaxis(mask, axis, -1).reshape(-1, 4)
    assert groups.sum(1).max() <= 4 - twin.count(share, 4)


def test_one_of_eight_in_stages_keeps_the_largest():
    values = np.arange(1, 17, dtype="float32").reshape(16, 1)
    mask = np.ones((16, 1), bool)
    for share in (0.3, 0.6, 0.875):
        (mask,) = found(NOfM(1, 8), [values], [mask], share)
    assert np.flatnonzero(mask).tolist() == [7, 15]


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("share", SHARES)
def test_filters(norm, share):
    pairs = [drawn(6, 9), drawn(3, 3, 2, 8)]
    masks = found(Filters(norm), [v for v, _ in pairs], [m for _, m in pairs], share)
    for (values, old), mask in zip(pairs, masks, strict=True):
        np.testing.assert_array_equal(mask, twin.filters(values, old, share, norm))
        assert mask.any()


def test_the_norm_decides_which_filter_goes():
    values = np.array([[3.0, 2.0], [0.0, 2.0]], "float32")  # l1: 3 and 4, l2: 3 and 2.8
    old = np.ones((2, 2), bool)
    assert found(Filters("l1"), [values], [old], 0.5)[0][0].tolist() == [False, True]
    assert found(Filters("l2"), [values], [old], 0.5)[0][0].tolist() == [True, False]


def test_half_precision_is_compared_in_float32():
    values = ops.convert_to_tensor(np.array([[1.0], [2.0], [0.5], [4.0]], "float32"))
    mask = Unstructured().masks(
        [ops.cast(values, "bfloat16")], [ops.ones((4, 1), "bool")], [dense((4, 1))], ops.convert_to_tensor([2])
    )[0]
    assert ops.convert_to_numpy(mask)[:, 0].tolist() == [False, True, False, True]


def variables_of(layer, *shape):
    layer(np.zeros(shape, "float32"))
    flat = [one for one in layer._flatten_layers() if one.trainable_variables]
    return flat[-1], layer.trainable_variables


@pytest.mark.parametrize(
    ("layer", "shape", "summed", "inner", "filters"),
    [
        (keras.layers.Dense(3), (1, 4), (0,), 0, True),
        (keras.layers.Conv2D(3, 2), (1, 5, 5, 4), (0, 1, 2), 2, True),
        (keras.layers.Conv1DTranspose(3, 2), (1, 5, 4), (0, 2), 2, True),
        (keras.layers.DepthwiseConv2D(2), (1, 5, 5, 4), (0, 1), None, False),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (1, 5, 4), (0,), 0, True),
        (keras.layers.EinsumDense("abcd,cde->abe", (None, 3)), (1, 5, 2, 4), (0, 1), 1, True),
        (keras.layers.EinsumDense("...x,xy->...y", 3), (1, 5, 4), (0,), 0, True),
        (keras.layers.SimpleRNN(3), (1, 5, 4), (0,), 0, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else None,
)
def test_axes_of_layers(layer, shape, summed, inner, filters):
    owner, variables = variables_of(layer, *shape)
    geometry = geometry_of(owner, variables[0])
    assert (geometry.summed, geometry.inner, geometry.filters) == (summed, inner, filters)


def model():
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            keras.layers.Embedding(9, 8, name="table"),
            keras.layers.Conv1D(8, 3, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.GRU(6, name="cells"),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.Dense(3, name="head"),
        ]
    )


def names(targets):
    return [target.path.split("/", 1)[1] for target in targets]


def test_by_default_kernels_but_the_last():
    kernels = ["first/kernel", "cells/gru_cell/kernel", "cells/gru_cell/recurrent_kernel", "hidden/kernel"]
    assert names(select(model(), None, Unstructured().refuses)) == kernels
    assert names(select(model(), None, NOfM(2, 4).refuses)) == kernels[:2]  # 8 inputs; 6 are no multiple
    assert names(select(model(), None, Filters().refuses)) == ["first/kernel", "hidden/kernel"]


def test_by_pattern_and_by_rule():
    chosen = select(model(), ["table", "head"], Unstructured().refuses)
    assert names(chosen) == ["table/embeddings", "head/kernel"]
    by_rule = select(model(), lambda layer, v: isinstance(layer, keras.layers.Dense), Unstructured().refuses)
    assert names(by_rule) == ["hidden/kernel", "head/kernel"]


def test_inner_layers_own_their_weights():
    inputs = keras.Input((4, 8))
    outputs = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    attention = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    targets = select(attention, None, NOfM(2, 4).refuses)
    assert [type(target.layer).__name__ for target in targets] == ["EinsumDense"] * 4


@pytest.mark.parametrize(
    ("layers", "structure", "words"),
    [
        (["no such"], Unstructured(), "takes no variable"),
        (["("], Unstructured(), "must be a regular expression"),
        (["hidden"], NOfM(2, 4), "no multiple of 4"),
        (["cells"], Filters(), "single output channels"),
        (["table"], NOfM(2, 4), "no single axis"),
        (lambda layer, v: False, Unstructured(), "leaves nothing to prune"),
    ],
)
def test_what_cannot_be_pruned_is_an_error(layers, structure, words):
    with pytest.raises(ValueError, match=words):
        select(model(), layers, structure.refuses)


def test_a_model_of_one_kernel_has_nothing_to_prune_by_default():
    with pytest.raises(ValueError, match="but for the last one"):
        select(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), None, Unstructured().refuses)


def test_names_of_structures():
    assert structure_from("2:4", "layer", "l2") == NOfM(2, 4)
    assert structure_from("unstructured", "global", "l2") == Unstructured(True)
    assert structure_from("filters", "layer", "l1") == Filters("l1")
    for bad in ("4:2", "2:2", "0:4", "rows", 3, None):
        with pytest.raises(ValueError, match="`structure` must be"):
            structure_from(bad, "layer", "l2")
    with pytest.raises(ValueError, match="`scope`"):
        structure_from("filters", "global", "l2")
