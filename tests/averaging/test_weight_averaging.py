"""`WeightAveraging`: the average of the twin, wherever the model is measured, saved and handed on; training as ever."""

import functools

import keras
import numpy as np
import pytest
from averaged_models import (
    Record,
    X,
    Y,
    assert_bits,
    assert_near,
    innermost,
    loss_at,
    small_model,
    train,
    trajectory,
    weights_of,
)  # fmt: skip
from averaging_twin import averaged
from keras import ops

from keras_trainkit import averaging, callbacks, optimizers, precision
from keras_trainkit.callbacks import WeightAveraging
from keras_trainkit.core import backend, evaluation

EMA, LAWA, SWA = averaging.EMA(0.8), averaging.LAWA(3, every=2), averaging.SWA(4, every=2)
KERAS = lambda **options: keras.optimizers.Adam(0.03, **options)  # noqa: E731
KIT = lambda **options: optimizers.AdamW(0.03, **options)  # noqa: E731
CASES = [
    (make, average) for make in (KERAS, KIT) for average in (EMA, averaging.EMA(half_life=100, start=2), SWA, LAWA)
]
if not backend.ON_TENSORFLOW:
    CASES = CASES[::3]  # compiling each takes JAX seconds
every_kind = pytest.mark.parametrize("make", [KERAS, KIT], ids=["Keras", "kit"])


@functools.cache
def plain_path(make):
    return trajectory(small_model(make()))


def memory_of(model):
    return innermost(model).weight_averages


# ----------------------------------------------------------------------------------------------------- inside the step


@pytest.mark.parametrize(("make", "average"), CASES)
def test_the_final_model_is_the_twins_and_validation_measures_it(make, average):
    path = plain_path(make)
    model, record = small_model(make()), Record()
    history = train(model, record, WeightAveraging(average), validate=True)
    expected = averaged(average, path, [16] * 12)
    assert_near(weights_of(model), expected)
    assert np.abs(weights_of(model)[0] - path[-1][0]).max() > 1e-3
    losses = [loss_at(averaged(average, path[:n], [16] * n)) for n in (4, 8, 12)]
    assert history["val_loss"] == pytest.approx(losses, rel=1e-4)
    # It trains as a run without: the weights that each batch begins with.
    for mine, plain in zip(record.before[1:], path, strict=False):
        assert_bits(mine, plain)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("make", "per_epoch"),
    [(lambda: KERAS(gradient_accumulation_steps=2), 2), (lambda: KIT(gradient_accumulation_steps=3), 1)],
    ids=["Keras", "kit"],
)
def test_windows_count_once(make, per_epoch):
    path = trajectory(small_model(make()))
    assert len(path) == {2: 6, 1: 4}[per_epoch]
    model = small_model(make())
    train(model, WeightAveraging(averaging.EMA(half_life=200)), epochs=3)
    assert memory_of(model).count == len(path)
    window = 12 // len(path)
    assert_near(weights_of(model), averaged(averaging.EMA(half_life=200), path, [16 * window] * len(path)))


@pytest.mark.tensorflow
@pytest.mark.parametrize("first", [True, False])
def test_windows_that_end_early_count_once(first):
    make = lambda: small_model(KIT(gradient_accumulation_steps=3))  # noqa: E731
    flush, mine = callbacks.FlushAccumulation(), WeightAveraging(averaging.EMA(0.7, dynamic=False))
    plain, model = make(), make()
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights_of(self.model))

    windows = trajectory(make(), epochs=1)  # the first window alone
    train(plain, callbacks.FlushAccumulation(), Look(), epochs=2)
    train(model, *([mine, flush] if first else [flush, mine]), epochs=2)
    assert memory_of(model).count == 4
    assert len(windows) == 1
    model.optimizer.to_training()
    assert_bits(weights_of(model), seen[-1])


def test_steps_per_execution_and_a_second_fit():
    path = trajectory(small_model(KERAS()), epochs=4)
    model = small_model(KERAS())
    model.compile(KERAS(), "mse", jit_compile=not backend.ON_TENSORFLOW, steps_per_execution=3)
    callback = WeightAveraging(EMA)
    train(model, callback, epochs=2)
    train(model, callback, epochs=2)
    assert_near(weights_of(model), averaged(EMA, path))
    assert "train_step" not in vars(model)


