"""DropBlock: how much is dropped, where, in blocks of what size, and what becomes of the rest."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import schedules
from keras_trainkit.layers import DropBlock1D, DropBlock2D, DropBlock3D, drop_block

RNG = np.random.default_rng(21)
OF_RANK = {1: DropBlock1D, 2: DropBlock2D, 3: DropBlock3D}
MAPS = [((20,), (3,)), ((9, 6), (3, 2)), ((14, 14), (7, 7)), ((3, 12), (5, 4)), ((5, 6, 4), (2, 3, 3))]


def run(layer, x, **kwargs):
    return ops.convert_to_numpy(ops.cast(layer(x, **kwargs), "float32"))


def cover(sizes, block):
    """How many places there are at which a block would reach each position, counted one by one."""
    block = [min(one, size) for one, size in zip(block, sizes, strict=True)]
    count = np.zeros(sizes, int)
    for start in itertools.product(*(range(size - one + 1) for size, one in zip(sizes, block, strict=True))):
        count[tuple(slice(first, first + one) for first, one in zip(start, block, strict=True))] += 1
    return count


# -- how much


@pytest.mark.parametrize(("sizes", "block"), MAPS)
@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.6, 0.99])
def test_the_expected_share_is_the_rate(sizes, block, rate):
    gamma = drop_block.block_probability(rate, sizes, block)
    assert np.mean(1 - (1 - gamma) ** cover(sizes, block)) == pytest.approx(rate, rel=1e-9)
    tensors = [ops.convert_to_tensor(size) for size in sizes]
    found = drop_block.block_probability(ops.convert_to_tensor(np.float32(rate)), tensors, block, ops)
    assert float(found) == pytest.approx(gamma, rel=1e-5)


def test_the_paper_drops_less_than_its_rate():
    # The figures of the docstring: maps of 14 x 14, blocks of 7 x 7.
    for rate, found in [(0.1, 0.093), (0.5, 0.36)]:
        gamma = rate / 49 * 14**2 / 8**2
        assert np.mean(1 - (1 - gamma) ** cover((14, 14), (7, 7))) == pytest.approx(found, abs=0.002)


@pytest.mark.parametrize(("sizes", "block"), MAPS)
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_share_found_is_the_rate(sizes, block, scheduled):
    rate = schedules.Constant(0.3) if scheduled else 0.3
    out = run(OF_RANK[len(sizes)](rate, block, seed=1), np.ones((50, *sizes, 40), "float32"), training=True)
    shares = (out == 0).mean(axis=tuple(range(1, len(sizes) + 1))).ravel()
    # Maps are independent: the standard error of their mean is what they vary by over the root of their number.
    error = shares.std() / np.sqrt(shares.size)
    assert 0 < error < 0.01
    assert shares.mean() == pytest.approx(0.3, abs=5 * error)


def test_each_position_is_dropped_as_often_as_blocks_reach_it():
    sizes, block = (5, 6), (3, 2)
    kept = run(DropBlock2D(0.4, block, seed=4), np.ones((100, *sizes, 100), "float32"), training=True) > 0
    expected = (1 - drop_block.block_probability(0.4, sizes, block)) ** cover(sizes, block)
    found = kept.mean(axis=(0, 3))
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 10_000))


# -- where


@pytest.mark.parametrize(("sizes", "block"), MAPS)
def test_a_numpy_twin_given_where_blocks_begin(sizes, block, monkeypatch):
    block_there = [min(one, size) for one, size in zip(block, sizes, strict=True)]
    places = [size - one + 1 for size, one in zip(sizes, block_there, strict=True)]
    begins = RNG.random((4, *places, 3)) < 0.1
    asked = []

    def given(shape, probability, seed):
        asked.append(tuple(shape))
        return ops.convert_to_tensor(begins)

    monkeypatch.setattr(drop_block, "drawn_below", given)
    x = RNG.normal(size=(4, *sizes, 3)).astype("float32")
    kept = np.ones(x.shape, bool)
    for sample, *start, channel in np.argwhere(begins):
        cut = tuple(slice(first, first + one) for first, one in zip(start, block_there, strict=True))
        kept[(sample, *cut, channel)] = False
    out = run(OF_RANK[len(sizes)](0.2, list(block)), x, training=True)
    np.testing.assert_allclose(out, np.where(kept, x / kept.mean(), 0), rtol=1e-5)
    assert asked == [begins.shape]


def test_all_that_is_dropped_lies_in_whole_blocks():
    dropped = run(DropBlock2D(0.3, [3, 2], seed=2), np.ones((30, 8, 9, 2), "float32"), training=True) == 0
    whole = np.zeros_like(dropped)
    for row, column in itertools.product(range(6), range(8)):
        block = dropped[:, row : row + 3, column : column + 2].all(axis=(1, 2))
        whole[:, row : row + 3, column : column + 2] |= block[:, None, None]
    np.testing.assert_array_equal(whole, dropped)
    assert dropped.any() and not dropped.all()


def test_channels_have_masks_of_their_own_unless_they_share():
    x = np.ones((40, 8, 8, 5), "float32")
    own, shared = (run(DropBlock2D(0.3, 3, share, seed=1), x, training=True) for share in (False, True))
    assert (own != own[..., :1]).any()
    np.testing.assert_array_equal(shared, np.repeat(shared[..., :1], 5, axis=-1))
    assert (shared[0] != shared[1]).any()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_channels_first_is_channels_last_moved(rank, share):
    x = RNG.normal(size=(3, *[7, 6, 5][:rank], 4)).astype("float32")
    options = {"block_size": 2, "share_channels": share, "seed": 1}
    last = run(OF_RANK[rank](0.4, **options), x, training=True)
    first = run(OF_RANK[rank](0.4, data_format="channels_first", **options), np.moveaxis(x, -1, 1), training=True)
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)


# -- the rest


def test_the_rest_is_over_the_share_that_is_kept():
    x = np.ones((6, 10, 10, 3), "float32")
    out = run(DropBlock2D(0.4, 3, seed=1), x, training=True)
    np.testing.assert_allclose(out[out > 0], 1 / (out > 0).mean(), rtol=1e-5)
    assert out.mean() == pytest.approx(1, rel=1e-5)


def test_steps_outside_of_the_mask_do_not_count():
    valid = np.arange(12) < RNG.integers(2, 12, (20, 1))
    x = np.ones((20, 12, 3), "float32")
    layer = DropBlock1D(0.4, 3, seed=1)
    out = run(layer, x, training=True, mask=ops.convert_to_tensor(valid))
    plain = run(DropBlock1D(0.4, 3, seed=1), x, training=True)
    np.testing.assert_array_equal(out == 0, plain == 0)
    assert out[valid].mean() == pytest.approx(1, rel=1e-5)
    assert plain[valid].mean() != pytest.approx(1, rel=1e-3)


def test_rates_0_and_1_and_a_schedule_that_gets_there():
    x = np.ones((2, 6, 6, 2), "float32")
    np.testing.assert_array_equal(run(DropBlock2D(0, 3), x, training=True), x)
    np.testing.assert_array_equal(run(DropBlock2D(1, 3), x, training=True), 0 * x)
    layer = DropBlock2D(schedules.Linear(0.0, 1, 1.0), 3)
    np.testing.assert_array_equal(run(layer, x, training=True), x)
    np.testing.assert_array_equal(run(layer, x, training=True), 0 * x)


def test_infinities_are_dropped():
    out = run(DropBlock2D(0.5, 2, seed=1), np.full((4, 6, 6, 2), np.inf, "float32"), training=True)
    assert set(out.ravel().tolist()) == {0.0, np.inf}


@pytest.mark.tensorflow
@pytest.mark.parametrize("size", [3, 11])
def test_sizes_that_are_unknown_when_traced_change_nothing(size):
    import tensorflow as tf

    x = RNG.normal(size=(4, size, 8, 2)).astype("float32")
    known, unknown = DropBlock2D(0.3, 5, seed=1), DropBlock2D(0.3, 5, seed=1)
    unknown.build((None, None, None, 2))
    traced = tf.function(lambda v: unknown(v, training=True), input_signature=[tf.TensorSpec([None, None, None, 2])])
    # A map that is shorter than a block has one place, whether or not the size is known.
    np.testing.assert_allclose(traced(x).numpy(), run(known, x, training=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DropBlock2D(1.5), ValueError, "Received: rate=1.5"),
        (lambda: DropBlock2D("a"), TypeError, "`rate` must be a number from 0 to 1, or a schedule"),
        (lambda: DropBlock2D(0.1, 0), ValueError, "Received: block_size=0"),
        (lambda: DropBlock2D(0.1, [3]), ValueError, "an integer or a list of 2. Received: block_size=[3]"),
        (lambda: DropBlock2D(0.1, 2.5), TypeError, "Received: block_size=2.5"),
        (lambda: DropBlock2D(0.1, share_channels=1), TypeError, "Received: share_channels=1"),
        (lambda: DropBlock2D(0.1, data_format="channel_last"), ValueError, "Did you mean 'channels_last'"),
        (lambda: DropBlock2D(0.1)(np.zeros((2, 3, 4))), ValueError, "expected ndim=4"),
    ],
)
def test_bad_arguments_fail(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_the_data_format_is_that_of_the_configuration():
    keras.config.set_image_data_format("channels_first")
    try:
        assert DropBlock2D(0.1).data_format == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
