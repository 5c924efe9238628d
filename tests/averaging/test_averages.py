"""The averages by themselves: against the twin, against theory, and their arguments."""

import keras
import numpy as np
import pytest
from averaging_twin import averaged
from keras import ops

from keras_trainkit import averaging, schedules
from keras_trainkit.averaging.rules import average_of

RNG = np.random.default_rng(6)
KINDS = [
    averaging.EMA(0.9),
    averaging.EMA(0.9, dynamic=False, start=3, every=2),
    averaging.EMA(half_life=300),
    averaging.EMA(half_life=50, dynamic=False, every=3),
    averaging.SWA(start=5, every=4),
    averaging.SWA(start=0, every=3),
    averaging.LAWA(4, every=2),
    averaging.LAWA(50, every=1, start=7),
]


def run(average, trajectory, samples):
    held = [np.zeros(average.shape(w.shape), "float32") for w in trajectory[0]]
    count = since = total = 0
    seen = 0
    for update, (weights, arrived) in enumerate(zip(trajectory, samples, strict=True), 1):
        since += arrived
        if average.stages(update) > average.stages(seen):
            numbers = [ops.convert_to_tensor(n, "int32") for n in (count, since, total)]
            held = [average.taken_in(ops.convert_to_tensor(h), ops.convert_to_tensor(w), *numbers)
                    for h, w in zip(held, weights, strict=True)]  # fmt: skip
            count, total, since = count + 1, total + since, 0
        seen = update
    return [ops.convert_to_numpy(average.value(h, ops.convert_to_tensor(count, "int32"))) for h in held]


@pytest.mark.parametrize("average", KINDS, ids=str)
def test_equals_its_twin(average):
    trajectory = [[RNG.normal(size=(3, 2)).astype("float32"), np.float32(RNG.normal())] for _ in range(30)]
    samples = RNG.integers(1, 40, 30).tolist()
    for mine, theirs in zip(run(average, trajectory, samples), averaged(average, trajectory, samples), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("average", KINDS, ids=str)
def test_stages_of_tensors_are_those_of_numbers(average):
    updates = np.arange(40, dtype="int32")
    found = ops.convert_to_numpy(average.stages(ops.convert_to_tensor(updates)))
    assert found.tolist() == [average.stages(int(u)) for u in updates]


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_half_life_does_not_depend_on_the_batch_size(dynamic):
    """A weight that jumps from 0 to 1 after 4096 samples: after 512 more, half of the average has followed."""

    def after(batch):
        trajectory = [[np.float32(batch * (u + 1) > 4096)] for u in range(4608 // batch)]
        average = averaging.EMA(half_life=512, dynamic=dynamic)
        return run(average, trajectory, [batch] * len(trajectory))[0]

    expected = 0.5 if not dynamic else 1 - 0.5 ** sum(16 / (0.05 * seen) for seen in range(4112, 4609, 16))
    for batch in (16, 64, 512) if not dynamic else (16, 64):
        np.testing.assert_allclose(after(batch), expected, atol=1e-5 if not dynamic else 5e-3)


def test_the_mean_of_noise_has_its_variance_divided():
    """Averages of independent weights of variance 1: 1/n for snapshots, (1 - d) / (1 + d) for a decay d."""
    size, updates = 40_000, 200
    noise = RNG.normal(size=(updates, size)).astype("float32")
    for average, variance in [
        (averaging.SWA(start=1, every=2), 1 / 100),
        (averaging.LAWA(8, every=1), 1 / 8),
        (averaging.EMA(0.9), 0.1 / 1.9),
    ]:
        found = run(average, [[row] for row in noise], [1] * updates)[0].var()
        assert abs(found / variance - 1) < 5 * np.sqrt(2 / size), average


def test_digits_do_not_get_lost():
    """A decay of 1 - 1e-6: float32 would keep one digit of the difference."""
    average = averaging.EMA(1 - 1e-6, dynamic=False)
    share = average.share(*ops.convert_to_tensor(np.ones((3, 1), "float32")))
    np.testing.assert_allclose(share, 1e-6, rtol=1e-6)


@pytest.mark.parametrize("average", [*KINDS, averaging.SWA(rate=[0.1, 0.01])], ids=str)
def test_configurations(average):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(average))
    assert again == average and average_of(keras.saving.serialize_keras_object(average)) == average


def test_names_and_spans():
    assert average_of("SWA") == averaging.SWA() and average_of("ema").decay == 0.999
    resolved = schedules.resolve(averaging.SWA(), steps_per_epoch=50, epochs=10, accumulation=5)
    assert resolved.numbers() == (75, 10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: averaging.EMA(1.0), "`decay` must be a number at least 0 and below 1. Received: decay=1.0"),
        (lambda: averaging.EMA(0.9, half_life=10), "`half_life` takes the place of `decay`"),
        (lambda: averaging.EMA(half_life=0), "`half_life` must be a number above 0"),
        (lambda: averaging.EMA(start=-1), "`start` must be an integer at least 0"),
        (lambda: averaging.SWA(every="0ep"), "`every` must be a number of updates of at least 1"),
        (lambda: averaging.SWA(rate=[1.0]), "`rate` must be a number, or a list of two"),
        (lambda: averaging.LAWA(0), "`k` must be an integer at least 1"),
        (lambda: averaging.SWA().numbers(), "`start` is a share of a run whose length is not known yet"),
        (lambda: average_of("mean"), "`average` must be one of 'ema', 'swa', 'lawa'"),
    ],
)
def test_arguments_out_of_range(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    assert words in str(raised.value)
    with pytest.raises(TypeError, match="`average` must be an average"):
        average_of(0.9)
