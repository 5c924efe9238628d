"""A multiplier over any schedule where a metric stands still; what Keras's own callbacks do there comes first."""

import keras
import numpy as np
import pytest
from steps import fit, model_of

from keras_trainkit import optimizers, precision, schedules
from keras_trainkit.callbacks import ReduceOnPlateau

SCHEDULE = schedules.Cosine(1.0, 200)


class Metric(keras.callbacks.Callback):
    """Puts given values into the logs of the epochs."""

    def __init__(self, values, name="val_loss"):
        super().__init__()
        self.values, self.name = values, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


def multipliers(callback, values, optimizer=None, name="val_loss"):
    model = model_of(optimizer or optimizers.SGD(0.5))
    history = keras.callbacks.History()
    fit(model, Metric(values, name), callback, history, epochs=len(values), batches=1)
    return [round(value, 4) for value in history.history["rate_multiplier"]]


def test_reduce_lr_on_plateau_of_keras_fails_with_a_schedule_once_it_has_something_to_do():
    model = model_of(keras.optimizers.SGD(SCHEDULE))
    callback = keras.callbacks.ReduceLROnPlateau(patience=2)
    with pytest.raises(TypeError, match="not settable"):
        fit(model, Metric([1.0] * 9), callback, epochs=9)
    assert int(model.optimizer.iterations) == 36  # three epochs late


def test_learning_rate_scheduler_of_keras_fails_with_a_schedule():
    model = model_of(keras.optimizers.SGD(SCHEDULE))
    with pytest.raises(TypeError, match="not settable"):
        fit(model, keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5))


@pytest.mark.parametrize(
    "schedule",
    [SCHEDULE, keras.optimizers.schedules.PolynomialDecay(1.0, 200, 0.0), 0.5, lambda: 0.5],
    ids=["the kit's", "Keras's", "a number", "a function"],
)
@pytest.mark.parametrize("make", [optimizers.SGD, keras.optimizers.SGD], ids=["the kit", "Keras"])
def test_ours_multiplies_what_any_schedule_says(make, schedule):
    model = model_of(make(schedule))
    found = fit(model, Metric([1.0] * 6), ReduceOnPlateau(patience=2, factor=0.5), epochs=6)
    said = np.array(
        [
            float(schedule(t) if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule) else 0.5)
            for t in range(72)
        ]
    )
    factors = np.repeat([1, 1, 1, 0.5, 0.5, 0.25], 12)
    np.testing.assert_allclose(found, said * factors, atol=2e-5)


@pytest.mark.tensorflow
def test_nothing_is_traced_anew_when_the_multiplier_falls():
    model = model_of(optimizers.SGD(SCHEDULE))
    fit(model, Metric([1.0] * 2), ReduceOnPlateau(patience=1), epochs=2)
    traced = model.layers[-1].traced
    fit(model, Metric([1.0] * 6), ReduceOnPlateau(patience=1), epochs=6)
    assert model.layers[-1].traced == traced


def test_patience_cooldown_warmup_and_the_least_multiplier():
    flat = [1.0] * 9
    assert multipliers(ReduceOnPlateau(patience=2, factor=0.5), flat)[:6] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert multipliers(ReduceOnPlateau(patience=2, factor=0.5, cooldown=2), flat) == [
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
    ]
    assert multipliers(ReduceOnPlateau(patience=2, factor=0.5, warmup=4), flat)[:7] == [1, 1, 1, 1, 1, 0.5, 0.5]
    assert multipliers(ReduceOnPlateau(patience=1, factor=0.1, minimum=0.05), flat)[:4] == [1, 0.1, 0.05, 0.05]


