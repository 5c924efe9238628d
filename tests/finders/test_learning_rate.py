"""The range test: nothing is left of it, the losses are those of the rates, and the rules say what they promise."""

import random

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, data, finders, optimizers, precision, schedules
from keras_trainkit.core import backend
from keras_trainkit.finders import learning_rate_rules as rules
from keras_trainkit.resuming import snapshot

RNG = np.random.default_rng(3)
tensorflow = pytest.mark.tensorflow
X = RNG.normal(size=(48, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]], "float32") + 0.3).astype("float32")
SHORT = {"minimum": 1e-4, "maximum": 1.0, "steps": 12, "seeds": 2, "batch_size": 8}


def linear(optimizer, **options):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer, "mse", **options)
    return model


def noisy(optimizer, **options):
    """Dropout, normalization, metrics: all that has state."""
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.4)]
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    return model


def everything(model):
    """All that must stay, as bytes and objects."""
    groups = snapshot.variables(model)
    values = {name: [np.asarray(backend.held(copy)).tobytes() for v in group for copy in _copies(v, model)]
              for name, group in groups.items()}  # fmt: skip
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    objects = [id(model.train_function), id(backend.rate_object(optimizer)), id(getattr(model, "history", None))]
    generators = [random.getstate(), np.random.get_state()[1].tolist(), backend.operation_seeds()]
    return values, objects, generators


def _copies(variable, model):
    return backend.copies(variable, getattr(model, "distribute_strategy", None))


def scaled_adam():
    return precision.LossScaleOptimizer(optimizers.Adam(schedules.Cosine(0.01, 100)), dynamic_growth_steps=3)


CASES = {
    "a schedule, windows that carry and an average": (
        lambda: optimizers.Adam(
            schedules.Warmup(schedules.Cosine(0.01, 100), 5), use_ema=True, gradient_accumulation_steps=4,
            last_window="carry",
        ),
        {},
    ),
    "a number, Keras's": (lambda: keras.optimizers.Adam(0.01), {}),
    "loss scaling": (scaled_adam, {}),
    "several steps at once": (lambda: optimizers.SGD(lambda: 0.01, momentum=0.9), {"steps_per_execution": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_of_it(case):
    make, options = CASES[case]

    def trained(finds):
        keras.utils.set_random_seed(1)
        model = noisy(make(), **options)
        model.fit(X, Y, batch_size=7, epochs=1, verbose=0)
        if finds:
            before = everything(model)
            found = finders.learning_rate(model, X, Y, **SHORT)
            assert everything(model) == before
            assert len(found.curves) == 2 and all(len(curve.rates) >= 3 for curve in found.curves)
        model.fit(X, Y, batch_size=7, epochs=2, verbose=0)
        return model.get_weights()

    for with_it, without in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(with_it, without)


# On JAX the first `fit` draws one order of the data more than later ones, to build by; a sweep is a first `fit`.
@tensorflow
@pytest.mark.parametrize("kit", [True, False], ids=["the kit", "Keras"])
def test_before_the_first_step_too(kit):
    def trained(finds):
        keras.utils.set_random_seed(1)
        model = noisy(optimizers.AdamW(0.01) if kit else keras.optimizers.AdamW(0.01))
        keras.random.normal((1,))  # from here on Keras has a generator of its own, which layers without a seed share
        if finds:
            finders.learning_rate(model, X, Y, **SHORT)
            assert model.train_function is None and int(model.optimizer.iterations) == 0
        model.fit(X, Y, batch_size=7, epochs=2, verbose=0)
        return model.get_weights()

    for with_it, without in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(with_it, without)


@tensorflow
def test_on_two_replicas(two_replicas):
    with two_replicas.scope():
        model = noisy(optimizers.Adam(schedules.Cosine(0.01, 100), gradient_accumulation_steps=2))
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    before = everything(model)
    found = finders.learning_rate(model, X, Y, **SHORT)
    assert everything(model) == before
    assert len(found.curves[0].rates) == 12


def test_an_error_in_the_middle_leaves_nothing_either():
    class Failing(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            if index == 4:
                raise OSError("the disk has gone")
            return X[:8], Y[:8]

    model = noisy(optimizers.Adam(0.01))
    model.fit(X, Y, batch_size=8, verbose=0)
    before = everything(model)
    with pytest.raises(Exception, match="the disk has gone"):
        finders.learning_rate(model, Failing(), **{**SHORT, "batch_size": None})
    assert everything(model) == before


def descent(rates):
    """The loss before each step of gradient descent on the whole data, in NumPy, and the weights after them."""
    w, b, losses = np.zeros((3, 1)), 0.0, []
    x, y = X.astype("float64"), Y.astype("float64")
    for rate in rates:
        error = x @ w + b - y
        losses.append(float((error**2).mean()))
        w, b = w - rate * 2 * x.T @ error / len(x), b - rate * 2 * error.mean()
    return np.array(losses)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(0.5),
        lambda: optimizers.SGD(schedules.Cosine(0.5, 10), gradient_accumulation_steps=3),
        lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=3),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.1)),
    ],
    ids=["the kit", "the kit's windows", "Keras's windows", "a schedule of Keras's"],
)
def test_the_losses_are_those_of_descent_at_the_rates(make):
    found = finders.learning_rate(
        linear(make()), X, Y, batch_size=48, minimum=1e-3, maximum=0.3, steps=25, seeds=1, smoothing=0
    )
    (curve,) = found.curves
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-3, 0.3, 25), rtol=1e-12)
    np.testing.assert_allclose(curve.losses, descent(curve.rates), rtol=2e-4)
    np.testing.assert_array_equal(curve.smoothed, curve.losses)
    assert curve.ended == "range"


