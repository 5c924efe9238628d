"""Schedule-Free: what plain Keras's does wrong, the averages against third parties and their definition, the theory."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers
from keras_trainkit.testing.contracts import assert_close, fit, small_model
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden" / "optimizers.json"
ALL = [optimizers.ScheduleFreeSGD, optimizers.ScheduleFreeAdamW, optimizers.ScheduleFreeRAdam]
every_kind = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


def evaluated(optimizer):
    return [ops.convert_to_numpy(w) for w in optimizer.evaluation_weights()]


def noise(steps, shape=(3, 2)):
    rng = np.random.default_rng(1)
    return rng.normal(size=shape), [[rng.normal(size=shape)] for _ in range(steps)]


# ----------------------------------------------------------------------------------------------- plain Keras and ours


def after(kind, beta_1):
    initial, gradients = noise(5)
    return Stepper(kind(0.01, beta_1=beta_1), [initial], dtype="float32").run(gradients)[0]


@pytest.mark.tensorflow
def test_beta_1_counts():
    if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
        theirs = [after(keras.optimizers.ScheduleFreeAdamW, beta_1) for beta_1 in (0.5, 0.9)]
        np.testing.assert_allclose(*theirs, atol=1e-6)  # nothing but rounding
    assert np.abs(after(optimizers.ScheduleFreeAdamW, 0.5) - after(optimizers.ScheduleFreeAdamW, 0.9)).max() > 1e-4


@pytest.mark.tensorflow
def test_a_pretrained_model_survives_the_first_step_of_fit():
    def moved(module):
        model = small_model(module.ScheduleFreeAdamW(1e-4))
        before = model.get_weights()
        rng = np.random.default_rng(0)
        model.fit(rng.normal(size=(8, 5)), rng.normal(size=(8, 3)), batch_size=8, verbose=0)
        return max(np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True))

    if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
        assert moved(keras.optimizers) > 0.1  # z is 0 there
    assert moved(optimizers) < 1.01e-4


# ------------------------------------------------------------------------------------------ third parties, definition


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the vectors of third parties: ../shared/golden/optimizers.json")
@pytest.mark.parametrize(
    ("method", "kind", "rate", "options"),
    [
        ("sf_sgd", optimizers.ScheduleFreeSGD, 1.0, {}),
        ("sf_adamw", optimizers.ScheduleFreeAdamW, 0.01, {}),
        ("sf_adamw_warm5", optimizers.ScheduleFreeAdamW, 0.01, {"warmup_steps": 5}),
    ],
)
def test_x_is_the_authors(method, kind, rate, options):
    vectors = json.loads(GOLDEN.read_text())
    initial = [np.array(p) for p in vectors["initial"]]
    optimizer = kind(rate, **options)
    Stepper(optimizer, initial, dtype="float32").run([[np.array(g) for g in s] for s in vectors["gradients"]])
    assert_close(evaluated(optimizer), [np.array(x) for x in vectors["final"][method]["schedulefree(x)"]], 1e-5)


@every_kind
@pytest.mark.parametrize(
    "options", [{}, {"r": 2.0}, {"weight_lr_power": 0.0, "weight_decay": 0.1}, {"warmup_steps": 30}], ids=str
)
def test_x_is_the_weighted_average_of_z(kind, options):
    if kind is optimizers.ScheduleFreeRAdam:
        options = {name: value for name, value in options.items() if name != "warmup_steps"}
    initial, gradients = noise(60)
    falling = keras.optimizers.schedules.PolynomialDecay(0.05, 50, 0.01)
    optimizer = kind(falling, **options)
    step = Stepper(optimizer, [initial])
    total, weights = np.zeros_like(initial), 0.0
    for t, gradient in enumerate(gradients, 1):
        step(gradient)
        slots = dict([*optimizer._slots.named(0), *optimizer._slots.named_common()])
        z, peak = ops.convert_to_numpy(slots["z"]), float(ops.convert_to_numpy(slots["peak"]))
        weight = t ** options.get("r", 0.0) * peak ** options.get("weight_lr_power", 2.0)
        total, weights = total + weight * z, weights + weight
    np.testing.assert_allclose(evaluated(optimizer)[0], total / weights, rtol=EXACT, atol=EXACT)
    y = step.parameters()[0]
    np.testing.assert_allclose(y, 0.1 * z + 0.9 * total / weights, rtol=EXACT, atol=EXACT)


def test_the_largest_rate_counts():
    """A rate that falls does not take weight from the later z's; one that rises gives it to them."""
    initial, gradients = noise(10, shape=(4,))

    def weights(rate):
        optimizer = optimizers.ScheduleFreeSGD(rate)
        Stepper(optimizer, [initial]).run(gradients)
        slots = dict(optimizer._slots.named_common())
        return [float(ops.convert_to_numpy(slots[name])) for name in ("peak", "mass")]

    assert weights(keras.optimizers.schedules.PolynomialDecay(0.5, 10, 0.1)) == [0.5, 10.0]
    peak, mass = weights(keras.optimizers.schedules.PolynomialDecay(0.1, 9, 1.0))
    assert peak == pytest.approx(1.0)
    assert mass == pytest.approx(sum((0.1 * k) ** 2 for k in range(1, 11)), rel=1e-5)


