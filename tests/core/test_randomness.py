"""Random numbers are functions of seed, step, stream and position, the same everywhere, and look random."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.core import randomness
from keras_trainkit.testing.reference import randomness as twin

COUNT = 1 << 16
KNOWN = [338774105, 1942034799, 643620403, 3854373396]


def _run(function, step, jit_compile):
    """`function(step)` as a compiled program, as NumPy."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray((jax.jit(function) if jit_compile else function)(step))
    import tensorflow as tf

    return tf.function(function, jit_compile=jit_compile)(tf.constant(step, "int32")).numpy()


def _words(step=1, stream=0, seed=0, shape=(COUNT,)):
    return ops.convert_to_numpy(randomness.bits(shape, seed, step, stream))


def _chi_square(counts, expected):
    """How many standard deviations the statistic lies from what chance gives."""
    free = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free)


def test_known_values():
    assert _words(step=7, stream=2, seed=3, shape=(4,)).tolist() == KNOWN


def test_the_hash_is_triple32():
    """A permutation of 32 bits that keeps 0, whose inverse (Wellons, 2018) undoes it."""

    def inverse(x):
        x = int(x)
        x ^= x >> 14 ^ x >> 28
        x = x * 0x32B21703 % 2**32
        x ^= x >> 15 ^ x >> 30
        x = x * 0x469E0DB1 % 2**32
        x ^= x >> 11 ^ x >> 22
        x = x * 0x79A85073 % 2**32
        return x ^ x >> 17

    values = np.random.default_rng(0).integers(0, 2**32, 100).astype("uint32")
    hashed = ops.convert_to_numpy(randomness._hash(ops.convert_to_tensor(values, "uint32")))
    assert [inverse(x) for x in hashed] == values.tolist()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 1, 7), (0,)])
def test_bits_and_uniform_are_the_twins_to_the_bit(shape, jit_compile):
    for step in (1, 2, 2**31 - 1):
        words = _run(lambda s: randomness.bits(shape, 3, s, 2), step, jit_compile)
        assert words.dtype == np.uint32
        np.testing.assert_array_equal(words, twin.bits(shape, 3, step, 2))
        fractions = _run(lambda s: randomness.uniform(shape, 3, s, 2), step, jit_compile)
        np.testing.assert_array_equal(fractions, twin.uniform(shape, 3, step, 2))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_normal_is_the_twins(shape, jit_compile):
    values = _run(lambda s: randomness.normal(shape, 3, s, 2), 9, jit_compile)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, twin.normal(shape, 3, 9, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.tensorflow
def test_float64_on_demand():
    np.testing.assert_allclose(randomness.normal((99,), 3, 9, 2, "float64"), twin.normal((99,), 3, 9, 2), atol=1e-13)


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_is_uniform(shift):
    counts = np.bincount(_words() >> shift & 255, minlength=256)
    assert abs(_chi_square(counts, COUNT / 256)) < 4


@pytest.mark.parametrize("shift", [0, 28])
@pytest.mark.parametrize(
    "other", [{"step": 2}, {"step": 257}, {"stream": 1}, {"seed": 1}, {"step": 0, "stream": 1}], ids=str
)
def test_steps_streams_and_seeds_are_independent(other, shift):
    """All pairs of four bits of one and four bits of the other are as frequent as chance has them."""
    first, second = _words() >> shift & 15, _words(**other) >> shift & 15
    assert abs(_chi_square(np.bincount(first * 16 + second, minlength=256), COUNT / 256)) < 4


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64, 512])
def test_neighbours_are_independent(lag):
    words = _words() >> 28
    pairs = np.bincount(words[:-lag] * 16 + words[lag:], minlength=256)
    assert abs(_chi_square(pairs, (COUNT - lag) / 256)) < 4


def test_no_stretch_of_one_tensor_comes_again_in_another():
    """Two tensors share as many values as chance has it, and never two neighbours in the same order."""
    tensors = [_words(step, stream, seed) for step in range(4) for stream in range(4) for seed in range(2)]
    couples = np.sort(np.concatenate([t[:-1].astype("uint64") << 32 | t[1:] for t in tensors]))
    assert (np.diff(couples) > 0).all()
    assert all((np.diff(np.sort(t).astype("int64")) > 0).all() for t in tensors)
    total = sum(map(len, tensors))
    shared = (np.diff(np.sort(np.concatenate(tensors))) == 0).sum()
    expected = (total**2 - sum(len(t) ** 2 for t in tensors)) / 2**33
    assert abs(shared - expected) < 5 * np.sqrt(expected)


def test_one_bit_of_the_step_changes_half_of_the_bits():
    changed = [np.unpackbits((_words(16) ^ _words(16 ^ 1 << bit)).view("uint8")).mean() for bit in range(20)]
    assert np.abs(np.array(changed) - 0.5).max() < 4 * 0.5 / np.sqrt(32 * COUNT)


def test_moments_of_uniform_and_normal():
    fractions = ops.convert_to_numpy(randomness.uniform((COUNT,), 1, 1)).astype("float64")
    assert fractions.min() >= 0 and fractions.max() < 1
    assert abs(fractions.mean() - 0.5) < 4 / np.sqrt(12 * COUNT)
    values = ops.convert_to_numpy(randomness.normal((COUNT,), 1, 1)).astype("float64")
    for power, (moment, spread) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], 1):
        assert abs((values**power).mean() - moment) < 4 * np.sqrt(spread / COUNT), power
    assert abs((values[: COUNT // 2] * values[COUNT // 2 :]).mean()) < 4 / np.sqrt(COUNT / 2)


@pytest.mark.parametrize("arguments", [{"seed": 1.0}, {"seed": 0, "stream": "a"}])
def test_seed_and_stream_are_integers(arguments):
    with pytest.raises(TypeError, match="must be an integer"):
        randomness.bits((2,), step=1, **arguments)