def test_several_steps_at_once_are_one_point_each():
    model = linear(optimizers.SGD(0.5), steps_per_execution=4)
    (curve,) = finders.learning_rate(
        model, endless(48), steps_per_epoch=4, minimum=1e-3, maximum=0.3, steps=24, seeds=1
    ).curves
    rates = np.geomspace(1e-3, 0.3, 24).reshape(6, 4)
    np.testing.assert_allclose(curve.rates, np.exp(np.log(rates).mean(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(curve.losses, descent(rates.ravel()).reshape(6, 4).mean(axis=1), rtol=2e-4)


def test_it_ends_where_the_loss_diverges_and_suggests_a_rate_below():
    limit = 2 / np.linalg.eigvalsh(2 * X.T.astype("float64") @ X / len(X)).max()  # of gradient descent
    found = finders.learning_rate(linear(optimizers.SGD(1.0)), X, Y, batch_size=48, seeds=1, minimum=1e-4, maximum=1e3)
    assert found.curves[0].ended == "diverged" and len(found.curves[0].rates) < 100
    assert all(1e-3 < rate < limit for rate in found.suggestions.values())
    assert found.suggestion == found.suggestions["combined"]


def test_the_end_without_a_finite_loss():
    class Overflowing(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.exp(keras.ops.square(y_pred - y_true))

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizers.SGD(1.0), Overflowing())
    (curve,) = finders.learning_rate(
        model, X, 0.1 * Y, batch_size=48, seeds=1, minimum=1e-4, maximum=1e6, divergence=1e30
    ).curves
    assert curve.ended == "not finite" and np.isfinite(curve.losses).all()


@tensorflow
def test_two_optimizers_keep_the_ratio_of_their_rates():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    from keras.optimizers import MultiOptimizer, OptimizerMap

    made = OptimizerMap(keras.optimizers.SGD(0.1), {".*second/.*": keras.optimizers.SGD(0.0)})
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1, name="second")])
    model.compile(MultiOptimizer(made), "mse")
    weights = model.get_weights()
    kept = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kept["second"] = self.model.layers[1].kernel.numpy()
            kept["first"] = self.model.layers[0].kernel.numpy()

    finder = callbacks.LearningRateFinder(minimum=1e-3, maximum=0.1, steps=10)
    model.fit(X, Y, batch_size=8, epochs=50, verbose=0, callbacks=[Look(), finder])
    np.testing.assert_array_equal(kept["second"], weights[2])
    assert np.abs(kept["first"] - weights[0]).max() > 1e-3
    for value, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, before)


