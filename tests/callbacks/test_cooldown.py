"""A cooldown that begins in a running `fit`."""

import keras
import numpy as np
import pytest
from steps import fit, model_of

from keras_trainkit import optimizers, schedules
from keras_trainkit.callbacks import AccumulationSchedule, ResolveSpans, StartCooldown

STABLE = schedules.WSD(1.0, warmup_steps=6)


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


class BeginAt(keras.callbacks.Callback):
    """Begins the cooldown before a given batch of all."""

    def __init__(self, cooldown, batch):
        super().__init__()
        self.cooldown, self.batch, self.count = cooldown, batch, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.count == self.batch:
            self.cooldown.begin()
        self.count += 1


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", "1-square"])
def test_the_rate_falls_from_now_on_and_fit_ends(shape):
    cooldown = StartCooldown(decay_steps=10, shape=shape, alpha=0.1)
    model = model_of(optimizers.SGD(STABLE))
    found = fit(model, BeginAt(cooldown, 30), cooldown, epochs=9)
    known = STABLE.cool_down_from(30, 10)
    known = schedules.WSD(1.0, 6, known.stable_steps, 10, 0.1, shape)
    np.testing.assert_allclose(found, rates(known, range(40)), atol=3e-6)
    assert cooldown.started == 30
    np.testing.assert_allclose(found, rates(schedules.Cooldown(STABLE, 30, 10, 0.1, shape), range(40)), atol=3e-6)


@pytest.mark.tensorflow
def test_nothing_is_traced_anew_when_it_begins():
    cooldown = StartCooldown(decay_steps=10)
    model = model_of(optimizers.SGD(STABLE))
    fit(model, BeginAt(cooldown, 15), cooldown, epochs=9)
    assert cooldown.started == 15 and model.layers[-1].traced <= 2


def test_it_works_with_a_schedule_of_keras_and_lengths_in_epochs():
    theirs = keras.optimizers.schedules.PolynomialDecay(1.0, 100, 0.2)
    cooldown = StartCooldown(decay_steps="0.5ep", shape="linear", stop=False)
    found = fit(model_of(keras.optimizers.SGD(theirs)), BeginAt(cooldown, 12), cooldown, epochs=2)
    expected = rates(schedules.Cooldown(theirs, 12, 6, shape="linear"), range(24))
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_lengths_in_epochs_count_the_batches_that_make_an_update_now():
    cooldown = StartCooldown(decay_steps="2ep", shape="linear", stop=False)
    model = model_of(optimizers.SGD(0.5, gradient_accumulation_steps=4))
    # Updates of the epochs: 12, 12, 3, 3; it begins with the third.
    fit(model, AccumulationSchedule({0: 1, 2: 4}), BeginAt(cooldown, 24), cooldown, epochs=4)
    assert cooldown.started == 24
    assert [round(float(cooldown._rate(step)), 4) for step in (24, 27, 30)] == [0.5, 0.25, 0.0]


def test_a_file_begins_it(tmp_path):
    file = tmp_path / "enough"
    cooldown = StartCooldown(decay_steps=6, file=file)

    class Enough(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                file.write_text("")

    found = fit(model_of(optimizers.SGD(STABLE)), Enough(), cooldown, epochs=9)
    assert cooldown.started == 24 and len(found) == 30


@pytest.mark.parametrize("file", ["model.keras", "backup"])
def test_a_run_resumed_in_its_cooldown_goes_on_with_it(tmp_path, file):
    def callbacks(*more):
        cooldown = StartCooldown(decay_steps=20)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return [*(make(cooldown) for make in more), cooldown, *([backup] if file == "backup" else [])]

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    model = model_of(optimizers.SGD(schedules.WSD(1.0, "0.5ep")))
    begin = callbacks(lambda cooldown: BeginAt(cooldown, 15), lambda _: Stop())
    with pytest.raises(KeyboardInterrupt):
        fit(model, ResolveSpans(), *begin, epochs=9)
    if file == "backup":
        again = model_of(optimizers.SGD(schedules.WSD(1.0, "0.5ep")))
        found = fit(again, *callbacks(), ResolveSpans(), epochs=9)
    else:
        model.save(tmp_path / file)
        again = keras.models.load_model(tmp_path / file)
        found = fit(again, *callbacks(), epochs=9, initial_epoch=2)
    known = schedules.WSD(1.0, 6, 9, 20)
    np.testing.assert_allclose(found[-11:], rates(known, range(24, 35)), atol=3e-6)
    assert int(again.optimizer.iterations) == 35


def test_bad_arguments_fail_at_construction():
    with pytest.raises(ValueError, match="Received: decay_steps=0"):
        StartCooldown(0)
    with pytest.raises(ValueError, match="`shape` must be one of"):
        StartCooldown(5, shape="square")
    made = StartCooldown("2ep", "linear", 0.1, "enough", False)
    assert StartCooldown(**made.get_config()).get_config() == made.get_config()
