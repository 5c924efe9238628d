"""Every schedule against its closed form, other libraries' values, and what holds for all schedules."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from twins import cases, values

from keras_trainkit import schedules
from keras_trainkit.schedules import (
    REX,
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Sequence,
    Step,
    Tanh,
    Warmup,
)

RNG = np.random.default_rng(3)
GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "schedules.json"
LONG = 10_000_000
EDGES = [1, 10, 30, 80, 100, 200]  # hundredths of a run, where something may change


def steps_of(n):
    around = [n * edge // 100 + near for edge in EDGES for near in (-2, -1, 0, 1, 2)]
    found = [*range(min(n, 130)), *around, *(n - k for k in range(1, 60)), *RNG.integers(0, n, 200)]
    return np.array(sorted({int(step) for step in found if step >= 0}))


def relative(found, expected):
    return np.abs(found - expected) / np.maximum(np.abs(expected), 1e-30)


@pytest.mark.parametrize("number", range(len(cases(100))), ids=[name for name, _, _ in cases(100)])
@pytest.mark.parametrize("length", [100, LONG])
def test_a_schedule_is_its_closed_form(number, length):
    _, schedule, twin = cases(length)[number]
    steps = steps_of(length)
    expected = np.array([twin(int(step)) for step in steps])
    assert relative(np.array(schedule(steps)), expected).max() < 8e-7
    assert float(schedule(int(steps[-1]))) == pytest.approx(expected[-1], rel=8e-7, abs=1e-30)


@pytest.mark.parametrize("number", range(len(cases(100))), ids=[name for name, _, _ in cases(100)])
def test_configuration_survives_json_and_a_rate_is_a_scalar_of_float32(number):
    _, schedule, _ = cases(100)[number]
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    loaded = keras.optimizers.schedules.deserialize(config)
    assert loaded == schedule and type(loaded) is type(schedule)
    steps = np.arange(120)
    np.testing.assert_array_equal(np.array(loaded(steps)), np.array(schedule(steps)))
    rate = schedule(keras.Variable(7, dtype="int", trainable=False))
    assert tuple(rate.shape) == () and keras.backend.standardize_dtype(rate.dtype) == "float32"
    assert float(schedule(-5)) == float(schedule(0))


def test_numbers_of_numpy_become_numbers_of_python():
    # A configuration with others is no JSON, and rates would be computed in a dtype that nobody chose.
    def of_numpy(value):
        if isinstance(value, list):
            return [of_numpy(item) for item in value]
        kind = {int: np.int64, float: np.float32}.get(type(value))
        return value if kind is None else kind(value)

    for name, schedule, _ in cases(100):
        fields = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
        made = type(schedule)(**{key: of_numpy(value) for key, value in fields.items()})
        for key, value in fields.items():
            assert type(getattr(made, key)) is type(value), (name, key)
        json.dumps(made.get_config())


@pytest.mark.tensorflow
def test_one_trace_serves_every_step_of_every_schedule_and_xla_agrees():
    import tensorflow as tf

    every = [schedule for _, schedule, _ in cases(LONG)]
    steps = [0, 1, 999_999, 1_000_000, 1_000_001, 3_000_000, 8_765_432, 9_999_999, LONG, LONG + 5]
    expected = np.transpose([np.array(schedule(np.array(steps))) for schedule in every])
    for compiled in (
        tf.function(lambda step: [schedule(step) for schedule in every]),
        tf.function(lambda step: [schedule(step) for schedule in every], jit_compile=True),
    ):
        step = tf.Variable(0, dtype=tf.int64)
        found = []
        for number in steps:
            step.assign(number)
            found.append([float(rate) for rate in compiled(tf.identity(step))])
        assert compiled.experimental_get_tracing_count() == 1
        assert relative(np.array(found), expected).max() < 1e-6


def test_jax_compiles_every_schedule():
    if keras.backend.backend() != "jax":
        pytest.skip("this is for JAX")
    import jax

    every = [schedule for _, schedule, _ in cases(LONG)]
    compiled = jax.jit(lambda step: [schedule(step) for schedule in every])
    steps = (0, 1, 3_000_001, 9_999_999)
    expected = np.transpose([np.array(schedule(np.array(steps))) for schedule in every])
    found = np.array([[float(rate) for rate in compiled(step)] for step in steps])
    assert relative(found, expected).max() < 1e-6
    assert compiled._cache_size() == 1


def test_keras_drifts_where_a_power_goes_on_for_long():
    step, rate = 9_000_000, 0.9999995
    exact = rate**step
    theirs = keras.optimizers.schedules.ExponentialDecay(1.0, 1, rate)
    assert abs(float(theirs(step)) / exact - 1) > 0.05  # 0.9999995 as a float32, nine million times
    assert float(Exponential(1.0, rate)(step)) == pytest.approx(exact, rel=5e-7)


# -- values of other libraries

TRANSFORMERS = "transformers tests/optimization/test_optimization.py (lr=10, warm 2, total 10)"
CYCLIC = "torch/CyclicLR(base=0.1,max=1,step_size_up=4,step_size_down=6,{},gamma=0.9)"
WSD_NAME = "torch/po.get_wsd_schedule(warm 4,stable 6,decay 8,min 0.1,{})"
FOREIGN = [
    ("torch/OneCycleLR(max_lr=1,total_steps=20,cos)", "lr", OneCycle(1.0, 20)),
    ("torch/OneCycleLR(max_lr=1,total_steps=20,linear)", "lr", OneCycle(1.0, 20, annealing="linear")),
    ("torch/OneCycleLR(max_lr=1,total_steps=20,cos,three_phase)", "lr", OneCycle(1.0, 20, three_phase=True)),
    ("torch/OneCycleLR(max_lr=1,total_steps=20,cos)", "momentum", OneCycle(1.0, 20).momentum()),
    (
        "torch/OneCycleLR(max_lr=1,total_steps=20,linear)",
        "momentum",
        OneCycle(1.0, 20, annealing="linear").momentum(),
    ),
    (
        "torch/OneCycleLR(max_lr=1,total_steps=20,cos,three_phase)",
        "momentum",
        OneCycle(1.0, 20, three_phase=True).momentum(),
    ),
    *[(CYCLIC.format(mode), "lr", Cyclic(0.1, 1.0, 4, 6, mode, 0.9)) for mode in ("triangular", "triangular2")],
    (CYCLIC.format("exp_range"), "lr", Cyclic(0.1, 1.0, 4, 6, "exp_range", 0.9)),
    (
        "torch/CosineAnnealingWarmRestarts(T_0=5,T_mult=1,eta_min=0.1)",
        "lr",
        CosineRestarts(1.0, 5, alpha=0.1),
    ),
    ("torch/CosineAnnealingWarmRestarts(T_0=5,T_mult=2,eta_min=0)", "lr", CosineRestarts(1.0, 5, 2)),
    ("torch/PolynomialLR(total=10,power=2)", "lr", Polynomial(1.0, 10)),
    ("torch/MultiStepLR([3,7,12],0.5)", "lr", MultiStep(1.0, [3, 7, 12], 0.5)),
    ("torch/StepLR(4,0.3)", "lr", Step(1.0, 4, 0.3)),
    ("torch/LinearLR(0.1->1,5)", "lr", Linear(0.1, 5, 1.0)),
    ("torch/ExponentialLR(0.9)", "lr", Exponential(1.0, 0.9)),
    (
        "torch/SequentialLR(LinearLR(0.1,1,5)->CosineAnnealingLR(10);milestone 5)",
        "lr",
        Sequence([Linear(0.1, 5, 1.0), Cosine(1.0, 10)], [5]),
    ),
    (WSD_NAME.format("cosine"), "lr", WSD(1.0, 4, 6, 8, 0.1, "cosine")),
    (
        "optax/warmup_exponential_decay(0,1,4,5,0.5,end 0.1)",
        "lr",
        Warmup(Exponential(1.0, 0.5, 5, 0.1), 4),
    ),
    (
        "optax/sgdr([0.1,1,4,10,0.05],[0.1,0.5,2,20,0])",
        "lr",
        Sequence([Warmup(Cosine(1.0, 6, alpha=0.05), 4, initial=0.1), Warmup(Cosine(0.5, 18), 2, initial=0.1)], [10]),
    ),
    ("optax/polynomial(1,0.1,power 2,10,begin 3)", "lr", Warmup(Polynomial(1.0, 10, 0.1), 3, initial=1.0)),
    ("optax/piecewise_constant(1,{5:0.5,9:0.1})", "lr", schedules.Piecewise([5, 9], [1.0, 0.5, 0.05])),
    (
        "optax/join(linear 0->1 over 5, cosine 10)@5",
        "lr",
        Sequence([Linear(0.0, 5, 1.0), Cosine(1.0, 10)], [5]),
    ),
    ("timm/CosineLR(t_initial=6,cycle_mul=2,cycle_decay=.5,cycle_limit=3)", "lr", CosineRestarts(1.0, 6, 2, 0.5, 0, 3)),
    ("timm/CosineLR(k_decay=2)", "lr", Cosine(1.0, 20, k_decay=2.0)),
    ("timm/PolyLR(power=.5,20)", "lr", Polynomial(1.0, 20, power=0.5)),
]


def golden():
    if not GOLDEN.exists():
        pytest.skip("shared/golden/schedules.json is missing beside the checkout")
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(("name", "part", "schedule"), FOREIGN, ids=[f"{name} {part}" for name, part, _ in FOREIGN])
def test_golden_values(name, part, schedule):
    expected = np.array(golden()[name][part])
    np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("part", "schedule"),
    [
        ("constant_with_warmup(4)", Warmup(Constant(10.0), 4)),
        ("linear", Warmup(Linear(10.0, 8), 2)),
        ("cosine_hard_restarts(2)", Warmup(CosineRestarts(10.0, 4, limit=2), 2)),
        ("polynomial(2)", Warmup(Polynomial(10.0, 8, 1e-7), 2)),
        ("inverse_sqrt(2)", Warmup(InverseSqrt(10.0, 2), 2)),
    ],
)
def test_golden_values_of_transformers(part, schedule):
    expected = np.array(golden()[TRANSFORMERS][part])
    np.testing.assert_allclose(values(schedule, len(expected)), expected, atol=0.01)  # two decimals, cut off


def test_golden_values_where_the_definitions_differ_in_places():
    known = golden()
    rex = np.array(known["torch/REXScheduler(20,max=1,min=0)"]["lr"])
    assert rex[0] == 0  # theirs has not been set yet
    np.testing.assert_allclose(values(REX(1.0, 20), len(rex))[1:], rex[1:], rtol=1e-6)
    tanh = np.array(known["timm/TanhLR(20)"]["lr"])
    np.testing.assert_allclose(values(Tanh(1.0, 20), 20), tanh[:20], rtol=1e-6)
    assert tanh[20] == 0 and float(Tanh(1.0, 20)(20)) == pytest.approx(3.3535e-4, rel=1e-4)
    for shape in ("linear", "1-sqrt", "1-square"):
        cut_off = np.array(known[WSD_NAME.format(shape)]["lr"])
        ours = values(WSD(1.0, 4, 6, 8, 0.0, shape), len(cut_off))
        np.testing.assert_allclose(ours[:18], cut_off[:18], rtol=1e-6)
        np.testing.assert_allclose(cut_off[18:], 0.1)  # where ours is 0, and with alpha=0.1 arrives in time
    torch = np.array(known["torch/CosineAnnealingLR(T_max=10,eta_min=0.1)"]["lr"])
    np.testing.assert_allclose(values(Cosine(1.0, 10, alpha=0.1), 11), torch[:11], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        ("torch OneCycleLR", OneCycle(1.0, 20), [0.04, 0.131671843, 0.371671843, 0.668328157, 0.908328157, 1.0]),
        ("torch CyclicLR", Cyclic(0.1, 1.0, 4, 6, "exp_range", 0.9), [0.1, 0.3025, 0.4645, 0.592075, 0.69049]),
        ("torch StepLR", Step(1.0, 4, 0.3), [1, 1, 1, 1, 0.3, 0.3, 0.3, 0.3, 0.09]),
        ("optax polynomial", Warmup(Polynomial(1.0, 10, 0.1), 3, initial=1.0), [1, 1, 1, 1, 0.829, 0.676]),
        ("timm k_decay", Cosine(1.0, 20, k_decay=2.0), [1.0, 0.999984579, 0.99975328, 0.998751398, 0.996057351]),
    ],
)
def test_values_of_others_that_need_no_file(name, schedule, expected):
    np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=1e-6)


def test_step_and_exponential_equal_keras():
    theirs = keras.optimizers.schedules
    np.testing.assert_allclose(
        values(Exponential(0.5, 0.3, 7), 40), values(theirs.ExponentialDecay(0.5, 7, 0.3), 40), rtol=1e-6
    )
    staircase = theirs.ExponentialDecay(0.5, 7, 0.3, staircase=True)
    np.testing.assert_allclose(values(Step(0.5, 7, 0.3), 40), values(staircase, 40), rtol=1e-6)
    np.testing.assert_allclose(
        values(Polynomial(0.5, 20, 0.1, 1.5), 30), values(theirs.PolynomialDecay(0.5, 20, 0.1, 1.5), 30), rtol=1e-6
    )
    np.testing.assert_allclose(
        values(CosineRestarts(0.5, 4, 2, 0.5), 28), values(theirs.CosineDecayRestarts(0.5, 4, 2.0, 0.5), 28), atol=1e-7
    )
    late = theirs.PiecewiseConstantDecay([4], [1.0, 0.5])
    assert [float(late(step)) for step in (3, 4, 5)] == [1.0, 1.0, 0.5]
    assert [float(schedules.Piecewise([4], [1.0, 0.5])(step)) for step in (3, 4, 5)] == [1.0, 0.5, 0.5]


def test_one_cycles_of_optax_in_other_words():
    known = golden()
    linear = Sequence([Linear(0.04, 6, 1.0), Linear(1.0, 11, 0.04), Linear(0.04, 3, 4e-6)], [6, 11])
    for kind, schedule in (("linear", linear), ("cosine", OneCycle(1.0, 21, 1 / 3))):
        expected = np.array(known[f"optax/{kind}_onecycle(20,1)"]["lr"])
        np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=1e-6, atol=2e-7)


def test_every_golden_value_is_compared_somewhere():
    source = "".join((Path(__file__).parent / name).read_text() for name in ("test_families.py", "test_schedules.py"))
    built = {name for name, _, _ in FOREIGN} | {WSD_NAME.format(shape) for shape in ("linear", "1-sqrt", "1-square")}
    built |= {f"optax/{kind}_onecycle(20,1)" for kind in ("linear", "cosine")}
    assert [name for name in golden() if name not in built and name not in source] == []


# -- names


def test_get_and_list_know_every_schedule():
    names = schedules.list()
    assert {"cosine", "onecycle", "wsd", "rex", "sequence"} <= set(names) and "schedule" not in names
    assert schedules.list("*cos*") == ["cosine", "cosinerestarts"]
    found = schedules.get("One_Cycle", max_learning_rate=1.0, total_steps=20)
    assert found == OneCycle(1.0, 20)
    assert schedules.get(found) is found
    assert schedules.get({"name": "linear", "initial_learning_rate": 1.0}, decay_steps=3) == Linear(1.0, 3)
    assert schedules.get(keras.optimizers.schedules.serialize(found)) == found
    with pytest.raises(ValueError, match=r"Did you mean 'onecycle'"):
        schedules.get("onecycl")
    with pytest.raises(ValueError, match=r"`arguments` go with a name"):
        schedules.get(found, total_steps=3)


def test_a_cooldown_from_a_step_begins_at_that_step():
    assert WSD(1.0, 4).cool_down_from(10, 5) == WSD(1.0, 4, 6, 5)
    assert WSD(1.0, 4, decay_steps=7).cool_down_from(4) == WSD(1.0, 4, 0, 7)


# -- errors


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Linear(-1.0, 5), ValueError, "`initial_learning_rate` must be a number at least 0"),
        (lambda: Polynomial(1.0, 5, power=0), ValueError, "Received: power=0"),
        (lambda: Step(1.0, 0), ValueError, "Received: step_size=0"),
        (lambda: MultiStep(1.0, [7, 3]), ValueError, "`milestones` must not fall"),
        (lambda: MultiStep(1.0, 7), TypeError, "`milestones` must be a list"),
        (lambda: Exponential(1.0, 0.0), ValueError, "`decay_rate` must be a number above 0"),
        (lambda: Cosine(1.0, "10 epochs"), ValueError, "'10ep' (epochs) or '0.9run'"),
        (lambda: Cosine(1.0, "0run"), ValueError, "Received: decay_steps='0run'"),
        (lambda: CosineRestarts(1.0, 5, 0.5), ValueError, "`period_factor` must be a number at least 1"),
        (lambda: CosineRestarts(1.0, 1, 1.0001), ValueError, "at most 4096 periods"),
        (lambda: OneCycle(1.0, 1), ValueError, "Received: total_steps=1"),
        (lambda: OneCycle(1.0, 20, peak_at=1.0), ValueError, "Received: peak_at=1.0"),
        (lambda: OneCycle(1.0, 20, 0.6, three_phase=True), ValueError, "at most 0.5 with `three_phase`"),
        (lambda: OneCycle(1.0, 20).momentum(highest=1.5), ValueError, "Received: highest=1.5"),
        (lambda: Cyclic(0.1, 1.0, 4, mode="saw"), ValueError, "`mode` must be one of"),
        (lambda: Cyclic(0.1, 1.0, 2**31 - 1), ValueError, "`steps_up + steps_down`"),
        (lambda: WSD(1.0, 4, 6), TypeError, "Received: decay_steps=None"),
        (lambda: WSD(1.0, 4, 6, 8, shape="sqrt"), ValueError, "Did you mean '1-sqrt'"),
        (lambda: WSD(1.0, 4).cool_down_from(2, 5), ValueError, "`step` must be an integer at least 4"),
        (lambda: WSD(1.0, "1ep").cool_down_from(2, 5), ValueError, "`warmup_steps` must be resolved"),
        (lambda: Tanh(1.0, 5, lower=4.0), ValueError, "Received: lower=4.0"),
        (lambda: Warmup(1.0, 5, shape="exponential"), ValueError, "`initial` must be above 0"),
        (lambda: Sequence([1.0, 2.0], []), ValueError, "0 lengths for 2 schedules"),
        (lambda: Sequence([], []), TypeError, "at least one"),
        (lambda: Sequence([1.0, "cosine"], [3]), TypeError, "Received: schedules='cosine'"),
        (lambda: schedules.Piecewise([3], [1.0]), ValueError, "1 schedules for 1 boundaries"),
        (lambda: schedules.Repeat(1.0, 5, 0), ValueError, "Received: times=0"),
    ],
)
def test_bad_arguments_fail_at_construction(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
