"""Optimizers that find their own rate: Prodigy, DAdaptAdam and COCOB."""

import json

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, core, optimizers, transforms
from keras_trainkit.testing import reference
from keras_trainkit.testing.problems import EXACT, PROBLEMS, WIDEST, Stepper, minimize

ESTIMATING = [optimizers.Prodigy, optimizers.DAdaptAdam]
TWINS = {optimizers.Prodigy: reference.Prodigy, optimizers.DAdaptAdam: reference.DAdaptAdam}
RNG = np.random.default_rng(9)
INITIAL = [RNG.normal(size=(3, 2)), RNG.normal(size=4)]
GRADIENTS = [[RNG.normal(size=p.shape) + 1.0 for p in INITIAL] for _ in range(12)]


def applied(optimizer, variables, gradients):
    for step in gradients:
        given = [
            None if g is None else keras.ops.convert_to_tensor(g, v.dtype) for g, v in zip(step, variables, strict=True)
        ]
        optimizer.apply(given, variables)
    return [keras.ops.convert_to_numpy(v) for v in variables]


def built(optimizer, initial=INITIAL):
    keras.config.set_floatx(WIDEST)
    variables = [keras.Variable(p, dtype=WIDEST, name=f"p{i}") for i, p in enumerate(initial)]
    optimizer.build(variables)
    return optimizer, variables


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("make", ESTIMATING)
@pytest.mark.parametrize("d0", [1e-7, 1e-5, 1e-3])
def test_arrives_from_rate_one_whatever_the_first_estimate(make, d0):
    for name in ("parabola", "matrix"):
        optimizer = make(d0=d0)
        problem = PROBLEMS[name]()
        assert minimize(optimizer, problem) <= problem.target
        assert int(keras.ops.convert_to_numpy(optimizer.iterations)) < 100
        assert 0.1 < optimizer.estimated_rate() < 10


@pytest.mark.parametrize("make", ESTIMATING)
def test_a_late_gradient_takes_part_at_once(make):
    late = [[step[0], None] for step in GRADIENTS[:6]]
    optimizer, variables = built(make(d0=0.01))
    with pytest.warns(UserWarning):
        applied(optimizer, variables, late)
    before = optimizer.estimated_rate()
    ours = applied(optimizer, variables, GRADIENTS[6:])
    assert optimizer.estimated_rate() > before > 0.01
    estimates = [float(v) for v in optimizer.variables if v.path.endswith("_estimate")]
    assert len(estimates) == 2
    assert len(set(estimates)) == 1
    # As if it had had a gradient of zero until then.
    zeros = [[step[0], np.zeros(4)] for step in GRADIENTS[:6]]
    twin = reference.JointTwin(lambda: TWINS[make](d0=0.01))
    assert_same(ours, twin.run(INITIAL, zeros + GRADIENTS[6:], 1.0))


def test_weights_loaded_after_build_are_no_distance():
    fresh, variables = built(optimizers.Prodigy(d0=0.01))
    expected = applied(fresh, variables, GRADIENTS)
    optimizer, variables = built(optimizers.Prodigy(d0=0.01), [p + 100.0 for p in INITIAL])
    for variable, value in zip(variables, INITIAL, strict=True):
        variable.assign(value)
    assert_same(applied(optimizer, variables, GRADIENTS), expected)
    assert optimizer.estimated_rate() == pytest.approx(fresh.estimated_rate())


@pytest.mark.parametrize("link", [transforms.ScaleByProdigy(d0=0.01), transforms.ScaleByDAdaptAdam(d0=0.01)])
def test_a_group_has_an_estimate_of_its_own(link):
    rule = core.partition([["p0", link]], default=transforms.ScaleByLearningRate())
    optimizer, variables = built(core.TransformOptimizer(1.0, rule))
    together = applied(optimizer, variables, GRADIENTS)
    optimizer, variables = built(core.TransformOptimizer(1.0, link), INITIAL[:1])
    assert_same(together[:1], applied(optimizer, variables, [step[:1] for step in GRADIENTS]))
    assert_same(together[1:], [INITIAL[1] - sum(step[1] for step in GRADIENTS)])


