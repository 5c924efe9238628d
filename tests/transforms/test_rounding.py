"""Rounding at random is right on average, and moves what rounding to nearest leaves standing."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import core, optimizers, transforms
from keras_trainkit.core import randomness
from keras_trainkit.testing.problems import Stepper, matrix, minimize
from keras_trainkit.transforms.rounding import to_bfloat16

COUNT = 1 << 14


def _rounded(value, count=COUNT):
    random = ops.right_shift(randomness.bits((count,), 5, 1), ops.convert_to_tensor(np.uint32(16), "uint32"))
    return ops.convert_to_numpy(to_bfloat16(ops.full((count,), value, "float32"), random))


@pytest.mark.parametrize("value", [1.0 + 0.3 * 2**-7, -1.0 - 0.9 * 2**-7, 3.1e-5, 1.9999, 123456.7])
def test_rounds_to_both_neighbours_right_on_average(value):
    found = _rounded(value).astype("float64")
    below, above = np.unique(found)
    exact = float(np.float32(value))
    assert below < exact < above
    assert above - below == 2.0 ** (np.floor(np.log2(abs(value))) - 7)
    share = (exact - below) / (above - below)
    spread = np.sqrt(share * (1 - share) / COUNT) * (above - below)
    assert abs(found.mean() - exact) < 4 * spread
    as_kept = ops.convert_to_numpy(ops.cast(ops.cast(ops.convert_to_tensor(found, "float32"), "bfloat16"), "float32"))
    np.testing.assert_array_equal(as_kept, found)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 2.0**-120, np.inf, -np.inf, np.nan])
def test_what_bfloat16_holds_stays(value):
    np.testing.assert_array_equal(_rounded(value, 64), np.full(64, value, "float32"))


def _mean_square(optimizer, steps):
    """The mean of the slot `velocity` after so many gradients of one."""
    stepper = Stepper(optimizer, [np.zeros(COUNT // 16)], dtype="float32")
    stepper.run([[np.ones(COUNT // 16)]] * steps)
    slot = next(v for v in optimizer.variables if "velocity" in v.path)
    return float(ops.convert_to_numpy(ops.cast(slot, "float32")).mean())


@core.register_transform
class NearestAdam(transforms.ScaleByAdam16):
    """`ScaleByAdam16` that leaves the rounding to the write, which rounds to nearest."""

    def update(self, updates, parameters, states, context):
        wide = [
            {name: ops.cast(value, p.dtype) for name, value in s.items()}
            for s, p in zip(states, parameters, strict=True)
        ]
        return transforms.ScaleByAdam(self.beta_1, self.beta_2).update(updates, parameters, wide, context)


def test_a_mean_square_moves_that_rounding_to_nearest_would_stop():
    steps = 800
    exact = 1 - 0.999**steps
    nearest = core.TransformOptimizer(0.0, core.chain(NearestAdam(), transforms.ScaleByLearningRate()))
    assert _mean_square(nearest, steps) < 0.3
    # One step's rounding has at most half of 2**-8 as its spread, and the average keeps 1 / (2 * 0.001) of them.
    assert abs(_mean_square(optimizers.AdamW16(0.0), steps) - exact) < 4 * 2**-9 * np.sqrt(500 / (COUNT // 16))


def test_ends_where_adamw_in_float32_ends():
    """On the matrix problem the loss after 300 steps is AdamW's to 5 percent, and the weights are to 0.001."""
    problem = matrix()
    ends = []
    for kind in (optimizers.AdamW, optimizers.AdamW16):
        stepper = Stepper(kind(0.02, weight_decay=0.0), problem.initial, dtype="float32")
        for _ in range(300):
            stepper([g.astype("float32") for g in problem.gradient(stepper.parameters())])
        ends.append(stepper.parameters())
    losses = [problem.loss(end) for end in ends]
    distance = max(np.abs(a - b).max() for a, b in zip(*ends, strict=True))
    assert abs(losses[1] / losses[0] - 1) < 0.05
    assert 0 < distance < 0.001


def _after_small_steps(after):
    stepper = Stepper(optimizers.SGD(1e-4, after=after), [np.ones(COUNT)], dtype="bfloat16")
    values = stepper.run([[np.ones(COUNT)]] * 500)
    return float(np.asarray(values[0], "float32").mean())


def test_bfloat16_weights_feel_small_steps():
    assert _after_small_steps([]) == 1.0
    # The weights lie from 0.5 to 1, where neighbours are 2**-8 apart: 500 steps of a spread of half of that at most.
    assert abs(_after_small_steps([transforms.RoundAtRandom()]) - 0.95) < 4 * 2**-9 * np.sqrt(500 / COUNT)


def test_seeds_steps_and_variables_have_their_own_numbers():
    def ends(seed, steps=1):
        rounding = [transforms.RoundAtRandom(seed)]
        stepper = Stepper(optimizers.SGD(1e-3, after=rounding), [np.ones(64), np.ones(64)], dtype="bfloat16")
        return [np.asarray(p, "float32") for p in stepper.run([[np.ones(64)] * 2] * steps)]

    first, second = ends(1)
    assert (first != second).any()
    assert (first != ends(2)[0]).any()
    np.testing.assert_array_equal(first, ends(1)[0])
    fell_again = (ends(1, steps=2)[0] < first)[first < 1]
    assert 0 < fell_again.mean() < 1


def test_other_variables_are_refused_or_left_out():
    variables = [keras.Variable(np.ones(2), dtype=dtype, name=dtype) for dtype in ("bfloat16", "float32")]
    with pytest.raises(ValueError, match=r"Received: `float32` \(float32\)"):
        optimizers.SGD(0.1, after=[transforms.RoundAtRandom()]).build(variables)
    optimizers.SGD(0.1, after=[core.masked(transforms.RoundAtRandom(), "bfloat16")]).build(variables)


def test_both_arrive_with_the_seed_given():
    for seed in (0, 7):
        assert minimize(optimizers.AdamW16(0.05, seed=seed), matrix()) <= matrix().target
