"""The schedules against closed forms, other libraries' values, Keras's own, and a real optimizer."""

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_trainkit.schedules import Constant, Cosine, Schedule, Warmup

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "schedules.json"
KerasCosine = keras.optimizers.schedules.CosineDecay

rates = st.floats(1e-6, 10)
lengths = st.integers(1, 2_000)
fractions = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


def values(schedule, steps):
    return np.array([float(schedule(step)) for step in range(steps)])


def exact_cosine(rate, steps, alpha, step):
    left = 1 - min(step, steps) / steps if steps < 10_000 else (steps - min(step, steps)) / steps
    return rate * (alpha + (1 - alpha) * math.sin(math.pi / 2 * left) ** 2)


def golden(name, part="lr"):
    if not GOLDEN.exists():
        pytest.skip("shared/golden/schedules.json is missing beside the checkout")
    return np.array(json.loads(GOLDEN.read_text())[name][part])


# -- values of other libraries; the first row of each pair is embedded, the second read from the golden file


def test_warmup_into_cosine_equals_torch():
    torch_values = [0.1, 0.28, 0.46, 0.64, 0.82, 1.0, 0.975528258, 0.904508497, 0.793892626, 0.654508497, 0.5]
    schedule = Warmup(Cosine(1.0, 10), 5, initial=0.1)
    np.testing.assert_allclose(values(schedule, 11), torch_values, rtol=3e-7)


def test_warmup_into_cosine_equals_optax():
    optax_values = [0.1, 0.325, 0.55, 0.775, 1.0, 0.990872979, 0.96384275, 0.919948041, 0.860875726, 0.788895786]
    schedule = Warmup(Cosine(1.0, 16, alpha=0.05), 4, initial=0.1)
    np.testing.assert_allclose(values(schedule, 10), optax_values, rtol=4e-7)


def test_cosine_equals_torch():
    torch_values = [1.0, 0.977975432, 0.914057647, 0.814503364, 0.689057647, 0.55, 0.410942353, 0.285496636]
    np.testing.assert_allclose(values(Cosine(1.0, 10, alpha=0.1), 8), torch_values, rtol=3e-7)


@pytest.mark.parametrize(
    ("name", "part", "schedule"),
    [
        ("torch/CosineAnnealingLR(T_max=10,eta_min=0.1)", "lr", Cosine(1.0, 10, alpha=0.1)),
        (
            "torch/SequentialLR(LinearLR(0.1,1,5)->CosineAnnealingLR(10);milestone 5)",
            "lr",
            Warmup(Cosine(1.0, 10), 5, initial=0.1),
        ),
        ("optax/warmup_cosine_decay(0.1,1,4,20,0.05)", "lr", Warmup(Cosine(1.0, 16, alpha=0.05), 4, initial=0.1)),
        ("optax/warmup_constant(0,1,5)", "lr", Warmup(1.0, 5)),
        ("optax/join(linear 0->1 over 5, cosine 10)@5", "lr", Warmup(Cosine(1.0, 10), 5)),
        ("timm/CosineLR(...,warmup_prefix)", "lr", Warmup(Cosine(1.0, 20, alpha=0.05), 4, initial=0.01)),
    ],
)
def test_golden_values(name, part, schedule):
    expected = golden(name, part)
    np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("part", "schedule"),
    [
        ("constant_with_warmup(4)", Warmup(Constant(10.0), 4)),
        ("cosine", Warmup(Cosine(10.0, 8), 2)),
        ("linear", Warmup(keras.optimizers.schedules.PolynomialDecay(10.0, 8, end_learning_rate=0.0), 2)),
    ],
)
def test_golden_values_of_transformers(part, schedule):
    expected = golden("transformers tests/optimization/test_optimization.py (lr=10, warm 2, total 10)", part)
    np.testing.assert_allclose(values(schedule, len(expected)), expected, atol=0.01)  # two decimals, cut off


def test_beneath_equals_timm_once_the_ramp_is_over():
    expected = golden("timm/CosineLR(t_initial=20,lr_min=.05,warmup_t=4,warmup_lr_init=.01)")
    schedule = Warmup(Cosine(1.0, 20, alpha=0.05), 4, initial=0.01, inner="beneath")
    np.testing.assert_allclose(values(schedule, len(expected))[4:], expected[4:], rtol=1e-6)


def test_warmup_equals_the_warmup_of_keras():
    theirs = KerasCosine(0.02, 30, alpha=0.1, warmup_target=0.5, warmup_steps=7)
    ours = Warmup(Cosine(0.5, 30, alpha=0.1), 7, initial=0.02)
    np.testing.assert_allclose(values(ours, 45), values(theirs, 45), rtol=5e-7)


# -- properties


@given(rates, lengths, fractions, st.integers(0, 4_000))
@settings(max_examples=60, deadline=None)
def test_cosine_is_its_closed_form(rate, steps, alpha, step):
    assert float(Cosine(rate, steps, alpha)(step)) == pytest.approx(exact_cosine(rate, steps, alpha, step), rel=5e-7)


