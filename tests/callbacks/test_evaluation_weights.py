"""`EvaluationWeights`: x where a model is measured, saved and handed on; y where it trains, bit for bit."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision
from keras_trainkit.callbacks import EvaluationWeights, FlushAccumulation
from keras_trainkit.testing.contracts import assert_close, small_model

RNG = np.random.default_rng(3)
X = RNG.normal(size=(64, 5)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(5, 3))).astype("float32")


def free(**options):
    return optimizers.ScheduleFreeAdamW(0.05, **options)


def averaging(**options):
    return optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8, **options)


every_kind = pytest.mark.parametrize("make", [free, averaging], ids=["schedule-free", "moving average"])


def train(model, epochs=3, callbacks=(), validate=True, x=X, y=Y, **options):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0} | options
    if validate:
        options["validation_data"] = (X, Y)
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)


def trained(model):
    """The training weights, whatever is in the variables."""
    held = model.optimizer.holds_evaluation()
    model.optimizer.to_training()
    weights = model.get_weights()
    if held:
        model.optimizer.to_evaluation()
    return weights


def evaluated(model):
    return [ops.convert_to_numpy(w) for w in model.optimizer.evaluation_weights()]


def loss_at(weights):
    model = small_model("sgd")
    model.set_weights(weights)
    return model.evaluate(X, Y, batch_size=16, verbose=0)


class Look(keras.callbacks.Callback):
    """What the model holds at each hook."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def note(self, hook):
        self.seen.setdefault(hook, []).append(self.model.optimizer.holds_evaluation())

    def on_train_begin(self, logs=None):
        self.note("train begin")

    def on_train_batch_begin(self, batch, logs=None):
        self.note("batch begin")

    def on_test_batch_begin(self, batch, logs=None):
        self.note("test batch")

    def on_predict_batch_begin(self, batch, logs=None):
        self.note("predict batch")

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch end")

    def on_train_end(self, logs=None):
        self.note("train end")


# ---------------------------------------------------------------------------------------------------------- in `fit`