def test_what_counts_as_better():
    falling = [1.0, 0.9, 0.8, 0.7]
    assert multipliers(ReduceOnPlateau(patience=1), falling) == [1, 1, 1, 1]
    assert multipliers(ReduceOnPlateau("val_accuracy", patience=1, factor=0.5), falling, name="val_accuracy") == [
        1,
        0.5,
        0.25,
        0.125,
    ]
    assert multipliers(ReduceOnPlateau(patience=1, factor=0.5, mode="max"), falling) == [1, 0.5, 0.25, 0.125]
    assert multipliers(ReduceOnPlateau(patience=2, factor=0.5, min_delta=0.5), falling) == [1, 1, 0.5, 0.5]
    assert multipliers(ReduceOnPlateau(patience=2, factor=0.5), [1.0, float("nan"), float("nan")]) == [1, 1, 0.5]
    assert multipliers(ReduceOnPlateau(patience=9), [float("nan"), 1.0, 0.5])[-1] == 1


def test_a_metric_that_is_not_there_is_a_warning():
    with pytest.warns(UserWarning, match="no metric 'val_loss'. There are loss"):
        fit(model_of(optimizers.SGD(0.5)), ReduceOnPlateau())


@pytest.mark.parametrize("make", [optimizers.SGD, keras.optimizers.SGD], ids=["the kit", "Keras"])
def test_a_saved_model_goes_on_with_multiplier_and_counts(make, tmp_path):
    model, values = model_of(make(SCHEDULE)), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    whole = model_of(make(SCHEDULE))
    expected = fit(whole, Metric(values), ReduceOnPlateau(patience=2, factor=0.5), epochs=6)
    fit(model, Metric(values), ReduceOnPlateau(patience=2, factor=0.5), epochs=4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    callback = ReduceOnPlateau(patience=2, factor=0.5)
    found = fit(loaded, Metric(values), callback, epochs=6, initial_epoch=4)
    np.testing.assert_allclose(found, expected[-24:], atol=2e-5)
    assert callback.multiplier == 0.25
    # Without the callback the multiplier stays.
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.25 * float(SCHEDULE(72)), rel=1e-5)


def test_backup_and_restore_brings_multiplier_and_counts_back(tmp_path):
    values = [1.0] * 6

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 4:
                raise KeyboardInterrupt

    def callbacks(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return [Metric(values), ReduceOnPlateau(patience=2, factor=0.5), backup, *more]

    expected = fit(
        model_of(optimizers.SGD(SCHEDULE)), Metric(values), ReduceOnPlateau(patience=2, factor=0.5), epochs=6
    )
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(optimizers.SGD(SCHEDULE)), *callbacks(Stop()), epochs=6)
    found = fit(model_of(optimizers.SGD(SCHEDULE)), *callbacks(), epochs=6)
    np.testing.assert_allclose(found[-24:], expected[-24:], atol=2e-5)


@pytest.mark.tensorflow
def test_it_works_under_two_replicas_and_in_a_loss_scale_optimizer(two_replicas):
    with two_replicas.scope():
        model = model_of(precision.LossScaleOptimizer(optimizers.SGD(SCHEDULE)))
    model.fit(
        np.ones((24, 1), "float32"), np.ones((24, 1), "float32"), batch_size=2, epochs=5, verbose=0,
        callbacks=[Metric([1.0] * 5), ReduceOnPlateau(patience=2, factor=0.5)],
    )  # fmt: skip
    said = np.array([float(SCHEDULE(t)) for t in range(60)]) * np.repeat([1, 1, 1, 0.5, 0.5], 12)
    assert model.get_weights()[0] == pytest.approx(-said.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"factor": 1.0}, "Received: factor=1.0"),
        ({"patience": 0}, "Received: patience=0"),
        ({"mode": "best"}, "`mode` must be one of"),
        ({"cooldown": -1}, "Received: cooldown=-1"),
        ({"minimum": 1.0}, "Received: minimum=1.0"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        ReduceOnPlateau(**arguments)


def test_the_callback_survives_its_configuration():
    made = ReduceOnPlateau("loss", 0.5, 3, 0.1, "max", 1, 2, 0.01, 1)
    assert ReduceOnPlateau(**made.get_config()).get_config() == made.get_config()