def test_the_share_of_the_newest_is_exact_after_millions_of_steps():
    from keras_trainkit.transforms.schedule_free import newest_share

    weight = ops.convert_to_tensor(np.float32(0.0025**2))
    mass, share = newest_share(weight, weight, ops.convert_to_tensor(np.float32(9_999_999)))
    assert float(mass) == 1e7 and float(share) == np.float32(1e-7)


# ------------------------------------------------------------------------------------------------------------- theory


@every_kind
def test_x_converges_where_y_and_z_oscillate(kind):
    """On a bowl with noisy gradients the constant rate keeps z and y moving; the loss of x falls like 1/steps."""
    rng = np.random.default_rng(2)
    curvature = np.linspace(0.5, 2.0, 100)
    blend = {"momentum" if kind is optimizers.ScheduleFreeSGD else "beta_1": 0.5}
    optimizer = kind(0.1, weight_lr_power=0.0, **blend)
    step = Stepper(optimizer, [np.ones(100)])

    def loss(point):
        return 0.5 * float((curvature * point**2).sum())

    tail, at = {"x": [], "y": [], "z": []}, {}
    for t in range(1, 1601):
        y = step.parameters()[0]
        step([curvature * y + rng.normal(size=100)])
        if 500 < t <= 700:
            z = ops.convert_to_numpy(dict(optimizer._slots.named(0))["z"])
            for name, value in {"x": evaluated(optimizer)[0], "y": y, "z": z}.items():
                tail[name].append(loss(value))
        if t in (400, 1600):
            at[t] = loss(evaluated(optimizer)[0])
    mean = {name: np.mean(values) for name, values in tail.items()}
    assert mean["x"] < mean["y"] / 3 < mean["z"] / 9, mean
    assert np.std(tail["x"]) < np.std(tail["y"]) / 2 < np.std(tail["z"]) / 4
    assert at[1600] < at[400] / 4, at


# ----------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_follow_the_float32_run(dtype):
    """y moves by less than a step of bfloat16; the state's float32 copy keeps what the variable loses."""
    initial, gradients = noise(400)
    constant = [gradients[0]] * 400
    ends = {}
    for kind in (dtype, "float32"):
        optimizer = optimizers.ScheduleFreeAdamW(1e-4)
        rounded = initial.astype("float32") if kind == "float32" else initial
        if kind == "float32":
            rounded = ops.convert_to_numpy(ops.cast(ops.cast(initial, dtype), "float32"))
        step = Stepper(optimizer, [rounded], dtype=kind)
        step.run([[g.astype("float32") for g in s] for s in constant])
        ends[kind] = (step.parameters()[0].astype("float32"), evaluated(optimizer)[0].astype("float32"))
    for half, single in zip(ends[dtype], ends["float32"], strict=True):
        np.testing.assert_allclose(half, single, rtol=1 / 128, atol=2e-3)
    assert np.abs(ends["float32"][0] - initial).max() > 0.01


def test_half_precision_weights_set_from_outside_count():
    step = Stepper(optimizers.ScheduleFreeSGD(0.1), [np.ones(3)], dtype="bfloat16")
    step([np.ones(3, "float32")])
    step.variables[0].assign(ops.full((3,), 5.0))
    step([np.zeros(3, "float32")])
    moved = step.parameters()[0].astype("float32")
    np.testing.assert_allclose(moved, 5 + 0.5 * (0.9 - 5), rtol=0.01)


# ------------------------------------------------------------------------------------------------------- in training


@every_kind
def test_the_exchange_there_and_back(kind, tmp_path):
    model = small_model(kind(0.05))
    fit(model, epochs=2)
    y = model.get_weights()
    x = evaluated(model.optimizer)
    assert max(np.abs(a - b).max() for a, b in zip(x, y, strict=True)) > 1e-4
    model.optimizer.to_evaluation()
    assert_close(model.get_weights(), x, 0.0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert_close(again.get_weights(), x, 0.0)
    for trained in (model, again):
        trained.optimizer.to_training()
        assert_close(trained.get_weights(), y, 0.0)
        fit(trained, epochs=1)
    assert_close(again.get_weights(), model.get_weights(), 0.0)


def test_replaced_weights_are_taken_for_x():
    """As the authors' `train()` does: the best weights of an early stop are an x, and y follows from it and z."""
    model = small_model(optimizers.ScheduleFreeSGD(0.1))
    fit(model, epochs=1)
    model.optimizer.to_evaluation()
    best = [w + 0.5 for w in model.get_weights()]
    model.set_weights(best)
    model.optimizer.to_training()
    assert_close(evaluated(model.optimizer), best, 1e-6)
    assert_close(model.get_weights(), [
        0.9 * x + 0.1 * ops.convert_to_numpy(dict(model.optimizer._slots.named(i))["z"]) for i, x in enumerate(best)
    ], 1e-6)  # fmt: skip


def test_the_silent_phase_moves_nothing():
    initial, gradients = noise(5)
    step = Stepper(optimizers.ScheduleFreeRAdam(0.1), [initial])
    np.testing.assert_array_equal(step.run(gradients[:4])[0], initial.astype(WIDEST))
    assert np.abs(step.run(gradients[4:])[0] - initial).max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 0.0}, "`momentum` must be a number above 0 and below 1"),
        ({"momentum": 1.0}, "`momentum` must be a number above 0 and below 1"),
        ({"warmup_steps": -1}, "`warmup_steps` must be an integer at least 0"),
        ({"r": -0.5}, "`r` must be a number at least 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizers.ScheduleFreeSGD(**arguments)