def test_the_callback_leaves_nothing_and_tells_in_any_company():
    model = noisy(optimizers.Adam(schedules.Cosine(0.01, 100)))
    model.fit(X, Y, batch_size=8, verbose=0)
    before = everything(model)[0]
    rate = backend.rate_object(model.optimizer)
    finder = callbacks.LearningRateFinder(minimum=1e-4, maximum=1.0, steps=12)
    model.fit(X, Y, batch_size=8, epochs=50, verbose=0, callbacks=[finder, keras.callbacks.TerminateOnNaN()])
    assert everything(model)[0] == before
    assert backend.rate_object(model.optimizer) is rate
    assert finder.result.suggestion is not None and len(finder.result.curves[0].rates) == 12
    again = callbacks.LearningRateFinder(**finder.get_config())
    assert again.get_config() == finder.get_config()


def batches():
    return data.Batches(X, Y, batch_size=8, seed=1)


def test_the_position_in_the_kits_data_stays():
    model, fed = linear(optimizers.SGD(0.1)), batches()
    model.fit(fed, epochs=1, verbose=0)
    state = fed.state()
    found = finders.learning_rate(model, fed, **{**SHORT, "batch_size": None})
    assert fed.state() == state
    # Another epoch, another order: each sweep sees other batches.
    assert not np.array_equal(found.curves[0].losses, found.curves[1].losses)


def endless(size=8):
    while True:
        yield X[:size], Y[:size]


@tensorflow
def test_other_data():
    import tensorflow as tf

    model, short = linear(optimizers.SGD(0.1)), {**SHORT, "batch_size": None}
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    assert len(finders.learning_rate(model, dataset, **short).curves[1].rates) == 12
    assert len(finders.learning_rate(model, endless(), **short).curves[1].rates) == 12