# Arrays of one shape: JAX compiles every operation anew for each shape.


@given(rates, st.integers(1, 300), fractions)
@settings(max_examples=30, deadline=None)
def test_cosine_never_rises_and_ends_at_its_floor(rate, steps, alpha):
    curve = np.array(Cosine(rate, steps, alpha)(np.arange(305)))
    assert np.all(np.diff(curve) <= 2e-7 * rate)
    assert curve[0] == pytest.approx(rate, rel=3e-7)
    np.testing.assert_allclose(curve[steps:], alpha * rate, rtol=2e-7)


@given(rates, st.integers(1, 150), st.integers(1, 150), fractions, st.sampled_from(["after", "beneath"]))
@settings(max_examples=40, deadline=None)
def test_warmup_starts_at_initial_ends_in_the_schedule_and_never_jumps(rate, steps, ramp, initial, inner):
    cosine = Cosine(rate, steps, alpha=0.1)
    schedule = Warmup(cosine, ramp, initial=initial, inner=inner)
    curve = np.array(schedule(np.arange(305)))
    alone = np.array(cosine(np.arange(305)))
    assert curve[0] == pytest.approx(initial, rel=2e-7)
    np.testing.assert_array_equal(curve[ramp:], alone[: 305 - ramp] if inner == "after" else alone[ramp:])
    bound = max(rate, initial) / ramp + rate * math.pi / 2 / steps + 1e-6 * (rate + initial)
    assert np.max(np.abs(np.diff(curve))) <= bound


def test_beneath_blends_with_the_value_of_the_same_step():
    schedule = Warmup(Cosine(1.0, 100), 10, initial=0.2, inner="beneath")
    for step in (0, 3, 9):
        expected = 0.2 * (1 - step / 10) + exact_cosine(1.0, 100, 0.0, step) * step / 10
        assert float(schedule(step)) == pytest.approx(expected, rel=3e-7)


def test_constant_is_constant_for_one_step_and_for_many():
    np.testing.assert_allclose(values(Constant(0.25), 3), 0.25)
    np.testing.assert_allclose(np.array(Constant(0.25)(np.arange(5))), [0.25] * 5)


def test_no_steps_means_no_ramp():
    assert float(Warmup(0.5, 0, initial=0.1)(0)) == 0.5


def test_a_step_below_zero_counts_as_zero():
    assert float(Warmup(Cosine(1.0, 10), 5, initial=0.25)(-3)) == 0.25


def test_a_warmup_can_wrap_a_warmup_and_a_foreign_schedule():
    class Foreign(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1.0 / (ops.cast(step, "float32") + 1.0)

    np.testing.assert_allclose(values(Warmup(Foreign(), 2), 5), [0, 0.5, 1, 1 / 2, 1 / 3], rtol=2e-7)
    nested = Warmup(Warmup(1.0, 2), 2)
    np.testing.assert_allclose(values(nested, 6), [0, 0, 0, 0.5, 1, 1], rtol=2e-7)


# -- exactness in float32


@pytest.mark.parametrize("step", [1, 4_999_999, 5_000_001, 9_990_000, 9_999_000, 9_999_999])
def test_ten_million_steps_keep_relative_accuracy(step):
    assert float(Cosine(1.0, 10_000_000)(step)) == pytest.approx(exact_cosine(1.0, 10_000_000, 0.0, step), rel=3e-7)
    ramp = Warmup(3.0, 10_000_000, initial=1e-3)
    exact = 1e-3 * (1 - step / 1e7) + 3.0 * step / 1e7
    assert float(ramp(step)) == pytest.approx(exact, rel=3e-7)


def test_keras_loses_the_last_thousand_of_ten_million_steps():
    exact = exact_cosine(1.0, 10_000_000, 0.0, 9_999_000)
    assert abs(float(KerasCosine(1.0, 10_000_000)(9_999_000)) / exact - 1) > 0.05
    assert float(Cosine(1.0, 10_000_000)(9_999_000)) == pytest.approx(exact, rel=3e-7)


def test_a_warmup_of_ten_million_steps_hands_over_the_exact_step():
    seen = []

    class Recorder(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            seen.append(int(step))
            return 1.0

    Warmup(Recorder(), 10_000_001)(20_000_004)
    assert seen == [10_000_003]  # not a float32: those are even from 2**24 on


@pytest.mark.parametrize("floatx", ["bfloat16", "float16"])
def test_a_narrow_floatx_does_not_narrow_the_rate(floatx):
    keras.config.set_floatx(floatx)
    for schedule in (Cosine(1.0, 1000), Warmup(KerasCosine(1.0, 1000), 10), Constant(0.3)):
        assert keras.backend.standardize_dtype(schedule(3).dtype) == "float32"
    assert float(Cosine(1.0, 1000)(999)) == pytest.approx(exact_cosine(1.0, 1000, 0.0, 999), rel=3e-7)


@pytest.mark.tensorflow
def test_a_wide_floatx_widens_the_rate():
    keras.config.set_floatx("float64")
    assert float(Cosine(1.0, 1000)(1)) == pytest.approx(exact_cosine(1.0, 1000, 0.0, 1), rel=1e-15)


# -- serialization


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(0.1),
        Cosine(0.1, 20, alpha=0.3),
        Warmup(0.1, 5, initial=0.01),
        Warmup(Cosine(0.1, 20), 5, initial=0.01, inner="beneath"),
        Warmup(Warmup(Constant(0.1), 3), 5),
        Warmup(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5), 4),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_configuration_survives_json(schedule):
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    loaded = keras.optimizers.schedules.deserialize(config)
    assert type(loaded) is type(schedule)
    np.testing.assert_array_equal(values(loaded, 30), values(schedule, 30))
    assert json.loads(json.dumps(keras.optimizers.schedules.serialize(loaded))) == config


def test_schedules_survive_a_saved_model(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(Warmup(Cosine(0.1, 20), 5, inner="beneath")), "mse")
    x = np.ones((8, 2), "float32")
    model.fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 8
    assert float(loaded.optimizer.learning_rate) == float(Warmup(Cosine(0.1, 20), 5, inner="beneath")(8))


def test_a_schedule_prints_compares_and_cannot_be_changed():
    schedule = Warmup(Cosine(0.1, 20), 5)
    assert schedule == Warmup(Cosine(0.1, 20), 5) != Warmup(Cosine(0.2, 20), 5)
    assert "decay_steps=20" in repr(schedule)
    with pytest.raises(AttributeError):
        schedule.steps = 6
    assert isinstance(schedule, Schedule) and isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)


