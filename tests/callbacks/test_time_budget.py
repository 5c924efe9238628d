"""A schedule that ends when the time does, by a clock that the test turns."""

import keras
import numpy as np
import pytest
from steps import fit, model_of

from keras_trainkit import optimizers, schedules
from keras_trainkit.callbacks import ReduceOnPlateau, TimeBudget


class Clock(keras.callbacks.Callback):
    """Every batch takes as long as `seconds(batch)` says; the first one more, because it is traced."""

    def __init__(self, seconds, of_epoch=0.0):
        super().__init__()
        self.now, self.done, self.seconds, self.of_epoch = 1000.0, 0, seconds, of_epoch

    def __call__(self):
        return self.now

    def on_train_batch_end(self, batch, logs=None):
        self.now += self.seconds(self.done) + (5.0 if self.done == 0 else 0.0)
        self.done += 1

    def on_epoch_end(self, epoch, logs=None):
        self.now += self.of_epoch


def run(budget, clock, optimizer=None, epochs=40, batches=10, extra=()):
    budget.clock = clock
    model = model_of(optimizer or optimizers.SGD(schedules.Linear(1.0, epochs * batches)))
    steps = fit(model, clock, budget, *extra, epochs=epochs, batches=batches)
    return model, steps


@pytest.mark.parametrize(
    ("seconds", "of_epoch"),
    [(lambda batch: 1.0, 0.0), (lambda batch: 1.0 + (batch >= 40), 0.0), (lambda batch: 0.5, 4.0)],
    ids=["steady", "half as fast later", "with a validation"],
)
def test_the_schedule_ends_with_the_time(seconds, of_epoch):
    clock = Clock(seconds, of_epoch)
    budget = TimeBudget("2min")
    _, rates = run(budget, clock)
    used = clock.now - 1000.0
    assert 0.85 * 120 <= used <= 120
    assert rates[0] == pytest.approx(1.0) and (np.diff(rates) <= 1e-5).all()
    assert rates[-1] < 0.1 and budget.speed > 1.5
    # The decay is spread over all that was trained, not crammed into its end.
    assert rates[len(rates) // 2] == pytest.approx(0.5, abs=0.2)


def test_with_time_enough_nothing_changes():
    clock, budget = Clock(lambda batch: 0.01), TimeBudget(1000)
    _, rates = run(budget, clock, epochs=4)
    plain = fit(model_of(optimizers.SGD(schedules.Linear(1.0, 40))), epochs=4, batches=10)
    np.testing.assert_allclose(rates, plain, rtol=1e-6)
    assert budget.speed == 1.0 and len(rates) == 40


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: optimizers.SGD(rate, gradient_accumulation_steps=2),
        lambda rate: keras.optimizers.SGD(rate),
    ],
    ids=["windows", "Keras's"],
)
def test_windows_and_optimizers_of_keras(make):
    optimizer = make(keras.optimizers.schedules.PolynomialDecay(1.0, 200, 0.0))
    clock = Clock(lambda batch: 1.0)
    _, rates = run(TimeBudget(100), clock, optimizer, epochs=20 * (optimizer.gradient_accumulation_steps or 1))
    assert 85 <= clock.now - 1000 <= 100
    assert 0 < rates[rates > 0][-1] < 0.15


def test_stop_keeps_the_schedule_and_the_reserve():
    clock, budget = Clock(lambda batch: 1.0), TimeBudget(60, mode="stop", reserve=10)
    _, rates = run(budget, clock)
    assert 46 <= clock.now - 1000 <= 50
    np.testing.assert_allclose(rates, 1 - np.arange(len(rates)) / 400, rtol=1e-4)


def test_time_of_an_earlier_process_counts_and_the_plan_goes_on():
    budget, clock = TimeBudget(100), Clock(lambda batch: 1.0)
    run(budget, clock)
    state = budget.get_state()
    assert state["elapsed"] == pytest.approx(clock.now - 1000)

    later = TimeBudget(**budget.get_config())
    later.clock = clock
    later.set_model(model_of(optimizers.SGD(schedules.Linear(1.0, 400))))
    later.set_params({"epochs": 40, "steps": 10})
    later.on_train_begin()
    later.set_state(state)
    assert later.elapsed == pytest.approx(state["elapsed"]) and later.speed == budget.speed
    clock.now += 3
    assert later.elapsed == pytest.approx(state["elapsed"] + 3)


def test_beside_a_plateau_and_in_a_file(tmp_path):
    clock = Clock(lambda batch: 1.0)
    model, rates = run(TimeBudget(100), clock, extra=[ReduceOnPlateau("loss", patience=50)])
    assert rates[-1] < 0.15
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(float(model.optimizer.learning_rate))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0}, "`seconds`"),
        ({"seconds": "5 days"}, "30min"),
        ({"seconds": 10, "mode": "end"}, "`mode`"),
        ({"seconds": 10, "updates": 0}, "`updates`"),
        ({"seconds": 10, "reserve": "10s"}, "`reserve`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimeBudget(**arguments)


def test_data_of_unknown_length_need_updates():
    def endless():
        while True:
            yield np.ones((1, 1), "float32"), np.ones((1, 1), "float32")

    model = model_of(optimizers.SGD(schedules.Linear(1.0, 50)))
    with pytest.raises(ValueError, match="`updates` must be given"):
        model.fit(endless(), verbose=0, callbacks=[TimeBudget(10)])