@every_kind
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_trains_as_without_it_and_measures_the_others(make, validate, first):
    plain = small_model(make())
    rows = []

    class Rows(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rows.append([w.copy() for w in self.model.get_weights()])

    train(plain, callbacks=[Rows()], validate=False)
    model, look = small_model(make()), Look()
    mine = []

    class Mine(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            mine.append([w.copy() for w in self.model.get_weights()])

    callbacks = [EvaluationWeights(), look, Mine()] if first else [look, EvaluationWeights(), Mine()]
    history = train(model, callbacks=callbacks, validate=validate).history
    for a, b in zip(mine, rows, strict=True):
        assert_close(a, b, 0.0)
    assert look.seen["epoch end"] == [True] * 3 and look.seen["train end"] == [True]
    if validate:
        assert all(look.seen["test batch"])
        assert history["val_loss"][-1] == pytest.approx(loss_at(evaluated(model)), rel=1e-5)
        assert abs(history["val_loss"][-1] - loss_at(trained(model))) > 1e-4
    if first:
        assert not any(look.seen["batch begin"])
    assert_close(model.get_weights(), evaluated(model), 0.0)


@every_kind
def test_a_second_fit_goes_on_from_the_training_weights(make):
    whole, parts = small_model(make()), small_model(make())
    train(whole, 4, [EvaluationWeights()])
    train(parts, 2, [EvaluationWeights()])
    train(parts, 2, [EvaluationWeights()])
    assert_close(parts.get_weights(), whole.get_weights(), 0.0)


def test_an_unknown_number_of_steps():
    def batches():
        for i in range(0, 64, 16):
            yield X[i : i + 16], Y[i : i + 16]

    class Short(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                self.model.stop_training = True

    model, look = small_model(free()), Look()
    model.fit(batches(), callbacks=[EvaluationWeights(), look], verbose=0)
    assert look.seen["epoch end"] == [True]
    model, look = small_model(free()), Look()
    train(model, 1, [EvaluationWeights(), Short(), look], validate=False)
    assert look.seen["epoch end"] == [True] and len(look.seen["batch begin"]) == 3


@every_kind
@pytest.mark.slow
@pytest.mark.parametrize("flush_first", [True, False])
def test_accumulation_windows_end_on_the_training_weights(make, flush_first):
    options = {"gradient_accumulation_steps": 3}
    plain = small_model(make(**options))
    train(plain, callbacks=[FlushAccumulation()])
    model = small_model(make(**options))
    callbacks = [EvaluationWeights(), FlushAccumulation()]
    train(model, callbacks=callbacks[::-1] if flush_first else callbacks)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 6
    assert_close(evaluated(model), evaluated(plain), 0.0)
    assert_close(model.get_weights(), evaluated(model), 0.0)
    # Without FlushAccumulation `fit` ends the last window, after x has come in.
    plain, model = small_model(make(**options)), small_model(make(**options))
    train(plain, validate=False)
    train(model, callbacks=[EvaluationWeights()])
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 4
    assert_close(evaluated(model), evaluated(plain), 0.0)
    assert_close(model.get_weights(), evaluated(model), 0.0)


# ------------------------------------------------------------------------------------------- evaluation and prediction


@every_kind
def test_outside_of_fit_everything_is_left_as_found(make):
    model = small_model(make())
    train(model, callbacks=[EvaluationWeights()])
    x = model.get_weights()
    for holds in (True, False):
        before = x if holds else trained(model)
        if not holds:
            model.optimizer.to_training()
        look = Look()
        loss = model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[EvaluationWeights(), look])
        assert loss == pytest.approx(loss_at(x), rel=1e-5)
        assert_close(model.get_weights(), before, 0.0)
        prediction = model.predict(X, verbose=0, callbacks=[EvaluationWeights(), look])
        assert all(look.seen["predict batch"] + look.seen["test batch"])
        assert_close(model.get_weights(), before, 0.0)
        assert model.optimizer.holds_evaluation() == holds
        np.testing.assert_allclose(np.mean((prediction - Y) ** 2), loss, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ other callbacks


def checkpoint(path, **options):
    return keras.callbacks.ModelCheckpoint(path, **options)


@every_kind
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_checkpoints_hold_x_and_resume_exactly(make, last, suffix, tmp_path):
    whole = small_model(make())
    train(whole, 4, [EvaluationWeights()], validate=False)
    saver = checkpoint(tmp_path / ("{epoch}" + suffix), save_weights_only=suffix != ".keras")
    half = small_model(make())
    callbacks = [saver, EvaluationWeights()] if last else [EvaluationWeights(), saver]
    train(half, 2, callbacks, validate=False)
    if suffix == ".keras":
        resumed = keras.models.load_model(tmp_path / "2.keras")
    else:
        resumed = small_model(make())
        resumed.load_weights(tmp_path / "2.weights.h5")
    assert_close(resumed.get_weights(), evaluated(half), 0.0)
    train(resumed, 2, [EvaluationWeights()], validate=False)
    assert_close(resumed.get_weights(), whole.get_weights(), 0.0)
    assert_close(trained(resumed), trained(whole), 0.0)


@every_kind
def test_checkpoints_inside_an_epoch_resume_exactly(make, tmp_path):
    model = small_model(make())
    train(model, 1, [EvaluationWeights(), checkpoint(tmp_path / "{batch}.keras", save_freq=2)], validate=False)
    resumed = keras.models.load_model(tmp_path / "2.keras")
    assert not resumed.optimizer.holds_evaluation()
    train(resumed, 1, [EvaluationWeights()], validate=False, x=X[32:], y=Y[32:])
    assert_close(resumed.get_weights(), model.get_weights(), 0.0)


class Stop(keras.callbacks.Callback):
    """Breaks training in the middle of an epoch."""

    def __init__(self, epoch, error):
        super().__init__()
        self.at, self.error, self.epoch = epoch, error, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at and batch == 1:
            raise self.error


@every_kind
@pytest.mark.parametrize("last", [True, False])
def test_backup_and_restore_is_exact(make, last, tmp_path):
    def callbacks(*more):
        pair = [EvaluationWeights(), keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        return [*(pair[::-1] if last else pair), *more]

    whole = small_model(make())
    train(whole, 4, [EvaluationWeights()])
    broken = small_model(make())
    with pytest.raises(KeyboardInterrupt):
        train(broken, 4, callbacks(Stop(2, KeyboardInterrupt())))
    resumed = small_model(make())
    train(resumed, 4, callbacks())
    assert_close(resumed.get_weights(), whole.get_weights(), 0.0)
    assert_close(trained(resumed), trained(whole), 0.0)


@every_kind
@pytest.mark.parametrize("last", [True, False])
def test_early_stopping_restores_the_weights_it_measured(make, last):
    model = small_model(make())
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    callbacks = [EvaluationWeights(), stop]
    opposite = {"validation_data": (X, -Y), "validate": False}  # the more it learns, the worse
    history = train(model, 30, callbacks[::-1] if last else callbacks, **opposite).history["val_loss"]
    assert len(history) == 3 and min(history) == history[0]
    assert model.evaluate(X, -Y, batch_size=16, verbose=0) == pytest.approx(history[0], rel=1e-5)
    best = model.get_weights()
    model.optimizer.to_training()  # a schedule-free optimizer takes them for x
    assert_close(evaluated(model) if make is free else model.get_weights(), best, 1e-5)


def test_averages_outlive_an_evaluation():
    # Keras on JAX gives the buffers of the variables away when it evaluates.
    x, y = np.ones((40, 4), "float32"), np.ones((40, 1), "float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(averaging(), "mse")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[EvaluationWeights()], validation_data=(x, y))
    assert all(np.isfinite(weight).all() for weight in evaluated(model))


# ------------------------------------------------------------------------------------------------------- interruptions


@every_kind
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_while_training_leaves_the_training_weights(make, error):
    if keras.backend.backend() == "jax" and make is averaging:
        pytest.skip("Keras on JAX puts the moving average in after an error, too")
    whole, model = small_model(make()), small_model(make())
    train(whole, 2, [EvaluationWeights()], validate=False)
    callback = EvaluationWeights()
    with pytest.raises(error):
        train(model, 4, [callback, Stop(1, error("stopped"))])
    assert not model.optimizer.holds_evaluation()
    # The rest of the epoch, outside of the broken `fit`, with the same callback.
    before = model.get_weights()
    model.evaluate(X, Y, verbose=0, callbacks=[callback])
    assert_close(model.get_weights(), before, 0.0)
    train(model, 1, [callback], validate=False, x=X[32:], y=Y[32:])
    assert_close(model.get_weights(), whole.get_weights(), 0.0)


@every_kind
def test_an_error_in_validation_leaves_the_evaluation_weights(make):
    class Break(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    whole, model = small_model(make()), small_model(make())
    train(whole, 2, [EvaluationWeights()])
    with pytest.raises(KeyboardInterrupt):
        train(model, 2, [EvaluationWeights(), Break()])
    assert model.optimizer.holds_evaluation()
    train(model, 1, [EvaluationWeights()])
    assert_close(model.get_weights(), whole.get_weights(), 0.0)


def test_a_fit_without_it_behind_one_with_it_warns():
    model = small_model(free())
    train(model, 1, [EvaluationWeights()])
    with pytest.warns(UserWarning, match="4 updates were made on the evaluation weights"):
        train(model, 1)


def test_other_optimizers_are_refused():
    for optimizer in (optimizers.Adam(), keras.optimizers.SGD(use_ema=True)):
        with pytest.raises(ValueError, match=f"evaluation weights.*Received: {type(optimizer).__name__}"):
            train(small_model(optimizer), 1, [EvaluationWeights()])


# --------------------------------------------------------------------------------- wrappers, replicas, half precision


@pytest.mark.parametrize(
    "make",
    [
        lambda: precision.LossScaleOptimizer(free()),
        lambda: keras.optimizers.LossScaleOptimizer(free()),
        lambda: optimizers.wrap(free(), before=[]),
        lambda: optimizers.wrap(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)),
        lambda: precision.LossScaleOptimizer(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)),
    ],
    ids=["scaled", "scaled by Keras", "wrapped", "Keras wrapped", "Keras scaled"],
)
@pytest.mark.slow
def test_through_wrappers(make, tmp_path):
    def inner(model):
        return getattr(model.optimizer, "inner_optimizer", model.optimizer)

    whole, half = small_model(make()), small_model(make())
    train(whole, 4, [EvaluationWeights()])
    train(half, 2, [EvaluationWeights(), checkpoint(tmp_path / "m.keras")])
    resumed = keras.models.load_model(tmp_path / "m.keras")
    assert inner(resumed).holds_evaluation()
    history = train(resumed, 2, [EvaluationWeights()]).history
    assert_close(resumed.get_weights(), whole.get_weights(), 0.0)
    assert_close(resumed.get_weights(), [ops.convert_to_numpy(w) for w in inner(whole).evaluation_weights()], 0.0)
    assert history["val_loss"][-1] == pytest.approx(loss_at(resumed.get_weights()), rel=1e-5)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_in_float16(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    whole, half = small_model(free()), small_model(free())
    train(whole, 4, [EvaluationWeights()])
    train(half, 2, [EvaluationWeights(), checkpoint(tmp_path / "m.keras")])
    resumed = keras.models.load_model(tmp_path / "m.keras")
    train(resumed, 2, [EvaluationWeights()])
    assert isinstance(resumed.optimizer, keras.optimizers.LossScaleOptimizer)
    assert_close(resumed.get_weights(), whole.get_weights(), 0.0)


@every_kind
@pytest.mark.tensorflow
def test_on_two_replicas(make, two_replicas, tmp_path):
    options = {"gradient_accumulation_steps": 2}
    alone = small_model(make(**options))
    one = train(alone, 4, [EvaluationWeights()]).history
    with two_replicas.scope():
        together = small_model(make(**options))
    train(together, 2, [EvaluationWeights(), checkpoint(tmp_path / "m.keras")])
    with two_replicas.scope():
        resumed = keras.models.load_model(tmp_path / "m.keras")
    two = [train(model, 2, [EvaluationWeights()]).history for model in (together, resumed)]
    assert_close(together.get_weights(), alone.get_weights(), 2e-6)
    assert_close(resumed.get_weights(), together.get_weights(), 0.0)
    assert one["val_loss"][-1] == pytest.approx(two[0]["val_loss"][-1], rel=1e-5)
    for variable in together.trainable_variables:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_in_bfloat16_weights(tmp_path):
    def make():
        keras.utils.set_random_seed(2)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, dtype="bfloat16")])
        model.compile(free(), "mse", jit_compile=False)
        return model

    whole, half = make(), make()
    train(whole, 4, [EvaluationWeights()])
    train(half, 2, [EvaluationWeights(), checkpoint(tmp_path / "m.weights.h5", save_weights_only=True)])
    resumed = make()
    resumed.load_weights(tmp_path / "m.weights.h5")
    train(resumed, 2, [EvaluationWeights()])
    assert_close([w.astype("float32") for w in resumed.get_weights()],
                 [w.astype("float32") for w in whole.get_weights()], 0.0)  # fmt: skip


# ------------------------------------------------------------------------------------------------- batch normalization


def normalized():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )
    model.compile(free(), "mse", jit_compile=False)
    return model


def population(model):
    hidden = ops.convert_to_numpy(model.layers[0](X)).astype("float64")
    return hidden.mean(axis=0), hidden.var(axis=0)


def moving(model):
    layer = model.layers[1]
    return [ops.convert_to_numpy(layer.moving_mean), ops.convert_to_numpy(layer.moving_variance)]


def test_statistics_are_refreshed_for_x_and_training_is_the_same(tmp_path):
    plain, model = normalized(), normalized()
    train(plain, 3, [EvaluationWeights()])
    saver = checkpoint(tmp_path / "m.keras")
    history = train(model, 3, [EvaluationWeights(refresh=X), saver]).history
    np.testing.assert_allclose(moving(model), population(model), rtol=1e-5, atol=1e-6)
    assert np.abs(np.array(moving(plain)) - population(plain)).max() > 0.01
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-5)
    for a, b in zip(model.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    resumed = keras.models.load_model(tmp_path / "m.keras")
    train(model, 1, [EvaluationWeights(refresh=X)])
    train(resumed, 1, [EvaluationWeights(refresh=X)])
    assert_close(resumed.get_weights(), model.get_weights(), 0.0)


def test_prediction_with_refreshed_statistics_leaves_the_old():
    model = normalized()
    train(model, 1, [EvaluationWeights()])
    model.optimizer.to_training()
    before = model.get_weights()
    look = Look()
    model.predict(X, verbose=0, callbacks=[EvaluationWeights(refresh=X, refresh_batches=1), look])
    assert all(look.seen["predict batch"])
    assert_close(model.get_weights(), before, 0.0)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="`refresh_batches` must be an integer at least 1"):
        EvaluationWeights(refresh=X, refresh_batches=0)
