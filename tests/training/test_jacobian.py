"""`jacobian_penalty`: the exact Jacobian in NumPy, the estimate's mean, and every way to train."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision, training
from keras_trainkit.testing.contracts import assert_close, small_model
from keras_trainkit.testing.problems import WIDEST
from keras_trainkit.training import jacobian

RNG = np.random.default_rng(61)
X, Y = RNG.normal(size=(8, 4)), RNG.normal(size=(8, 3))
START = [RNG.normal(size=(4, 5)), RNG.normal(size=(5, 3))]
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 0.0, 1.0])
CLOSE = 1e-8 if WIDEST == "float64" else 3e-5
tensorflow = pytest.mark.tensorflow


# ------------------------------------------------------------------------------------------------------ NumPy twins


def norms(weights):
    """For each sample the squared norm of the Jacobian of tanh(x A) B, spelled out."""
    first, second = weights
    found = []
    for x in X:
        hidden = np.tanh(x @ first)
        jacobian_of_x = second.T @ np.diag(1 - hidden**2) @ first.T
        found.append((jacobian_of_x**2).sum())
    return np.array(found)


def objective(weights, strength, sample_weight=1.0):
    errors = (np.tanh(X @ weights[0]) @ weights[1] - Y) ** 2
    return (sample_weight * errors.mean(axis=1)).mean() + strength / 2 * (sample_weight * norms(weights)).mean()


def slope(function, weights, size=1e-6):
    """Central differences of a function of a list of arrays."""
    gradients = [np.zeros_like(w) for w in weights]
    for w, g in zip(weights, gradients, strict=True):
        for place in np.ndindex(w.shape):
            kept = w[place]
            w[place] = kept + size
            above = function(weights)
            w[place] = kept - size
            g[place] = (above - function(weights)) / (2 * size)
            w[place] = kept
    return gradients


def network(optimizer=None, **compiled):
    keras.config.set_floatx(WIDEST)
    keras.config.set_dtype_policy(WIDEST)
    layers = [keras.layers.Dense(5, activation="tanh", use_bias=False), keras.layers.Dense(3, use_bias=False)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer or optimizers.SGD(0.1), "mse", **({"jit_compile": False} | compiled))
    model.set_weights(START)
    return model


def trained(model, epochs=2, **options):
    history = model.fit(X, Y, **({"batch_size": 8, "shuffle": False, "verbose": 0} | options), epochs=epochs)
    return model.get_weights(), history.history


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS])
def test_all_projections_give_the_exact_gradient(sample_weight):
    weights, factors = [w.copy() for w in START], 1.0 if sample_weight is None else sample_weight
    ours, history = trained(training.jacobian_penalty(network(), 0.3, None), 3, sample_weight=sample_weight)
    for step in range(3):
        assert history["jacobian"][step] == pytest.approx((factors * norms(weights)).mean(), rel=1e-5)
        assert history["loss"][step] == pytest.approx(objective(weights, 0.3, factors), rel=1e-5)
        gradients = slope(lambda w: objective(w, 0.3, factors), weights)
        weights = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
    for a, b in zip(ours, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 if WIDEST == "float64" else 1e-4)


def test_the_strength_may_be_a_schedule():
    falling = keras.optimizers.schedules.PolynomialDecay(0.3, 3, 0.0)
    ours, _ = trained(training.jacobian_penalty(network(), falling, 3), 3)
    weights = [w.copy() for w in START]
    for strength in (0.3, 0.2, 0.1):
        gradients = slope(functools.partial(objective, strength=strength), weights)
        weights = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
    for a, b in zip(ours, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projections", [1, 2])
def test_the_estimate_has_no_bias(projections):
    # One sample many times: the mean over the batch is a mean over as many independent directions.
    rows = 20_000
    out = ops.convert_to_tensor(np.zeros(()), "uint32")
    drawn = jacobian.directions(rows, 5, projections, seed=3, word=out, dtype="float32")
    found = np.stack([ops.convert_to_numpy(v) for v in drawn], axis=1)
    gram = np.einsum("rid,rjd->rij", found, found)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(projections), gram.shape), atol=1e-5)
    matrix = np.random.default_rng(1).normal(size=(5, 7))
    estimates = 5 / projections * ((found @ matrix) ** 2).sum(axis=(1, 2))
    error = estimates.std() / np.sqrt(rows)
    assert abs(estimates.mean() - (matrix**2).sum()) < 5 * error
    assert error < 0.02 * (matrix**2).sum()
    # No direction is preferred: E v v' = I / 5.
    second = np.einsum("rid,rie->de", found, found) / rows / projections
    assert np.abs(second - np.eye(5) / 5).max() < 5 * 0.3 / np.sqrt(rows)


def test_directions_change_from_step_to_step_and_follow_from_the_seed():
    def measured(seed, epochs, batch_size=4):
        model = training.jacobian_penalty(network(optimizers.SGD(0.0)), 0.1, 1, seed=seed)
        return np.array(trained(model, epochs, batch_size=batch_size)[1]["jacobian"])

    first = measured(0, 3)
    assert len(set(first)) == 3
    np.testing.assert_array_equal(measured(0, 3), first)
    assert (measured(1, 3) != first).all()
    # The second of two batches of equal rows has directions of its own, though no update lies between.
    model = training.jacobian_penalty(network(optimizers.SGD(0.0, gradient_accumulation_steps=2)), 0.1, 1)
    x, y = np.concatenate([X, X]), np.concatenate([Y, Y])
    both = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history["jacobian"][0]
    assert both != measured(0, 1, batch_size=8)[0]


def test_training_goes_on_from_a_file_with_the_same_directions(tmp_path):
    whole = training.jacobian_penalty(network(optimizers.Adam(0.05)), 0.2)
    trained(whole, 2, batch_size=4)
    whole.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert "train_step" not in vars(loaded)
    again = training.jacobian_penalty(loaded, 0.2)
    ends = [trained(model, 2, batch_size=4) for model in (whole, again)]
    assert_close(ends[1][0], ends[0][0], 0.0)
    assert ends[0][1] == ends[1][1]


# ----------------------------------------------------------------------------------------------- no trace of the pass


def noisy(optimizer=None, **compiled):
    keras.utils.set_random_seed(12)
    layers = [
        keras.layers.Dense(6, activity_regularizer="l2"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.Dropout(0.5, seed=3),
        keras.layers.Dense(3, kernel_regularizer="l2"),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    options = {"metrics": ["mae"], "jit_compile": False} | compiled
    model.compile(optimizer or optimizers.Adam(0.05), "mse", **options)
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [ops.convert_to_numpy(v) for v in variables]


def test_strength_zero_is_plain_training_bit_for_bit():
    helped, alone = training.jacobian_penalty(noisy(), 0.0, 2), noisy()
    ours, theirs = trained(helped, 3, batch_size=4)[1], trained(alone, 3, batch_size=4)[1]
    assert_close(state(helped), state(alone), 0.0)
    assert {k: v for k, v in ours.items() if k != "jacobian"} == theirs
    assert min(ours["jacobian"]) > 0


def test_the_pass_has_the_masks_of_the_first_one():
    # y = mask x w: where the masks are one and the same, the loss at y = 0 and the norm are proportional.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.0), "mse", jit_compile=False)
    history = training.jacobian_penalty(model, 0.0).fit(np.ones((64, 1)), np.zeros((64, 1)), epochs=3, verbose=0)
    np.testing.assert_allclose(history.history["loss"], history.history["jacobian"], rtol=1e-5)
    assert len(set(history.history["loss"])) > 1


def test_evaluation_knows_nothing_of_it_and_plain_takes_it_off():
    model = training.jacobian_penalty(noisy(), 0.5)
    results = model.fit(X, Y, epochs=1, verbose=0, validation_data=(X, Y)).history
    assert sorted(results) == ["jacobian", "loss", "mae", "val_loss", "val_mae"]
    assert len(model.evaluate(X, Y, verbose=0)) == 2
    with pytest.raises(ValueError, match="has a Jacobian penalty helper"):
        training.jacobian_penalty(model, 0.1)
    training.plain(model)
    assert sorted(trained(model, 1)[1]) == ["loss", "mae"]
    assert all(m.name != "jacobian" for m in model.metrics)
    assert "compute_loss" not in vars(model)


# --------------------------------------------------------------------------------------------- in every way to train


@tensorflow
def test_xla_eager_and_several_steps_equal_the_graph():
    def run(projections, **compiled):
        return trained(training.jacobian_penalty(network(**compiled), 0.3, projections), 3, batch_size=2)[0]

    for projections in (1, 2):
        graph = run(projections)
        assert_close(run(projections, jit_compile=True), graph, 1e-7)
        assert_close(run(projections, run_eagerly=True), graph, 1e-7)
        assert_close(run(projections, steps_per_execution=2), graph, 1e-12)


@tensorflow
@pytest.mark.parametrize("projections", [1, None])
def test_two_replicas_equal_one_device(two_replicas, projections):
    ends, models = [], []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            models.append(training.jacobian_penalty(small_model(optimizers.Adam(0.02)), 0.3, projections))
    models[1].set_weights(models[0].get_weights())
    for model in models:
        x, y = np.random.default_rng(0).normal(size=(16, 5)), np.zeros((16, 3))
        history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history
        ends.append([*model.get_weights(), *history["jacobian"], *history["loss"]])
    assert_close(ends[1], ends[0], 5e-6)


@tensorflow
def test_mixed_precision_with_loss_scaling():
    ends = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(6)
        layers = [keras.layers.Dense(5, "tanh"), keras.layers.Dense(3, dtype="float32")]
        model = keras.Sequential([keras.Input((4,)), *layers])
        optimizer = precision.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=2.0**10)
        model.compile(optimizer, "mse", jit_compile=False)
        ends.append(trained(training.jacobian_penalty(model, 0.3, 2), 5)[0])
        assert int(model.optimizer.iterations) == 5
    assert_close(ends[1], ends[0], 5e-3)
    before = model.get_weights()
    model.fit(6e4 * X, Y, batch_size=8, verbose=0)
    assert_close(model.get_weights(), before, 0.0)
    assert int(model.optimizer.skipped_steps) == 1


def test_accumulation_sums_the_penalties_of_its_parts():
    whole = trained(training.jacobian_penalty(network(), 0.3, None), 3)[0]
    parts = training.jacobian_penalty(network(optimizers.SGD(0.1, gradient_accumulation_steps=2)), 0.3, None)
    assert_close(trained(parts, 3, batch_size=4)[0], whole, 10 * CLOSE)


def test_either_way_around_sam():
    def both(first, second):
        return trained(second(first(network())), 3, batch_size=4)[0]

    penalized, sharp = lambda m: training.jacobian_penalty(m, 0.3), lambda m: training.sam(m, 0.2)
    inside = both(penalized, sharp)
    assert_close(both(sharp, penalized), inside, 10 * CLOSE)
    alone = trained(sharp(network()), 3, batch_size=4)[0]
    assert max(np.abs(a - b).max() for a, b in zip(inside, alone, strict=True)) > 1e-3
    # The second gradient, by hand.
    weights = [w.copy() for w in START]
    first = slope(lambda w: objective(w, 0.3), weights)
    size = np.sqrt(sum((g**2).sum() for g in first))
    second = slope(lambda w: objective(w, 0.3), [w + 0.2 * g / size for w, g in zip(weights, first, strict=True)])
    ours = trained(training.sam(training.jacobian_penalty(network(), 0.3, None), 0.2), 1)[0]
    for a, w, g in zip(ours, weights, second, strict=True):
        np.testing.assert_allclose(a, w - 0.1 * g, rtol=1e-4, atol=1e-4)


@tensorflow
def test_inside_of_micro_batches_and_weighed():
    whole, history = trained(training.jacobian_penalty(network(), 0.3, None), 2)
    parts = training.micro_batches(training.jacobian_penalty(network(), 0.3, None), 3)
    ours, seen = trained(parts, 2)
    assert_close(ours, whole, 10 * CLOSE)
    np.testing.assert_allclose(seen["jacobian"], history["jacobian"], rtol=1e-5)
    uneven = network(optimizers.SGD(0.1, gradient_accumulation_steps=2))
    weighed = training.weigh_samples(training.jacobian_penalty(uneven, 0.3, None))
    assert_close(trained(weighed, 2, batch_size=5)[0], whole, 10 * CLOSE)


# ---------------------------------------------------------------------------------------- structures and train steps


def test_several_inputs_and_outputs():
    # a = x, b = u x' with a table for u: the integers have no derivative, and the norm is 2 + the row's squares.
    keras.utils.set_random_seed(3)
    x, number = keras.Input((2,), name="x"), keras.Input((1,), dtype="int32", name="number")
    row = keras.layers.Flatten()(keras.layers.Embedding(3, 2)(number))
    model = keras.Model({"x": x, "number": number}, [keras.layers.Identity()(x), keras.layers.Multiply()([row, x])])
    model.compile(optimizers.SGD(0.0), ["mse", "mse"], jit_compile=False)
    inputs = {"x": np.ones((3, 2), "float32"), "number": np.array([[0], [1], [1]])}
    targets = [np.zeros((3, 2), "float32")] * 2
    training.jacobian_penalty(model, 0.1, projections=4)
    seen = model.fit(inputs, targets, batch_size=3, verbose=0).history["jacobian"][0]
    table = model.get_weights()[0]
    assert seen == pytest.approx(2 + (table[[0, 1, 1]] ** 2).sum() / 3, rel=1e-5)


@tensorflow
def test_a_users_train_step():
    import tensorflow as tf

    class Own(keras.Model):
        def __init__(self, finds):
            super().__init__()
            self.first = keras.layers.Dense(5, activation="tanh", use_bias=False)
            self.second = keras.layers.Dense(3, use_bias=False)
            self.finds = finds

        def call(self, x):
            return self.second(self.first(x))

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                outputs = self(x)
                loss = self.compute_loss(y=y, y_pred=outputs) if self.finds else ops.mean((outputs - y) ** 2)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"mine": loss}

    expected = trained(training.jacobian_penalty(network(), 0.3, 2), 3)[0]
    for finds in (True, False):
        model = Own(finds)
        model(X[:1])
        model.compile(optimizers.SGD(0.1), "mse", jit_compile=False)
        model.set_weights(START)
        training.jacobian_penalty(model, 0.3, 2)
        if finds:
            ours, history = trained(model, 3)
            assert_close(ours, expected, 1e-12)
            assert sorted(history) == ["jacobian", "mine"]
        else:
            with pytest.raises(ValueError, match="did not call the model's `compute_loss`"):
                trained(model)


def test_a_loss_function_of_one_object_comes_back():
    model = network()

    def own(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred - y))

    model.compute_loss = own
    ours = trained(training.jacobian_penalty(model, 0.3, None))[0]
    assert_close(ours, trained(training.jacobian_penalty(network(), 0.3, None))[0], 1e-6)
    assert vars(model)["compute_loss"] is own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: training.jacobian_penalty(m, -0.1), "`strength` must be a number at least 0"),
        (lambda m: training.jacobian_penalty(m, 0.1, 0), "`projections` must be an integer at least 1"),
        (lambda m: training.jacobian_penalty(m, 0.1, seed=-1), "`seed` must be an integer at least 0"),
        (lambda m: training.jacobian_penalty("model", 0.1), "`model` must be a Keras model"),
        (lambda m: trained(training.jacobian_penalty(m, 0.1, 4)), "at most the number of outputs of the model, 3"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(network())


def test_integers_have_no_jacobian():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(3, 2), keras.layers.Flatten()])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="at least one of a floating dtype"):
        training.jacobian_penalty(model, 0.1).fit(np.ones((4, 2), "int32"), np.ones((4, 4)), verbose=0)
