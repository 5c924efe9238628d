"""PatchDropout: which tokens stay, how many, in what order, with what mask."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import PatchDropout

RNG = np.random.default_rng(23)


def positions(layer, batch, length):
    """The positions that a layer keeps of each sample, prefix included."""
    x = np.broadcast_to(np.arange(length, dtype="float32")[None, :, None], (batch, length, 1))
    return ops.convert_to_numpy(layer(x, training=True))[..., 0].astype(int)


@pytest.mark.parametrize("ordered", [True, False])
def test_all_subsets_are_equally_likely(ordered):
    found = positions(PatchDropout(0.6, ordered=ordered, seed=1), 20_000, 10)
    assert found.shape == (20_000, 4)
    kept = np.zeros((20_000, 10))
    np.put_along_axis(kept, found, 1, axis=1)
    assert np.all(kept.sum(1) == 4)  # no token twice
    # Each token stays with probability 0.4, a pair of them with 4 * 3 / (10 * 9); five standard errors.
    assert np.all(np.abs(kept.mean(0) - 0.4) <= 5 * np.sqrt(0.24 / 20_000))
    pairs = (kept.T @ kept / 20_000)[np.triu_indices(10, 1)]
    assert np.all(np.abs(pairs - 2 / 15) <= 5 * np.sqrt(2 / 15 * 13 / 15 / 20_000))


def test_tokens_stay_in_their_order_unless_told_otherwise():
    assert np.all(np.diff(positions(PatchDropout(0.5, seed=1), 500, 12)) > 0)
    first = positions(PatchDropout(0.5, ordered=False, seed=1), 12_000, 12)[:, 0]
    # In random order each of 12 tokens is first equally often; five standard errors.
    share = np.bincount(first, minlength=12) / 12_000
    assert np.all(np.abs(share - 1 / 12) <= 5 * np.sqrt(1 / 12 * 11 / 12 / 12_000))


@pytest.mark.parametrize(
    ("rate", "length", "kept"),
    [(0.5, 196, 98), (0.9, 196, 20), (0.9, 100, 10), (0.99, 10, 1), (0.5, 5, 3), (0.9, 45, 5), (0.0, 7, 7)],
)
def test_their_number_is_rounded(rate, length, kept):
    layer = PatchDropout(rate, num_prefix_tokens=2, seed=1)
    assert positions(layer, 2, length + 2).shape == (2, kept + 2)
    assert int(layer.kept(ops.convert_to_tensor(length))) == kept


@pytest.mark.parametrize("inner", [(3,), (2, 2), ()])
def test_tokens_indices_and_mask_go_together(inner):
    x = RNG.normal(size=(6, 11, *inner)).astype("float32")
    mask = RNG.random((6, 11)) < 0.5
    layer = PatchDropout(0.4, num_prefix_tokens=1, return_indices=True, seed=2)
    tokens, indices = layer(x, training=True, mask=ops.convert_to_tensor(mask))
    tokens, indices = np.array(tokens), np.array(indices)
    assert tokens.shape == (6, 7, *inner) and indices.shape == (6, 6) and indices.dtype == "int32"
    every = np.concatenate([np.zeros((6, 1), int), indices + 1], axis=1)
    rows = np.arange(6)[:, None]
    np.testing.assert_array_equal(tokens, x[rows, every])
    behind = keras.layers.Lambda(lambda v, mask=None: ops.cast(mask, "float32"))
    behind.supports_masking = True
    again, _ = PatchDropout(0.4, num_prefix_tokens=1, return_indices=True, seed=2)(
        x, training=True, mask=ops.convert_to_tensor(mask)
    )
    np.testing.assert_array_equal(np.array(behind(again)), mask[rows, every])


def test_outside_of_training_all_stay():
    x = RNG.normal(size=(3, 5, 2)).astype("float32")
    tokens, indices = PatchDropout(0.5, 1, return_indices=True)(x)
    np.testing.assert_array_equal(np.array(tokens), x)
    np.testing.assert_array_equal(np.array(indices), np.arange(4)[None].repeat(3, 0))


def test_whole_numbers_stay_whole():
    ids = np.arange(20, dtype="int32").reshape(2, 10)
    out = PatchDropout(0.5, seed=1)(ids, training=True)
    assert keras.backend.standardize_dtype(out.dtype) == "int32" and out.shape == (2, 5)


def test_a_transformer_learns_through_it_when_compiled():
    x = RNG.normal(size=(64, 9, 4)).astype("float32")
    y = x.mean((1, 2))[:, None]
    inputs = keras.Input((9, 4))
    tokens, indices = PatchDropout(0.25, return_indices=True, seed=1)(inputs)
    assert tokens.shape == (None, None, 4) and indices.dtype == "int32"
    tokens = keras.layers.MultiHeadAttention(2, 4)(tokens, tokens) + tokens
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(tokens)))
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=True)
    losses = model.fit(x, y, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.tensorflow
def test_a_length_that_is_unknown_when_traced():
    import tensorflow as tf

    layer = PatchDropout(0.5, 1, seed=1)
    traced = tf.function(lambda v: layer(v, training=True), input_signature=[tf.TensorSpec([None, None, 2])])
    for length, kept in [(9, 5), (4, 3), (2, 2)]:
        assert traced(np.ones((3, length, 2), "float32")).shape == (3, kept, 2)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PatchDropout(1.0), ValueError, "`rate` must be a number at least 0 and below 1"),
        (lambda: PatchDropout(keras.optimizers.schedules.CosineDecay(0.1, 5)), TypeError, "`rate` must be a number"),
        (lambda: PatchDropout(0.1, -1), ValueError, "Received: num_prefix_tokens=-1"),
        (lambda: PatchDropout(0.1, ordered=0), TypeError, "Received: ordered=0"),
        (lambda: PatchDropout(0.1, return_indices=None), TypeError, "Received: return_indices=None"),
        (lambda: PatchDropout(0.1, 3)(np.ones((2, 3, 4))), ValueError, "with tokens behind the prefix"),
        (lambda: PatchDropout(0.1)(np.ones(2)), ValueError, "with tokens behind the prefix"),
    ],
)
def test_bad_arguments_fail(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