@pytest.mark.parametrize("make", ESTIMATING)
def test_decay_goes_by_the_estimate(make):
    optimizer, variables = built(make(2.0, d0=0.01, weight_decay=0.5, weight_decay_exclude=["p1"]))
    after = applied(optimizer, variables, [[np.zeros_like(p) for p in INITIAL]])
    assert_same(after, [INITIAL[0] * (1 - 2.0 * 0.01 * 0.5), INITIAL[1]])
    optimizer, variables = built(make(2.0, d0=0.01, weight_decay=0.5, decouple=False, weight_decay_exclude=["p1"]))
    after = applied(optimizer, variables, [[np.zeros_like(p) for p in INITIAL]])
    penalized, variables = built(make(2.0, d0=0.01))
    assert_same(after, applied(penalized, variables, [[0.5 * INITIAL[0], np.zeros(4)]]))


@pytest.mark.parametrize("make", ESTIMATING)
def test_rate_zero_stops_at_once(make):
    optimizer, variables = built(make(d0=0.01))
    before = applied(optimizer, variables, GRADIENTS)
    optimizer.learning_rate = 0.0
    estimate = optimizer.estimated_rate()
    assert_same(applied(optimizer, variables, GRADIENTS), before)
    assert optimizer.estimated_rate() == pytest.approx(estimate, rel=1e-6)


@pytest.mark.parametrize("make", ESTIMATING)
def test_growth_is_limited(make):
    def estimates(growth_rate):
        optimizer, variables = built(make(d0=0.01, growth_rate=growth_rate))
        found = []
        for step in GRADIENTS:
            applied(optimizer, variables, [step])
            found.append(optimizer.estimated_rate())
        return np.array(found)

    free, limited = estimates(None), estimates(1.1)
    assert free[-1] > 2 * limited[-1] > 0.02
    ratios = limited[1:] / limited[:-1]
    first = int(np.argmax(limited > 0.0101))  # Prodigy's first step away from d0 is free
    assert ratios[first:].max() <= 1.1 + 1e-6
    assert ratios.min() >= 1.0
    np.testing.assert_array_equal(estimates(float("inf")), free)


def test_names_a_wrong_growth_rate():
    with pytest.raises(ValueError, match=r"`growth_rate` must be a number at least 1. Received: growth_rate=0.5"):
        optimizers.Prodigy(growth_rate=0.5)
    with pytest.raises(ValueError, match=r"`d0` must be a number above 0"):
        optimizers.DAdaptAdam(d0=0.0)
    with pytest.raises(ValueError, match=r"`slice_p` must be an integer at least 1"):
        transforms.ScaleByProdigy(slice_p=0)


@pytest.mark.tensorflow
def test_the_estimate_shows_in_statistics_and_monitor(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizers.Prodigy(d0=1e-3), "mse")
    assert model.optimizer.estimated_rate() == 1e-3
    assert model.optimizer.statistics() == {}
    x, y = np.ones((32, 3), "float32"), np.full((32, 2), 5.0, "float32")
    monitor = callbacks.TrainingMonitor(tmp_path, every=2, tensorboard=False)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[monitor])
    d = model.optimizer.estimated_rate()
    assert d > 1e-3
    assert model.optimizer.statistics()["estimated_rate"] == d
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["estimated_rate"] for line in lines if "gradient_norm" in line]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(d)


@pytest.mark.parametrize("size", [1e-3, 1e5])
def test_cocob_does_not_see_the_size_of_gradients(size):
    plain = Stepper(optimizers.COCOB(), INITIAL).run(GRADIENTS)
    scaled = Stepper(optimizers.COCOB(epsilon=1e-8 * size), INITIAL).run([[g * size for g in s] for s in GRADIENTS])
    assert max(np.abs(a - b).max() for a, b in zip(plain, INITIAL, strict=True)) > 1e-2
    assert_same(scaled, plain)


def test_cocob_rate_multiplies_the_distance_from_the_start():
    plain = Stepper(optimizers.COCOB(), INITIAL).run(GRADIENTS)
    wide = Stepper(optimizers.COCOB(3.0), INITIAL).run(GRADIENTS)
    assert_same(wide, [start + 3 * (end - start) for start, end in zip(INITIAL, plain, strict=True)])


def test_cocob_finds_a_far_minimum_of_a_kink():
    # |w - 50| has slope 1 at any distance: only growing bets come there in so few steps.
    step = Stepper(optimizers.COCOB(alpha=1.0), [np.zeros(1)])
    seen = []
    for _ in range(60):
        seen.append(step.parameters()[0][0])
        step([np.sign(np.array([seen[-1] - 50.0]))])
    assert max(seen) > 50
    assert seen[4] < 5
