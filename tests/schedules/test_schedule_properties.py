"""What holds for schedules of any arguments: finite, within bounds, without jumps where there should be none."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trainkit import schedules as s

STEPS = np.arange(420)  # one shape: JAX compiles every operation anew for each
rates = st.floats(1e-5, 10)
lengths = st.integers(2, 150)
shares = st.floats(0, 1).map(lambda share: round(share, 3))


class Known:
    """A schedule and what must hold for it: bounds, the largest jump (None: it may jump), and the last rate."""

    def __init__(self, schedule, low, high, slope=None, end=None, at=0):
        self.schedule, self.low, self.high, self.slope, self.end, self.at = schedule, low, high, slope, end, at


@st.composite
def families(draw):
    kind = draw(st.sampled_from(sorted(MAKERS)))
    return MAKERS[kind](draw)


def constant(draw):
    a = draw(rates)
    return Known(s.Constant(a), a, a, 0, a, 0)


def linear(draw):
    a, b, n = draw(rates), draw(rates), draw(lengths)
    return Known(s.Linear(a, n, b), min(a, b), max(a, b), abs(a - b) / n, b, n)


def polynomial(draw):
    a, n, power = draw(rates), draw(lengths), draw(st.floats(1, 4))
    return Known(s.Polynomial(a, n, a / 9, power), a / 9, a, a * power / n, a / 9, n)


def exponential(draw):
    a, n, factor = draw(rates), draw(lengths), draw(st.floats(0.01, 1))
    return Known(s.Exponential(a, factor, n, a * factor), a * factor, a, a * -np.log(factor) / n, a * factor, n)


def stairs(draw):
    a, factor = draw(rates), draw(st.floats(0.1, 1))
    if draw(st.booleans()):
        return Known(s.Step(a, draw(lengths), factor), 0, a)
    milestones = sorted(draw(st.lists(lengths, max_size=5)))
    return Known(s.MultiStep(a, milestones, factor), 0, a, end=a * factor ** len(milestones), at=150)


def cosine(draw):
    a, n, alpha, power = draw(rates), draw(lengths), draw(shares), draw(st.floats(1, 3))
    return Known(s.Cosine(a, n, alpha, power), alpha * a, a, a * power * np.pi / 2 / n, alpha * a, n)


def restarts(draw):
    a, n, alpha, limit = draw(rates), draw(lengths), draw(shares), draw(st.integers(1, 4))
    schedule = s.CosineRestarts(a, n, draw(st.sampled_from([1.0, 1.5, 2.0])), draw(st.floats(0.3, 1)), alpha, limit)
    return Known(schedule, alpha * a, a, end=alpha * a, at=20 * n)


def one_cycle(draw):
    a, n, three = draw(rates), draw(st.integers(20, 150)), draw(st.booleans())
    schedule = s.OneCycle(a, n, draw(st.sampled_from([0.2, 0.35, 0.45])), 10.0, 100.0, three_phase=three)
    if draw(st.booleans()):
        return Known(schedule, a / 1000, a, np.pi / 2 * a / (0.1 * n - 1), a / 1000, n - 1)
    return Known(schedule.momentum(), 0.85, 0.95, np.pi / 2 * 0.1 / (0.1 * n - 1), 0.95, n - 1)


def cyclic(draw):
    a, b, up, down = draw(rates), draw(rates), draw(lengths), draw(lengths)
    mode = draw(st.sampled_from(["triangular", "triangular2", "exp_range"]))
    slope = abs(a - b) * (1 / min(up, down) + 0.01)
    return Known(s.Cyclic(a, b, up, down, mode, 0.99), min(a, b), max(a, b), slope)


def wsd(draw):
    a, ramp, stable, n, alpha = draw(rates), draw(lengths), draw(lengths), draw(lengths), draw(shares)
    shape = draw(st.sampled_from(["linear", "cosine", "1-sqrt", "1-square"]))
    slope = max(a / ramp, a * (1 / np.sqrt(n) if shape == "1-sqrt" else 2 / n))
    return Known(s.WSD(a, ramp, stable, n, alpha, shape), 0, a, slope, alpha * a, ramp + stable + n)


def hyperbolas(draw):
    a, n = draw(rates), draw(lengths)
    return draw(
        st.sampled_from(
            [
                Known(s.InverseSqrt(a, n), 0, a, a / n),
                Known(s.Noam(64, n, a), 0, a * (64 * n) ** -0.5, a * (64 * n) ** -0.5 / n),
                Known(s.REX(a, n), 0, a, 2 * a / n, 0, n),
                Known(s.Tanh(a, n), 0, a, 5 * a / n, a * (1 - np.tanh(4)) / 2, n),
            ]
        )
    )


def warmup(draw):
    inner, ramp = cosine(draw), draw(lengths)
    top = inner.schedule.initial_learning_rate
    shape = draw(st.sampled_from(["linear", "polynomial", "exponential"]))
    schedule = s.Warmup(inner.schedule, ramp, top / 100, shape=shape)
    slope = max(inner.slope, top * 5 / ramp)
    return Known(schedule, min(top / 100, inner.low), top, slope, inner.end, ramp + inner.at)


def joined(draw):
    first, last, length = MAKERS["wsd"](draw), MAKERS["cosine"](draw), draw(lengths)
    low, high = min(first.low, last.low), max(first.high, last.high)
    kind = draw(st.integers(0, 5))
    if kind == 5:
        times = draw(st.integers(1, 3))
        again = s.Repeat(last.schedule, length, times)
        return Known(again, last.low, last.high, end=float(last.schedule(length)), at=times * length)
    if kind == 0:
        return Known(s.Sequence([first.schedule, last.schedule], [length]), low, high, None, last.end, length + last.at)
    if kind == 1:
        return Known(s.Piecewise([length], [first.schedule, last.schedule]), low, high, None, last.end, 400)
    if kind == 2:
        return Known(s.Scale(first.schedule, 0.5), 0, first.high / 2, first.slope / 2, first.end / 2, first.at)
    if kind == 3:
        moved = s.Offset(first.schedule, 0.25, length)
        return Known(moved, 0.25, first.high + 0.25, first.slope, first.end + 0.25, first.at + length)
    return Known(
        s.Cooldown(first.schedule, length, 17, 0.0, "linear"), 0, first.high, first.slope + first.high / 17, 0, 400
    )


MAKERS = {
    "constant": constant,
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "stairs": stairs,
    "cosine": cosine,
    "restarts": restarts,
    "one_cycle": one_cycle,
    "cyclic": cyclic,
    "wsd": wsd,
    "hyperbolas": hyperbolas,
    "warmup": warmup,
    "joined": joined,
}


def test_every_schedule_is_among_them():
    made = set(re.findall(r"\bs\.([A-Z]\w+)\(", Path(__file__).read_text()))
    assert {name.lower() for name in made} | {"onecyclemomentum"} == set(s.list())  # that is `momentum()` of another


@given(families())
@settings(max_examples=150, deadline=None)
def test_rates_are_finite_within_bounds_without_jumps_and_end_where_they_should(known):
    found = np.array(known.schedule(STEPS), "float64")
    assert np.isfinite(found).all()
    assert found.min() >= known.low - 1e-6 * known.high and found.max() <= known.high * (1 + 1e-6)
    if known.slope is not None:
        assert np.abs(np.diff(found)).max() <= known.slope * 1.001 + 1e-6 * known.high
    if known.end is not None:
        for step in (known.at, known.at + 1000, 2**31 - 2):
            assert float(known.schedule(step)) == pytest.approx(known.end, rel=1e-5, abs=1e-6 * known.high)


@given(families(), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_a_saved_schedule_goes_on_as_if_nothing_had_been(known, step):
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(known.schedule)))
    loaded = keras.optimizers.schedules.deserialize(config)
    assert loaded == known.schedule
    np.testing.assert_array_equal(np.array(loaded(STEPS)), np.array(known.schedule(STEPS)))
    # One by one, as in training, and all at once, as in a plot: the same.
    assert float(loaded(step)) == pytest.approx(
        float(np.array(known.schedule(np.arange(420)))[step]), rel=1e-6, abs=1e-12
    )


@given(families())
@settings(max_examples=40, deadline=None)
def test_spans_of_a_run_are_the_same_as_their_numbers(known):
    schedule = known.schedule
    for name in schedule.spans:
        value = getattr(schedule, name)
        if not isinstance(value, int) or value == 0:
            continue
        spelled = type(schedule)(**(vars(schedule) | {name: f"{value}ep"}))
        with pytest.raises(ValueError, match="known in updates"):
            spelled(0)
        assert s.resolve(spelled, steps_per_epoch=1, epochs=1) == schedule
