"""Blocks of parameters: how variables are cut, and that each block has one second moment."""

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers
from keras_trainkit.testing import reference
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper
from keras_trainkit.testing.reference import Twin
from keras_trainkit.transforms.blockwise import block_layout


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("dense/kernel", [4, 6], ([4, 6], "mb")),
        ("conv/kernel", [3, 3, 4, 6], ([3, 3, 4, 6], "mmmb")),
        ("dense/bias", [6], ([6], "m")),
        ("attention/query/bias", [2, 3], ([2, 3], "mm")),
        ("temperature", [], ([], "")),
        ("token_embedding/embeddings", [50, 4], ([50, 4], "bm")),
        ("attention/query/kernel", [4, 2, 3], ([4, 2, 3], "mbm")),
        ("attention/key/kernel", [4, 2, 3], ([4, 2, 3], "mbm")),
        ("attention/value/kernel", [4, 2, 3], ([4, 2, 3], "mbb")),
        ("attention/attention_output/kernel", [2, 3, 4], ([2, 3, 4], "mmb")),
        ("block/q_proj/kernel", [4, 6], ([4, 2, 3], "mbm")),
        ("block/monkey/kernel", [4, 6], ([4, 6], "mb")),
        ("head/kernel", [4, 6], ([4, 6], "bb")),
    ],
)
def test_variables_are_cut_as_the_paper_has_it(path, shape, expected):
    assert block_layout(path, shape, heads=2, blocks=[["^head/", "bb"]]) == expected


def test_without_heads_a_dense_query_is_cut_by_outputs():
    assert block_layout("query/kernel", [4, 6], None, []) == ([4, 6], "mb")


def test_rules_equal_the_twin_with_these_blocks():
    keras.config.set_floatx(WIDEST)
    rng = np.random.default_rng(0)
    initial = [rng.normal(size=shape) for shape in [(4, 3), (3,), (2, 3, 2, 4)]]
    gradients = [[rng.normal(size=p.shape) for p in initial] for _ in range(20)]
    optimizer = optimizers.AdamMini(0.03, blocks=[["p0", "bm"], ["p1", "b"], ["p2", "bmmb"]])
    ours = Stepper(optimizer, initial).run(gradients)
    twins = iter([reference.AdamMini(cut=[0]), reference.AdamMini(cut=[0]), reference.AdamMini(cut=[0, 3])])
    for mine, theirs in zip(ours, Twin(twins.__next__).run(initial, gradients, 0.03), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=EXACT, atol=EXACT)


def test_heads_of_a_dense_kernel_are_those_of_a_kernel_of_three_axes():
    rng = np.random.default_rng(1)
    kernel, gradients = rng.normal(size=(4, 6)), rng.normal(size=(15, 4, 6))
    flat = Stepper(optimizers.AdamMini(0.03, heads=2), [kernel], names=["query"])
    cut = Stepper(optimizers.AdamMini(0.03), [kernel.reshape(4, 2, 3)], names=["query"])
    ours, theirs = flat.run([[g] for g in gradients]), cut.run([[g.reshape(4, 2, 3)] for g in gradients])
    np.testing.assert_allclose(ours[0], theirs[0].reshape(4, 6), rtol=EXACT, atol=EXACT)


def test_state_of_a_transformer_is_little_more_than_four_bytes_per_parameter():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(60, 32)(inputs)
    x = keras.layers.MultiHeadAttention(4, 8)(x, x)
    x = keras.layers.Dense(64, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(60)(x))
    optimizer = optimizers.AdamMini(1e-3)
    optimizer.build(model.trainable_variables)
    slots = sum(int(np.prod(v.shape)) for v in optimizer.variables) - 2  # the counter and the rate
    blocks = 60 + (4 + 1) * 2 + (32 + 1) + (32 + 1) + (64 + 1) + (60 + 1)
    assert slots == model.count_params() + blocks
    assert 4 * slots / model.count_params() < 4.12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 4}, "`heads` must divide the outputs of `query`"),
        ({"blocks": [["query", "b"]]}, "`blocks` must match a variable"),
        ({"blocks": [["nothing", "bm"]]}, "`blocks` must match a variable"),
        ({"blocks": [["query", "io"]]}, "letters of b and m"),
        ({"blocks": [["(", "bm"]]}, "must hold regular expressions"),
        ({"blocks": ["query"]}, "pattern, letters"),
        ({"heads": 0}, "`heads` must be an integer at least 1"),
        ({"beta_1": 1.0}, "`beta_1` must be a number"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizers.AdamMini(1e-3, **arguments).build([keras.Variable(np.ones((4, 6)), name="query")])