# -- in an optimizer


def test_each_update_uses_the_rate_of_its_step_and_fit_traces_once():
    calls = []

    class Counting(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            calls.append(step)
            return Cosine(0.5, 8)(step)

    class Weight(keras.layers.Layer):
        def build(self, _):
            self.w = self.add_weight(shape=(), initializer="zeros")

        def call(self, x):
            return x * self.w

    model = keras.Sequential([keras.Input((1,)), Weight()])
    model.compile(keras.optimizers.SGD(Warmup(Counting(), 3, initial=0.1)), loss=lambda y, prediction: prediction)
    x = np.ones((1, 1), "float32")
    weights = [0.0]
    traced = []
    for _ in range(14):
        model.fit(x, x, verbose=0)
        weights.append(float(model.weights[0]))
        traced.append(len(calls))
    assert traced[0] == traced[-1]
    expected = values(Warmup(Cosine(0.5, 8), 3, initial=0.1), 14)
    np.testing.assert_allclose(-np.diff(weights), expected, atol=3e-7)


@pytest.mark.tensorflow
def test_one_trace_serves_every_step_and_xla_agrees():
    import tensorflow as tf

    schedule = Warmup(Cosine(1.0, 50), 41)
    for compiled in (tf.function(schedule), tf.function(schedule, jit_compile=True)):
        step = tf.Variable(0, dtype=tf.int64)
        found = []
        for index in range(100):
            step.assign(index)
            found.append(float(compiled(tf.identity(step))))
        assert found[41] == 1.0  # XLA makes 41 * (1 / 41) of 41 / 41, which is not 1
        assert compiled.experimental_get_tracing_count() == 1
        np.testing.assert_allclose(found, values(schedule, 100), rtol=3e-7, atol=1e-9)


# -- errors


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Cosine(-0.1, 5), ValueError, "`initial_learning_rate` must be a number at least 0"),
        (lambda: Cosine(0.1, 0), ValueError, "Received: decay_steps=0"),
        (lambda: Cosine(0.1, 5.0), TypeError, "`decay_steps` must be an integer"),
        (lambda: Cosine(0.1, 5, alpha=1.5), ValueError, "Received: alpha=1.5"),
        (lambda: Cosine(float("nan"), 5), ValueError, "initial_learning_rate=nan"),
        (lambda: Cosine(0.1, 2**31), ValueError, "`decay_steps`"),
        (lambda: Constant("fast"), TypeError, "Received: learning_rate='fast'"),
        (lambda: Warmup(0.1, -1), ValueError, "Received: steps=-1"),
        (lambda: Warmup(0.1, 5, initial=-1), ValueError, "Received: initial=-1"),
        (lambda: Warmup(0.1, 5, inner="befor"), ValueError, "`inner` must be one of 'after', 'beneath'"),
        (lambda: Warmup("cosine", 5), TypeError, "`schedule` must be a keras.optimizers.schedules"),
        (lambda: Warmup(Cosine, 5), TypeError, "`schedule` must be a keras.optimizers.schedules"),
        (lambda: Warmup(float("inf"), 5), ValueError, "Received: schedule=inf"),
    ],
)
def test_bad_arguments_fail_at_construction(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
