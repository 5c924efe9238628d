"""MuP's learning rates in optimizers: which rule each class follows, what decays, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_trainkit import optimizers, precision, transforms
from keras_trainkit.initializers import mup
from keras_trainkit.initializers.mup_rules import _KNOWN
from keras_trainkit.testing.problems import WIDEST

RNG = np.random.default_rng(12)


def net(width, name="net", **options):
    hidden = [layers.Dense(width, "tanh", name=n, **options) for n in ("first", "second")]
    return keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(3, name="last", **options)], name=name)


def displacement(optimizer, gradients, steps=8):
    variable = keras.Variable(np.linspace(-1, 1, 4), dtype="float64", name="w")
    optimizer.build([variable])
    values = []
    for i in range(steps):
        optimizer.apply([ops.convert_to_tensor(gradients[i], "float64")], [variable])
        values.append(np.array(variable))
    return np.array(values)


@pytest.mark.parametrize(
    "name",
    [*_KNOWN],
)
def test_known_optimizers_follow_their_rule(name):
    keras.config.set_floatx("float64")
    gradients = RNG.normal(size=(8, 4))
    tiny = {} if name in ("lion", "sgd", "sgdw") else {"epsilon": 1e-30}
    make = lambda: optimizers.get(name, learning_rate=0.01, weight_decay=0.0, **tiny)  # noqa: E731
    # RAdam's first steps are linear in the gradients; what they add is small.
    first = 6 if name == "radam" else 0
    steps, larger = (np.diff(displacement(make(), c * gradients), axis=0)[first:] for c in (1, 1000))
    linear = name.startswith("sgd")
    # Moments in bfloat16 are rounded at random, by up to 1 / 128 of themselves: of steps of 0.01.
    tolerance = {"rtol": 0.02, "atol": 2e-4} if name == "adamw16" else {"rtol": 1e-6}
    if name != "adamw16" and WIDEST == "float32":  # differences of positions
        tolerance = {"rtol": 1e-3, "atol": 1e-6 + 1e-5 * np.abs(larger).max()}
    np.testing.assert_allclose(larger, steps * (1000 if linear else 1), **tolerance)
    other = gradients.copy()
    other[:, 1:] = RNG.normal(size=(8, 3))
    np.testing.assert_allclose(displacement(make(), other)[:, 0], displacement(make(), gradients)[:, 0], rtol=1e-3)
    assert mup(net(16), net(8)).optimizer(make()).after[0] == mup(net(16), net(8)).transform(
        "sgd" if linear else "adam"
    )


def test_each_variable_moves_by_its_factor():
    def moved(wrapped):
        model = net(32)
        model.set_weights([np.full(w.shape, 0.5) for w in model.get_weights()])
        parametrized = mup(model, net(8), rescale=False)
        optimizer = optimizers.RMSprop(0.125, epsilon=1e-30)
        optimizer = parametrized.optimizer(optimizer) if wrapped else optimizer
        optimizer.build(model.trainable_variables)
        optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
        return [w.reshape(-1)[0] - 0.5 for w in model.get_weights()], list(parametrized.factors("adam").values())

    (with_factors, factors), (without, _) = moved(True), moved(False)
    np.testing.assert_allclose(np.divide(with_factors, without), factors, rtol=1e-5)
    assert set(factors) == {1.0, 0.25}


def test_weight_decay_is_not_scaled():
    model = net(32)
    optimizer = mup(model, net(8)).optimizer(optimizers.AdamW(0.1, weight_decay=0.5))
    before = model.get_weights()
    optimizer.build(model.trainable_variables)
    optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a * 0.95, rtol=1e-5)
    decaying_inside = optimizers.Adan(1e-3, weight_decay=0.1)
    with pytest.raises(ValueError, match="must leave out `weight_decay`: Adan"):
        mup(net(32), net(8)).optimizer(decaying_inside)


def test_the_factors_come_first_so_that_lookahead_and_decays_do_not_see_them():
    optimizer = optimizers.Adam(1e-3, after=[transforms.DecoupledDecay(1e-4), transforms.Lookahead(6, 0.5)])
    kinds = [type(link).__name__ for link in mup(net(32), net(8)).optimizer(optimizer).after]
    assert kinds == ["ScaleByVariable", "DecoupledDecay", "Lookahead"]


def test_keras_optimizers_are_wrapped():
    model = net(32)
    wrapped = mup(model, net(8)).optimizer(keras.optimizers.Adam(1e-3, clipnorm=1.0))
    assert wrapped.clipnorm == 1.0 and isinstance(wrapped.after[0], transforms.ScaleByVariable)


@pytest.mark.parametrize(
    ("make", "rule", "error", "words"),
    [
        (lambda: optimizers.Muon(), "adam", ValueError, "moves matrices by their singular values"),
        (lambda: optimizers.LAMB(), None, ValueError, "sets the size of its steps"),
        (lambda: optimizers.ScheduleFreeAdamW(), "adam", ValueError, "follow from a state of its own"),
        (lambda: keras.optimizers.Ftrl(), None, ValueError, "follow from a state of its own"),
        (lambda: optimizers.Adagrad(), None, ValueError, "`rule` must be given for Adagrad"),
        (lambda: optimizers.Adam(), "adamw", ValueError, "Did you mean 'adam'"),
        (lambda: "adam", None, TypeError, "`optimizer` must be a Keras optimizer"),
        (
            lambda: precision.LossScaleOptimizer(optimizers.Adam()),
            None,
            ValueError,
            "one inside the LossScaleOptimizer",
        ),
    ],
)
def test_optimizers_without_a_rule_are_refused(make, rule, error, words):
    with pytest.raises(error, match=words):
        mup(net(16), net(8)).optimizer(make(), rule)


def test_a_class_of_ones_own_needs_a_rule_and_gets_it():
    class Mine(optimizers.Adam):
        pass

    with pytest.raises(ValueError, match="`rule` must be given for Mine"):
        mup(net(16), net(8)).optimizer(Mine())
    assert mup(net(16), net(8)).optimizer(Mine(), "sgd").after[0] == mup(net(16), net(8)).transform("sgd")
