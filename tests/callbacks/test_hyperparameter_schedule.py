"""Momentum, decay, betas, dropout rates and regularization that follow schedules inside the compiled step."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from steps import Weight, fit, mean, model_of

from keras_trainkit import optimizers, regularizers, schedules
from keras_trainkit.callbacks import HyperparameterSchedule
from keras_trainkit.testing.contracts import assert_close, small_model

RNG = np.random.default_rng(11)
X = RNG.normal(size=(48, 5)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(5, 3))).astype("float32")
UP = schedules.Linear(0.2, 24, 0.9)


def heavy_ball(momenta, rate=0.1):
    velocity, steps = 0.0, []
    for momentum in momenta:
        velocity = momentum * velocity - rate
        steps.append(-velocity)
    return np.array(steps)


def rates(schedule, steps):
    return [float(schedule(step)) for step in range(steps)]


def train(model, *callbacks, epochs=2, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options)


def test_assigning_momentum_in_keras_does_nothing_once_the_step_is_traced():
    class Assign(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.momentum = 0.9 if batch > 2 else 0.5

    found = fit(model_of(keras.optimizers.SGD(0.1, momentum=0.5)), Assign())
    np.testing.assert_allclose(found, heavy_ball([0.5] * 12), rtol=1e-4)


def test_momentum_follows_its_schedule_from_update_to_update():
    model = model_of(optimizers.SGD(0.1, momentum=0.9))
    found = fit(model, HyperparameterSchedule(momentum=UP), epochs=2)
    np.testing.assert_allclose(found, heavy_ball(rates(UP, 24)), rtol=1e-4)
    assert model.layers[-1].traced <= 2  # the symbolic build, and the one trace
    # Afterwards all is as it was.
    assert type(model.optimizer.momentum) is float and model.optimizer.momentum == 0.9
    last = found[-1]
    after = fit(model, epochs=1)
    np.testing.assert_allclose(after[:2], [0.9 * last + 0.1, 0.81 * last + 0.19], rtol=1e-4)


def test_a_step_that_is_compiled_already_follows_too():
    model = model_of(optimizers.SGD(0.1, momentum=0.5))
    before = fit(model)
    found = fit(model, HyperparameterSchedule(momentum=UP))
    expected = heavy_ball([0.5] * 12 + rates(UP, 24)[12:])
    np.testing.assert_allclose([*before, *found], expected, rtol=1e-4)


def test_one_argument_after_the_other_in_the_same_model(tmp_path):
    keras.utils.set_random_seed(1)
    wide = [keras.Input((5,)), keras.layers.Dense(8000, "tanh"), keras.layers.Dense(3)]  # compiled on its own
    model = keras.Sequential(wide)
    model.compile(optimizers.Adam(0.01), "mse")
    train(model, HyperparameterSchedule(beta_1=UP), epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        train(each, HyperparameterSchedule(beta_2=UP), epochs=1)
    assert_close(model.get_weights(), loaded.get_weights(), 1e-6)


def test_lengths_are_resolved_and_a_resumed_run_has_the_same_values(tmp_path):
    spelled = HyperparameterSchedule(momentum=schedules.Linear(0.2, "1run", 0.9))
    expected = fit(model_of(optimizers.SGD(0.1, momentum=0.5)), spelled, epochs=2)
    np.testing.assert_allclose(expected, heavy_ball(rates(UP, 24)), rtol=1e-4)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        fit(model_of(optimizers.SGD(0.1, momentum=0.5)), spelled, backup(), Stop(), epochs=2)
    found = fit(model_of(optimizers.SGD(0.1, momentum=0.5)), spelled, backup(), epochs=2)
    np.testing.assert_allclose(found[-12:], expected[-12:], rtol=1e-4)


def test_weight_decay_follows_from_nothing():
    schedule = schedules.Linear(0.0, 12, 0.5)
    found = fit(model_of(optimizers.SGD(0.1), start=3.0), HyperparameterSchedule(weight_decay=schedule))
    weight, expected = 3.0, []
    for decay in rates(schedule, 12):
        new = weight - weight * 0.1 * decay - 0.1
        expected.append(weight - new)
        weight = new
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_one_cycle_has_its_momentum():
    cycle = schedules.OneCycle(0.5, "1run")
    plain = schedules.OneCycle(0.5, 24)
    from keras_trainkit.callbacks import ResolveSpans

    model = model_of(optimizers.SGD(cycle, momentum=0.9))
    found = fit(model, ResolveSpans(), HyperparameterSchedule(momentum=cycle.momentum()), epochs=2)
    velocity, expected = 0.0, []
    for rate, momentum in zip(rates(plain, 24), rates(plain.momentum(), 24), strict=True):
        velocity = momentum * velocity - rate
        expected.append(-velocity)
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("adam", "beta_1", 0.9),
        ("adam", "beta_2", 0.99),
        ("adamw", "weight_decay", 0.1),
        ("radam", "beta_2", 0.99),
        ("rmsprop", "rho", 0.9),
        ("lion", "beta_1", 0.9),
        ("lamb", "weight_decay", 0.1),
        ("lars", "momentum", 0.9),
        ("madgrad", "momentum", 0.9),
        ("schedulefreeadamw", "weight_decay", 0.1),
        ("lazyadam", "beta_1", 0.9),
    ],
)
def test_a_constant_schedule_is_the_constant_and_another_is_not(name, argument, value):
    def weights(schedule):
        keras.utils.set_random_seed(1)
        model = small_model(optimizers.get(name, learning_rate=0.01, **{argument: value}))
        train(model, *([] if schedule is None else [HyperparameterSchedule(**{argument: schedule})]))
        return model.get_weights()

    expected = weights(None)
    assert_close(weights(value), expected, 3e-6)
    moved = weights(schedules.Linear(value, 12, value / 2))
    assert max(np.abs(a - b).max() for a, b in zip(moved, expected, strict=True)) > 1e-5


def test_options_follow_too_and_accumulation_counts_updates():
    values = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            values.append(follow.values()["momentum"])

    follow = HyperparameterSchedule(momentum=UP)
    fit(model_of(optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3)), follow, Look())
    np.testing.assert_allclose(values, np.repeat(rates(UP, 4), 3), rtol=1e-6)


@pytest.mark.tensorflow
def test_two_replicas_do_as_one(two_replicas):
    def weights(scope):
        keras.utils.set_random_seed(1)
        with scope:
            model = small_model(optimizers.Adam(0.01, weight_decay=0.1))
        follow = HyperparameterSchedule(beta_1=schedules.Linear(0.95, 12, 0.5), weight_decay=schedules.Linear(0.5, 12))
        train(model, follow)
        return model.get_weights()

    import contextlib

    assert_close(weights(two_replicas.scope()), weights(contextlib.nullcontext()), 3e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 4}, {"run_eagerly": True}])
def test_however_the_step_is_run(options):
    model = model_of(optimizers.SGD(0.1, momentum=0.9), **options)
    fit(model, HyperparameterSchedule(momentum=UP), epochs=2)
    expected = heavy_ball(rates(UP, 24)).sum()
    assert model.get_weights()[0] == pytest.approx(-expected, rel=1e-4)


# -- layers


def zeros(y, prediction):
    return ops.mean(ops.cast(prediction == 0, "float32"), axis=-1) + 0 * ops.mean(prediction, axis=-1)


def dropping(layer, shape, optimizer=None):
    """A model whose training loss is the share of ones that dropout lets through, scaled."""
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten(), Weight(1.0)])
    model.compile(optimizer or optimizers.SGD(0.0), loss=zeros)
    return model


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: keras.layers.Dropout(0.5), (1000,)),
        (lambda: keras.layers.Dropout(0.5, noise_shape=(None, 1, 1000)), (3, 1000)),
        (lambda: keras.layers.SpatialDropout1D(0.5), (3, 1000)),
        (lambda: keras.layers.SpatialDropout2D(0.5), (2, 2, 1000)),
        (lambda: keras.layers.SpatialDropout2D(0.5, data_format="channels_first"), (1000, 2, 2)),
    ],
)
def test_dropout_follows_its_schedule(layer, shape):
    falling = schedules.Linear(0.8, 4, 0.0)
    model = dropping(layer(), shape)
    shares = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            shares.append(logs["loss"])

    x = np.ones((8, *shape), "float32")
    follow = HyperparameterSchedule(dropout=falling)
    history = model.fit(x, x[:, :1], batch_size=8, epochs=5, verbose=0, callbacks=[follow, Look()])
    # 8000 draws at least: a standard error of at most 0.0056; five of them.
    np.testing.assert_allclose(shares, [0.8, 0.6, 0.4, 0.2, 0.0], atol=0.028)
    np.testing.assert_allclose(history.history["dropout"], [0.6, 0.4, 0.2, 0.0, 0.0], atol=1e-6)
    assert model.layers[-1].traced <= 2
    # Afterwards, and in what is saved, the layer has its own rate.
    assert model.layers[0].get_config()["rate"] == 0.5 and "call" not in vars(model.layers[0])
    later = model.fit(x, x[:, :1], batch_size=8, verbose=0)
    assert later.history["loss"][0] == pytest.approx(0.5, abs=0.028)


@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_noise_and_the_other_dropouts_follow_too(options):
    n, falling = 40_000, schedules.Linear(0.8, 4, 0.2)
    kinds = {"gaussian": keras.layers.GaussianDropout, "noise": keras.layers.GaussianNoise,
             "alpha": keras.layers.AlphaDropout}  # fmt: skip
    inputs = keras.Input((n,))
    made = {name: kind(0.3, name=name) for name, kind in kinds.items()}
    weighted = Weight(1.0)(inputs)  # without a weight no update is counted
    model = keras.Model(inputs, [layer(weighted) for layer in made.values()])
    model.compile(optimizers.SGD(0.0), [lambda y, prediction: ops.mean(ops.square(prediction - 1), axis=-1)] * 3,
                  **options)  # fmt: skip
    ones = np.ones((1, n), "float32")
    normal = RNG.normal(size=(1, n)).astype("float32")
    drawn = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            drawn.append({name: np.array(layer(normal if name == "alpha" else ones, training=True), "float64")
                          for name, layer in made.items()})  # fmt: skip

    follow = HyperparameterSchedule(dropout=falling, noise=falling)
    history = model.fit(ones, [ones] * 3, epochs=5, verbose=0, callbacks=[follow, Look()]).history
    losses = {name: next(value for key, value in history.items() if key.startswith(name)) for name in kinds}
    for step, rate in enumerate(rates(falling, 5)):
        variances = {"gaussian": rate / (1 - rate), "noise": rate**2}
        for name, variance in variances.items():
            error = variance * np.sqrt(2 / n)
            assert abs(drawn[step][name].mean() - 1) < 5 * np.sqrt(variance / n)
            assert abs(drawn[step][name].var() - variance) < 5 * error
            assert abs(losses[name][step] - variance) < 5 * error  # in the compiled step, too
        kinds_value, counts = np.unique(kinds["alpha"](rate, seed=1)(normal, training=True), return_counts=True)
        dropped = np.abs(drawn[step]["alpha"] - kinds_value[counts.argmax()]) < 1e-5
        assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n) + 1e-4  # and values that fall there
        assert abs(drawn[step]["alpha"].mean()) < 5 / np.sqrt(n) and abs(drawn[step]["alpha"].var() - 1) < 0.05
    assert [layer.get_config().get("rate", 0.3) for layer in made.values()] == [0.3] * 3
    assert not any("call" in vars(layer) for layer in made.values()) and made["noise"].stddev == 0.3


@pytest.mark.tensorflow
def test_dropout_by_name_draws_whole_channels_and_none_at_inference():
    inputs = keras.Input((4, 600))
    first = keras.layers.SpatialDropout1D(0.1, name="spatial")(inputs)
    outputs = keras.layers.Dropout(0.5, name="last")(first)
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.SGD(0.1), "mse")
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            x = np.ones((2, 4, 600), "float32")
            seen["spatial"] = np.array(model.get_layer("spatial")(x, training=True))
            seen["last"] = np.array(model.get_layer("last")(x, training=True))
            seen["inference"] = np.array(model(x, training=False))

    follow = HyperparameterSchedule(dropout={"^spat": schedules.Constant(0.75), "last": 0.25})
    x = np.ones((2, 4, 600), "float32")
    model.fit(x, x, verbose=0, callbacks=[follow, Look()])
    np.testing.assert_array_equal(seen["spatial"][:, :1] + np.zeros((1, 4, 1)), seen["spatial"])
    # Five binomial standard deviations: of 2 samples times 600 channels, and of 2 * 4 * 600 elements.
    for name, rate, draws in (("spatial", 0.75, 2 * 600), ("last", 0.25, 2 * 4 * 600)):
        assert abs((seen[name] == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / draws)
        np.testing.assert_allclose(seen[name][seen[name] != 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(seen["inference"], 1.0)


@pytest.mark.tensorflow
def test_regularization_follows_its_schedule():
    rising = schedules.Linear(0.0, 12, 1.0)
    model = model_of(optimizers.SGD(0.1), start=2.0, regularizer=keras.regularizers.L2(0.5))
    found = fit(model, HyperparameterSchedule(regularization=rising))
    weight, expected = 2.0, []
    for factor in rates(rising, 12):
        expected.append(0.1 * (1 + factor * weight))  # the slope of 1/2 w^2, beside that of the loss
        weight -= expected[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert isinstance(model.trainable_weights[0].regularizer, keras.regularizers.L2)


PENALTIES = {
    "elastic net": regularizers.ElasticNet(0.1),
    "soft orthogonal": regularizers.SoftOrthogonal(0.1),
    "srip": regularizers.SRIP(0.1),
    "spectral norm": regularizers.SpectralNorm(0.1),
    "hoyer": regularizers.Hoyer(0.1),
    "group lasso": regularizers.GroupLasso(0.1),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_every_penalty_on_weights_follows(penalty):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, kernel_regularizer=penalty)])
    model.compile(optimizers.SGD(0.0), loss=lambda y, prediction: 0 * ops.mean(prediction, axis=-1))
    full = float(penalty(model.layers[0].kernel))
    losses = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"] * (batch + 1) - sum(losses))

    model.fit(X[:4], Y[:4], batch_size=1, verbose=0, callbacks=[
        HyperparameterSchedule(regularization=schedules.Linear(0.0, 4, 2.0)), Look()])  # fmt: skip
    np.testing.assert_allclose(np.array(losses) / full, [0.0, 0.5, 1.0, 1.5], rtol=1e-4, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_activity_regularizers_follow_too_and_are_saved_as_they_are(options, tmp_path):
    penalty = regularizers.EntropyPenalty(0.5, from_logits=True)
    layers = [keras.layers.Dense(3, activity_regularizer=penalty), keras.layers.ActivityRegularization(l2=0.1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizers.SGD(0.0), loss=lambda y, prediction: 0 * ops.mean(prediction, axis=-1), **options)
    model(X[:8])
    full = float(sum(model.losses))
    file = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    follow = HyperparameterSchedule(regularization=schedules.Linear(1.0, 4, 0.0))
    history = model.fit(X[:8], Y[:8], batch_size=8, epochs=4, verbose=0, callbacks=[follow, file])
    np.testing.assert_allclose(np.array(history.history["loss"]) / full, [1.0, 0.75, 0.5, 0.25], rtol=1e-5)
    assert layers[0].activity_regularizer is penalty and "get_config" not in vars(layers[0])
    assert model.fit(X[:8], Y[:8], verbose=0).history["loss"][0] == pytest.approx(full, rel=1e-5)
    saved = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert [layer.get_config() for layer in saved.layers] == [layer.get_config() for layer in layers]
    saved(X[:8])
    assert float(sum(saved.losses)) == pytest.approx(full, rel=1e-5)


@pytest.mark.tensorflow
def test_layers_follow_on_two_replicas(two_replicas):
    rising = schedules.Linear(0.0, 12, 1.0)
    with two_replicas.scope():
        model = model_of(optimizers.SGD(0.1), start=2.0, regularizer=keras.regularizers.L2(0.5))
        drops = dropping(keras.layers.Dropout(0.5), (1000,))
    x = np.ones((24, 1), "float32")
    model.fit(x, x, batch_size=2, verbose=0, callbacks=[HyperparameterSchedule(regularization=rising)])
    weight = 2.0
    for factor in rates(rising, 12):
        weight -= 0.1 * (1 + factor * weight)
    assert model.get_weights()[0] == pytest.approx(weight, rel=1e-4)
    x = np.ones((8, 1000), "float32")
    follow = HyperparameterSchedule(dropout=schedules.Linear(0.8, 2, 0.2))
    history = drops.fit(x, x[:, :1], batch_size=8, epochs=3, verbose=0, callbacks=[follow])
    # Replicas may draw alike: 4 of the 8 samples are sure to be independent.
    rate = np.array([0.8, 0.5, 0.2])
    assert np.all(np.abs(history.history["loss"] - rate) < 5 * np.sqrt(rate * (1 - rate) / 4000))


@pytest.mark.tensorflow
def test_a_model_saved_while_it_follows_is_the_plain_model(tmp_path):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dropout(0.3), keras.layers.Dense(3, kernel_regularizer="l2")]
    )
    model.compile(optimizers.Adam(0.01), "mse")
    follow = HyperparameterSchedule(dropout=0.1, regularization=0.5, beta_1=UP)
    train(model, follow, keras.callbacks.ModelCheckpoint(tmp_path / "model.keras"))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.beta_1 == 0.9 and loaded.layers[0].rate == 0.3
    assert json.dumps(loaded.optimizer.get_config()) == json.dumps(model.optimizer.get_config())
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-6)


def test_layers_cannot_follow_on_jax():
    if keras.backend.backend() != "jax":
        pytest.skip("this is for JAX")
    model = dropping(keras.layers.Dropout(0.5), (4,))
    with pytest.raises(ValueError, match="`dropout` can follow a schedule with Keras on TensorFlow alone"):
        model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0, callbacks=[HyperparameterSchedule(dropout=0.1)])


# -- errors


@pytest.mark.parametrize(
    ("make", "arguments", "error", "words"),
    [
        (lambda: keras.optimizers.SGD(0.1), {"momentum": 0.5}, TypeError, "needs an optimizer of keras_trainkit"),
        (lambda: optimizers.SGD(0.1), {"momentum": 0.5}, ValueError, "was made with a value above 0"),
        (lambda: optimizers.Adam(0.1), {"beta": 0.5}, ValueError, "Did you mean 'beta_2' or 'beta_1'"),
        (lambda: optimizers.ScheduleFreeSGD(0.1), {"momentum": 0.5}, ValueError, "evaluation weights depend on it"),
        (lambda: optimizers.AdamMini(0.1), {"beta_1": 0.5}, ValueError, "no transform takes it as it is"),
    ],
)
def test_what_cannot_follow_a_schedule_says_so_and_nothing_is_changed(make, arguments, error, words):
    model = model_of(make())
    before = model.optimizer.get_config()
    with pytest.raises(error) as caught:
        fit(model, HyperparameterSchedule(**arguments))
    assert words in str(caught.value)
    assert model.optimizer.get_config() == before


@pytest.mark.tensorflow
def test_a_model_without_such_layers_is_an_error():
    with pytest.raises(ValueError, match=r"`dropout` finds no layer for \['']. The model's dropout layers: none"):
        fit(model_of(optimizers.SGD(0.1)), HyperparameterSchedule(dropout=0.1))
    with pytest.raises(ValueError, match="only in layers made with a rate above 0: the layer 'still'"):
        fit(dropping(keras.layers.Dropout(0.0, name="still"), (1,)), HyperparameterSchedule(dropout=0.1))
    with pytest.raises(ValueError, match="`noise` finds no layer for .*The model's noise layers: none"):
        fit(model_of(optimizers.SGD(0.1)), HyperparameterSchedule(noise={"first": 0.1}))
    with pytest.raises(ValueError, match="made with a stddev above 0: the layer 'still'.*Received: stddev=0"):
        fit(dropping(keras.layers.GaussianNoise(0.0, name="still"), (1,)), HyperparameterSchedule(noise=0.1))
    with pytest.raises(ValueError, match="`regularization` finds no weight with a regularizer"):
        fit(model_of(optimizers.SGD(0.1)), HyperparameterSchedule(regularization=0.1))


def test_bad_arguments_fail_at_construction():
    with pytest.raises(TypeError, match="Received: momentum='cosine'"):
        HyperparameterSchedule(momentum="cosine")
    with pytest.raises(ValueError, match="Received: beta_1=-1"):
        HyperparameterSchedule(beta_1=-1)


def test_the_callback_survives_its_configuration():
    made = HyperparameterSchedule(momentum=UP, dropout={"a": 0.5, "b": UP}, regularization=0.1, noise={"c": UP})
    config = json.loads(json.dumps(made.get_config()))
    assert HyperparameterSchedule.from_config(config).schedules == made.schedules


def test_the_model_of_one_weight_knows_its_loss():
    assert float(ops.mean(mean(None, ops.ones((2, 1))))) == 1.0
