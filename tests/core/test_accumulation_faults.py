"""Faults of plain Keras's gradient accumulation on one device, and the same cases right with the kit.

When a new Keras mends one of them, the first half of its test fails: then the documentation must change, too.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, training
from keras_trainkit.testing.contracts import fit, small_model

pytestmark = pytest.mark.tensorflow


@pytest.mark.shows(
    "several-devices",
    "schedules with accumulation",
    keras="count micro-batches: with windows of 4 the first update has the rate of the fourth",
    kit="count updates",
)
def test_schedule_sees_micro_batches():
    def first_update(module):
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1, 2], [0.1, 0.2, 0.3, 0.4])
        variable = keras.Variable(np.zeros(1, "float32"))
        optimizer = module.SGD(schedule, gradient_accumulation_steps=4)
        optimizer.build([variable])
        for _ in range(4):
            optimizer.apply([ops.ones(1)], [variable])
        return float(ops.convert_to_numpy(variable)[0])

    assert first_update(keras.optimizers) == pytest.approx(-0.4)
    assert first_update(optimizers) == pytest.approx(-0.1)


@pytest.mark.shows(
    "several-devices",
    "moving averages with accumulation",
    keras="decay at each micro-batch",
    kit="decay at each update",
)
def test_average_decays_at_micro_batches():
    def average(module):
        variable = keras.Variable(np.array([1.0], "float32"))
        optimizer = module.SGD(0.1, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5)
        optimizer.build([variable])
        for _ in range(6):
            optimizer.apply([ops.ones(1)], [variable])
        optimizer.finalize_variable_values([variable])
        return float(ops.convert_to_numpy(variable)[0])

    # The weights after the updates are 0.9, 0.8, 0.7; their average with decay 0.5 is 0.775.
    assert average(optimizers) == pytest.approx(0.775, abs=1e-6)
    assert abs(average(keras.optimizers) - 0.775) > 0.01


@pytest.mark.shows(
    "several-devices",
    "accumulation in bfloat16",
    keras="sums in bfloat16: the mean of 300 ones is 0.85",
    kit="sums in float32: it is 1",
)
def test_accumulation_in_bfloat16_loses_small_gradients():
    def mean_of_ones(module):
        variable = keras.Variable(np.zeros(1), dtype="bfloat16")
        optimizer = module.SGD(1.0, gradient_accumulation_steps=300)
        optimizer.build([variable])
        for _ in range(300):
            optimizer.apply([ops.ones(1, "bfloat16")], [variable])
        return -float(ops.convert_to_numpy(variable).astype("float32")[0])

    assert mean_of_ones(keras.optimizers) == pytest.approx(0.85, abs=0.005)
    assert mean_of_ones(optimizers) == 1.0


def line(optimizer):
    """A model whose weight grows at each update by the mean of the targets."""
    layers = [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    model = keras.Sequential(layers)
    model.compile(optimizer, lambda y, p: -y * p, jit_compile=False)
    return model


def grown(model, targets, batch_size=1):
    """The weight after one epoch of these targets."""
    y = np.array(targets, "float32")
    model.fit(np.ones((len(y), 1)), y, batch_size=batch_size, shuffle=False, verbose=0)
    return model.get_weights()[0].item()


@pytest.mark.shows(
    "several-devices",
    "a window that is part full when `fit` ends",
    keras="lost, or, if there is a next `fit`, part of its first window",
    kit="`last_window`: applied, dropped, or carried into the next `fit`",
)
def test_a_part_of_a_window_leaks_into_the_next_fit():
    def both(module, **options):
        model = line(module.SGD(1.0, gradient_accumulation_steps=4, **options))
        return grown(model, [1, 1]), grown(model, [5, 5]), grown(model, [9, 9])

    assert both(keras.optimizers) == (0, 3, 3)  # the mean of 1, 1, 5, 5, and nothing of the last two
    assert both(optimizers, last_window="apply") == (1, 6, 15)
    assert both(optimizers, last_window="drop") == (0, 0, 0)
    assert both(optimizers, last_window="carry") == (0, 3, 3)


@pytest.mark.shows(
    "several-devices",
    "micro-batches of 4 samples and of 1",
    keras="count the same",
    kit="count by their samples with `training.weigh_samples`",
)
def test_micro_batches_count_the_same_whatever_their_size():
    y = [0, 0, 0, 0, 5]  # a batch of four and one of one; the mean of all is 1
    assert grown(line(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)), y, 4) == 2.5
    ours = training.weigh_samples(line(optimizers.SGD(1.0, gradient_accumulation_steps=2)))
    assert grown(ours, y, 4) == pytest.approx(1)


@pytest.mark.shows(
    "several-devices",
    "accumulation switched on for a model that was saved without",
    keras="all state of the optimizer is dropped, with a warning",
    kit="the state goes on",
)
def test_switching_accumulation_on_drops_the_state(tmp_path):
    def moved(module):
        """How many updates the optimizer counts, and the largest of its moments, after loading."""
        model = small_model(module.Adam(0.01))
        fit(model, epochs=1)
        model.save_weights(tmp_path / "m.weights.h5")
        other = small_model(module.Adam(0.01, gradient_accumulation_steps=2))
        other.optimizer.build(other.trainable_variables)
        other.load_weights(tmp_path / "m.weights.h5")
        slots = [
            ops.convert_to_numpy(v) for v in other.optimizer.variables if v.path.endswith(("momentum", "velocity"))
        ]
        return int(ops.convert_to_numpy(other.optimizer.iterations)), max(np.abs(slot).max() for slot in slots)

    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        assert moved(keras.optimizers) == (0, 0)
    updates, largest = moved(optimizers)
    assert updates == 4 and largest > 0
