"""Lengths in epochs and shares of the run: resolved when `fit` starts, before anything is traced."""

import keras
import numpy as np
import pytest
from steps import ONES, fit, model_of

from keras_trainkit import data, optimizers, schedules
from keras_trainkit.callbacks import AccumulationSchedule, HyperparameterSchedule, ReduceOnPlateau, ResolveSpans

SPELLED = schedules.Warmup(schedules.Cosine(1.0, "0.75run"), "1ep")
PLAIN = schedules.Warmup(schedules.Cosine(1.0, 36), 12)


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def test_without_the_callback_the_error_names_it():
    with pytest.raises(
        ValueError, match=r"`steps` of Warmup must be known in updates.*ResolveSpans.*schedules\.resolve"
    ):
        fit(model_of(keras.optimizers.SGD(SPELLED)))


@pytest.mark.parametrize("make", [keras.optimizers.SGD, optimizers.SGD], ids=["Keras", "the kit"])
def test_fit_resolves_before_it_traces(make):
    model = model_of(make(SPELLED))
    np.testing.assert_allclose(fit(model, ResolveSpans(), epochs=4), rates(PLAIN, range(48)), atol=2e-6)
    assert model.optimizer.get_config()["learning_rate"]["config"]["steps"] == 12
    assert model.layers[-1].traced <= 2  # the symbolic build, and the one trace


def test_a_resumed_run_has_the_rates_of_the_uninterrupted_one(tmp_path):
    model = model_of(optimizers.SGD(SPELLED))

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, ResolveSpans(), keras.callbacks.BackupAndRestore(tmp_path / "backup"), Stop(), epochs=4)
    again = model_of(optimizers.SGD(SPELLED))
    found = fit(again, ResolveSpans(), keras.callbacks.BackupAndRestore(tmp_path / "backup"), epochs=4)
    np.testing.assert_allclose(found[-24:], rates(PLAIN, range(24, 48)), atol=2e-6)


def test_a_saved_model_goes_on_along_the_resolved_schedule(tmp_path):
    model = model_of(optimizers.SGD(SPELLED))
    fit(model, ResolveSpans(epochs=4), epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = fit(loaded, ResolveSpans(), epochs=4, initial_epoch=2)
    np.testing.assert_allclose(found, rates(PLAIN, range(24, 48)), atol=2e-6)


def test_lengths_count_updates_where_the_kit_accumulates():
    half = schedules.Linear(1.0, 12)  # 24 batches are 12 updates
    ours = model_of(optimizers.SGD(schedules.Linear(1.0, "1run"), gradient_accumulation_steps=2))
    found = fit(ours, ResolveSpans(), epochs=2)
    np.testing.assert_allclose(found[1::2], rates(half, range(12)), atol=2e-6)
    np.testing.assert_array_equal(found[::2], 0)


@pytest.mark.parametrize("last", [False, True])
def test_lengths_count_updates_while_the_batches_to_an_update_change(last):
    growing = AccumulationSchedule({0: 1, 1: 4, 3: 2})  # updates of the epochs: 12, 3, 3, 6
    model = model_of(optimizers.SGD(schedules.Linear(1.0, "1run"), gradient_accumulation_steps=4))
    values = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            values.append(follow.values()["weight_decay"])

    follow = HyperparameterSchedule(weight_decay=schedules.Linear(0.0, "2ep", 1e-9))  # 15 updates
    callbacks = [ResolveSpans(), follow, Look()]
    found = fit(model, *[*callbacks, growing] if last else [growing, *callbacks], epochs=4)
    np.testing.assert_allclose(found[found != 0], rates(schedules.Linear(1.0, 24), range(24)), atol=2e-6)
    assert values[11] == pytest.approx(11 / 15 * 1e-9, rel=1e-5) and values[-1] == pytest.approx(1e-9)
    # Without the callback it is counted as the optimizer does now.
    again = HyperparameterSchedule(weight_decay=schedules.Linear(0.0, "1run", 1e-9))
    fit(model, again, keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: values.append(again._following)))
    assert values[-1]["weight_decay"].decay_steps == 6


def test_a_steered_and_a_batch_rate_are_resolved_inside():
    model = model_of(optimizers.SGD(SPELLED))
    found = fit(model, ReduceOnPlateau("loss"), ResolveSpans(), epochs=4)
    np.testing.assert_allclose(found, rates(PLAIN, range(48)), atol=2e-6)
    resolved = schedules.resolve(data.RateByBatch(SPELLED, 32), 12, 4)
    assert resolved.schedule == PLAIN and resolved.batch_size == 32


def test_an_epoch_of_unknown_length_is_an_error_until_it_is_told():
    def batches():
        for _ in range(12):
            yield ONES[:1], ONES[:1]

    model = model_of(optimizers.SGD(SPELLED))
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        model.fit(batches(), epochs=2, verbose=0, callbacks=[ResolveSpans()])
    model.fit(batches(), epochs=1, verbose=0, callbacks=[ResolveSpans(steps_per_epoch=12, epochs=4)])
    # Keras trains on the first batch of a generator twice.
    assert float(model.optimizer.learning_rate) == pytest.approx(float(PLAIN(int(model.optimizer.iterations))))


@pytest.mark.parametrize(
    ("spelled", "steps"),
    [
        (schedules.Cosine(1.0, "0.5run"), 60),
        (schedules.Cosine(1.0, "2.5 ep"), 30),
        (schedules.Cosine(1.0, ".001run"), 1),
        (schedules.Cosine(1.0, 7), 7),
    ],
)
def test_resolve_rounds_to_whole_updates_and_to_at_least_one(spelled, steps):
    assert schedules.resolve(spelled, steps_per_epoch=12, epochs=10).decay_steps == steps


def test_resolve_goes_into_lists_and_leaves_foreign_schedules_alone():
    theirs = keras.optimizers.schedules.CosineDecay(1.0, 5)
    found = schedules.resolve(schedules.Sequence([SPELLED, theirs, 0.1], ["1ep", "0.5run"]), 24, 4, accumulation=2)
    assert found == schedules.Sequence([PLAIN, theirs, 0.1], [12, 24])
    assert schedules.resolve(theirs, 12, 4) is theirs
    assert schedules.resolve(schedules.MultiStep(1.0, ["0.5run", "0.75run"]), 10, 2).milestones == [10, 15]
    with pytest.raises(ValueError, match="`epochs` must be a number above 0"):
        schedules.resolve(SPELLED, 12, 0)
    for wrong in (0, {0: 0}, {-1: 2}):
        with pytest.raises(ValueError, match="`accumulation"):
            schedules.resolve(SPELLED, 12, 4, wrong)


def test_the_callback_survives_its_configuration():
    again = ResolveSpans(**ResolveSpans(3, 5).get_config())
    assert (again.steps_per_epoch, again.epochs) == (3, 5)
    with pytest.raises(ValueError, match="Received: epochs=0"):
        ResolveSpans(epochs=0)