def test_losses_that_are_never_finite():
    with pytest.raises(ValueError, match="too few updates to judge by: the loss became infinite or NaN"):
        finders.learning_rate(linear(optimizers.SGD(0.1)), X, np.nan * Y, **SHORT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minimum": 0}, "`minimum`"),
        ({"minimum": 1.0, "maximum": 0.1}, "`maximum`"),
        ({"steps": 3}, "`steps`"),
        ({"seeds": 0}, "`seeds`"),
        ({"seeds": []}, "`seeds`"),
        ({"smoothing": 1.0}, "`smoothing`"),
        ({"divergence": 1.0}, "`divergence`"),
        ({"rule": "best"}, "`rule`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        finders.learning_rate(linear(optimizers.SGD(0.1)), X, Y, **arguments)
    if "seeds" not in arguments:
        with pytest.raises(ValueError, match=message):
            callbacks.LearningRateFinder(**arguments)


def test_a_model_that_is_not_compiled():
    with pytest.raises(ValueError, match="must be compiled"):
        finders.learning_rate(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), X, Y)


# --------------------------------------------------------------------------------------------------------------- rules


def slow_valley(rates, losses):
    """The longest falling subsequence by trying all pairs."""
    lengths = [1] * len(losses)
    for i in range(len(losses)):
        for j in range(i):
            if losses[i] < losses[j]:
                lengths[i] = max(lengths[i], lengths[j] + 1)
    end = lengths.index(max(lengths))
    return rates[end - max(lengths) // 2] if max(lengths) > 1 else None


def slow_slide(rates, losses):
    """Two points that go down step by step, as long as their slopes differ."""
    slopes = np.gradient(losses)
    lowest = list(losses).index(min(losses))
    limit, right, answer = 0.4 * -min(slopes[: lowest + 1]), len(losses) - 1, None
    while right >= 15 and abs(slopes[right] - slopes[right - 15]) > limit:
        answer = rates[right - 15]
        right -= 1
    return answer if answer is None else min(answer, rates[lowest])


def random_curve():
    rates = np.geomspace(1e-5, 1.0, 60)
    fall = 2.0 / (1 + np.exp(2.5 * (np.log10(rates) + RNG.uniform(2, 4))))
    return rates, fall + 3 * rates ** RNG.uniform(0.8, 2) + RNG.uniform(0, 0.05) * RNG.normal(size=60)


def test_the_rules_against_slow_ones():
    for _ in range(50):
        rates, losses = random_curve()
        assert rules.valley(rates, losses) == slow_valley(rates, losses)
        assert rules.slide(rates, losses) == slow_slide(rates, losses)
        lowest = int(np.argmin(losses))
        assert rules.minimum_tenth(rates, losses) == rates[lowest] / 10
        slopes = [(losses[i + 1] - losses[i - 1]) / 2 for i in range(1, lowest + 1)]
        first = losses[1] - losses[0]
        assert rules.steepest(rates, losses) == rates[int(np.argmin([first, *slopes]))]


def test_the_units_of_the_loss_do_not_matter():
    rates, losses = random_curve()
    said = rules.suggestions(rates, losses)
    for name, rate in rules.suggestions(rates, 1000 * losses + 7).items():
        assert rate == pytest.approx(said[name], rel=1e-12)


def test_sliding_goes_on_through_a_fall_and_a_rise_but_not_through_noise():
    """Flat, a fall, flat, a rise: the noise of batches is far below both, and above what fastai counts."""
    rates = np.geomspace(1e-6, 1.0, 100)
    shape = np.interp(np.arange(100), [0, 60, 75, 85, 100], [2.3, 2.3, 0.5, 0.5, 6.0])
    for _ in range(20):
        said = rules.slide(rates, shape + RNG.normal(size=100) * 0.01)
        assert rates[44] <= said <= rates[76]
    # An answer behind the lowest point would be where the loss rises.
    rise = 0.5 + 0.05 * np.arange(1, 26)
    late = np.concatenate([np.full(40, 2.3), np.linspace(2.2, 0.5, 20), rise, np.geomspace(2, 60, 15)])
    assert rules.slide(rates, late) == rates[59]


def test_the_steepest_point_of_a_sigmoid_is_its_middle():
    rates = np.geomspace(1e-4, 1.0, 81)
    assert rules.steepest(rates, 1 / (1 + np.exp(4 * np.log10(rates / 1e-2)))) == pytest.approx(1e-2)


def test_a_curve_that_only_rises_suggests_nothing():
    rates = np.geomspace(1e-4, 1.0, 40)
    assert set(rules.suggestions(rates, np.linspace(1, 2, 40)).values()) == {None}
    curve = finders.Curve(rates, np.linspace(1, 2, 40), np.linspace(1, 2, 40), "range")
    found = finders.LearningRates([curve])
    assert found.suggestion is None and "-" in str(found)
    found.plot()


def test_the_average_over_sweeps_and_its_spread(tmp_path):
    curves = []
    for seed in range(3):
        rates, losses = random_curve()
        curves.append(finders.Curve(rates, losses, rules.smoothed(losses, 0.5), "range", seed))
    found = finders.LearningRates(curves, "valley")
    each = [rules.suggestions(curve.rates, curve.smoothed) for curve in curves]
    for name, one in found.by_rule.items():
        values = [said[name] for said in each]
        assert one.each == values and one.low == min(values) and one.high == max(values)
        assert one.rate == pytest.approx(np.exp(np.mean(np.log(values))))
        assert one.spread == pytest.approx(max(values) / min(values))
    combined = [np.exp(np.mean([np.log(said[name]) for name in rules.RULES])) for said in each]
    np.testing.assert_allclose(found.by_rule["combined"].each, combined)
    assert found.suggestion == found.suggestions["valley"]
    assert f"{found.suggestion:.3g}" in str(found) and "3 sweeps: every rate was tried" in str(found)
    found.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 1000
    assert found.to_dict()["sweeps"][2]["seed"] == 2