@pytest.mark.tensorflow
@pytest.mark.parametrize("average", [EMA, LAWA], ids=["EMA", "LAWA"])
def test_compiled_by_xla(average):
    path = plain_path(KERAS)
    model = small_model(KERAS())
    model.compile(KERAS(), "mse", jit_compile=True)
    train(model, WeightAveraging(average))
    assert_near(weights_of(model), averaged(average, path), 1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("make", "average"),
    [(lambda: keras.optimizers.SGD(0.1), LAWA), (KIT, averaging.EMA(half_life=100))],
    ids=["Keras", "kit"],
)
def test_on_two_replicas(make, average, two_replicas):
    alone = small_model(make())
    one = train(alone, WeightAveraging(average), validate=True)
    with two_replicas.scope():
        together = small_model(make())
    two = train(together, WeightAveraging(average), validate=True)
    assert_near(weights_of(together), weights_of(alone), 5e-6)
    np.testing.assert_allclose(two["val_loss"], one["val_loss"], rtol=1e-4)
    for variable in [*together.trainable_variables, *memory_of(together).variables]:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@pytest.mark.tensorflow
@pytest.mark.parametrize("wrapper", [keras.optimizers.LossScaleOptimizer, precision.LossScaleOptimizer])
def test_skipped_steps_do_not_count(wrapper):
    poisoned = X.copy()
    poisoned[20] = np.inf  # the second batch of each epoch
    model = small_model(wrapper(KERAS(), dynamic_growth_steps=1000))
    path = trajectory(small_model(wrapper(KERAS(), dynamic_growth_steps=1000)), x=poisoned)
    assert len(path) == 9
    train(model, WeightAveraging(EMA), x=poisoned)
    assert_near(weights_of(model), averaged(EMA, path))


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    """A model with a train step of its own."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}


@pytest.mark.tensorflow
def test_a_train_step_of_the_users_own():
    def make():
        keras.utils.set_random_seed(1)
        model = Own()
        model(X)
        model.compile("adam", "mse", jit_compile=False)
        return model

    path, model = trajectory(make()), make()
    train(model, WeightAveraging(LAWA))
    assert_near(weights_of(model), averaged(LAWA, path))


@pytest.mark.tensorflow
@pytest.mark.tensorflow
@pytest.mark.parametrize("average", [EMA, averaging.LAWA(4, every=1), averaging.SWA(0, every=1)], ids=str)
def test_memory_is_what_is_stated(average):
    model = small_model(KERAS())
    size = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    train(model, WeightAveraging(average), epochs=1)
    memory, optimizer = memory_of(model), innermost(model)
    assert sum(4 * int(np.prod(v.shape)) for v in memory.held) == average.per_weight * size
    assert len(memory.counts) == 5
    assert sum(4 * int(np.prod(w.shape)) for w in optimizer._aside.weights.values()) == size
    assert len(optimizer.variables) == len(small_model(KERAS()).optimizer.variables) + 2 * 4  # Adam's moments


def test_half_precision_weights_have_averages_in_float32():
    def make():
        keras.utils.set_random_seed(2)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, dtype="bfloat16")])
        model.compile(KERAS(), "mse", jit_compile=False)
        return model

    path = [[w.astype("float32") for w in weights] for weights in trajectory(make())]
    model = make()
    train(model, WeightAveraging(EMA))
    held = [ops.convert_to_numpy(v) for v in memory_of(model).held]
    assert {a.dtype.name for a in held} == {"float32"}
    assert_near(held, averaged(EMA, path), 1e-5)
    assert_bits(weights_of(model), [a.astype(w.dtype) for a, w in zip(held, weights_of(model), strict=True)])


# ---------------------------------------------------------------------------------------------- evaluation, statistics


@every_kind
def test_outside_of_fit_everything_is_left_as_found(make):
    model, plain = small_model(make()), small_model(make())
    train(model, WeightAveraging(EMA))
    average = weights_of(model)
    path = trajectory(plain)
    evaluation.put_back(innermost(model))
    assert_bits(weights_of(model), path[-1])
    loss = model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[WeightAveraging(EMA)])
    assert loss == pytest.approx(loss_at(average), rel=1e-5)
    assert_bits(weights_of(model), path[-1])
    prediction = model.predict(X, verbose=0, callbacks=[WeightAveraging(EMA)])
    assert np.mean((prediction - Y) ** 2) == pytest.approx(loss, rel=1e-4)
    assert_bits(weights_of(model), path[-1])
    with pytest.raises(ValueError, match="has no averages to put in"):
        plain.evaluate(X, Y, verbose=0, callbacks=[WeightAveraging(EMA)])


@pytest.mark.tensorflow
def normalized():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )
    model.compile(KERAS(), "mse", jit_compile=False)
    return model


def test_batch_statistics_are_those_of_the_average():
    plain, model, stale = normalized(), normalized(), normalized()
    path = trajectory(plain)
    history = train(model, WeightAveraging(SWA, refresh=X), validate=True)
    with pytest.warns(UserWarning, match="The model has BatchNormalization.*`refresh`"):
        train(stale, WeightAveraging(SWA))
    assert_near(weights_of(model), averaged(SWA, path))
    assert_bits(weights_of(stale), weights_of(model))
    hidden = ops.convert_to_numpy(model.layers[0](X)).astype("float64")
    layer, old = model.layers[1], stale.layers[1]
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_mean), hidden.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_variance), hidden.var(axis=0), rtol=1e-4)
    assert np.abs(ops.convert_to_numpy(old.moving_mean) - hidden.mean(axis=0)).max() > 0.01
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- rates


class Rates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(ops.convert_to_numpy(self.model.optimizer.learning_rate)))


@pytest.mark.tensorflow
@pytest.mark.parametrize("kit", [True, False])
def test_rates_of_snapshots(kit, tmp_path):
    make = optimizers.SGD if kit else keras.optimizers.SGD
    model, rates = small_model(make(keras.optimizers.schedules.CosineDecay(0.3, 12))), Rates()
    average = averaging.SWA("1ep", every=3, rate=[0.2, 0.05])
    train(model, WeightAveraging(average), rates, epochs=3)
    cosine = [0.15 * (1 + np.cos(np.pi * step / 12)) for step in range(4)]
    np.testing.assert_allclose(rates.seen, [*cosine, *([0.15, 0.1, 0.05] * 3)[:8]], rtol=1e-6)
    assert memory_of(model).count == 3  # after updates 4, 7 and 10
    model.save(tmp_path / "m.keras")
    again, rates = keras.models.load_model(tmp_path / "m.keras"), Rates()
    train(again, rates, epochs=1)
    np.testing.assert_allclose(rates.seen, [0.05, 0.15, 0.1, 0.05], rtol=1e-6)
    constant, rates = small_model(make(0.3)), Rates()
    train(constant, WeightAveraging(averaging.SWA(2, every=1, rate=0.1)), rates, epochs=1)
    np.testing.assert_allclose(rates.seen, [0.3, 0.3, 0.1, 0.1], rtol=1e-6)


# ----------------------------------------------------------------------------------------------- arguments and trouble


@pytest.mark.tensorflow
def test_configuration():
    callback = WeightAveraging(SWA, refresh_batches=3, epochs=7)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(callback))
    assert again.get_config() == callback.get_config() and again.average == SWA


def test_a_run_that_ends_before_the_average_begins():
    model, plain = small_model(KERAS()), small_model(KERAS())
    with pytest.warns(UserWarning, match="took no weights in: the run was over before update 100"):
        train(model, WeightAveraging(averaging.EMA(start=100)))
    assert_bits(weights_of(model), trajectory(plain)[-1])


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (lambda: KIT(use_ema=True), [], "keeps no average of its own"),
        (lambda: KERAS(use_ema=True), [], "keeps no average of its own"),
        (lambda: optimizers.ScheduleFreeSGD(0.1), [], "keeps no average of its own"),
        (KERAS, [WeightAveraging()], "must hold one callback that puts weights in"),
        (KIT, [callbacks.EvaluationWeights()], "must hold one callback that puts weights in"),
    ],
)
def test_what_averages_already_is_refused(make, more, words):
    with pytest.raises(ValueError, match=words):
        train(small_model(make()), WeightAveraging(), *more)


def test_lengths_need_a_known_run():
    def batches():
        yield X[:16], Y[:16]

    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        small_model(KERAS()).fit(batches(), verbose=0, callbacks=[WeightAveraging("lawa")])


@pytest.mark.tensorflow
@every_kind
def test_an_exception_leaves_the_trained_weights_and_training_goes_on(make):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    whole, model = small_model(make()), small_model(make())
    callback = WeightAveraging(EMA)
    train(whole, WeightAveraging(EMA), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(model, callback, Stop(), epochs=2)
    train(model, callback, epochs=1)
    assert_bits(weights_of(model), weights_of(whole))
    assert memory_of(model).count == 8 and "train_step" not in vars(model)
