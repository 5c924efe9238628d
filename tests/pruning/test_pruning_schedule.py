"""The cubic, its stages and its spans."""

import numpy as np
import pruning_twin as twin
import pytest
from keras import ops

from keras_trainkit import schedules
from keras_trainkit.pruning import PruningSchedule


@pytest.mark.parametrize(
    ("final", "initial", "begin", "end", "frequency", "power"),
    [(0.8, 0.0, 0, 100, 10, 3), (0.9, 0.3, 17, 101, 13, 3), (0.5, 0.0, 5, 5, 7, 3), (0.7, 0.1, 3, 60, 100, 1)],
)
def test_values_of_every_step(final, initial, begin, end, frequency, power):
    schedule = PruningSchedule(final, initial, begin, end, frequency, power)
    for step in range(end + 20):
        assert schedule.sparsity(step) == twin.sparsity(step, final, initial, begin, end, frequency, power)
        done = int(ops.convert_to_numpy(schedule.stages_done(ops.convert_to_tensor(step))))
        assert done == sum(stage <= step for stage in schedule.stages())


def test_the_cubic_of_the_paper():
    # Half-way (1 - 1/2)^3 = 1/8 of the way is left.
    assert PruningSchedule(0.8, 0.0, 0, 200, 100).sparsities() == pytest.approx([0, 0.8 * 7 / 8, 0.8])


def test_it_never_falls_and_ends_exactly():
    for frequency in (1, 3, 50, 1000):
        found = PruningSchedule(0.95, 0.2, 10, 777, frequency).sparsities()
        assert np.all(np.diff(found) >= 0)
        assert found[-1] == 0.95


def test_spans():
    schedule = PruningSchedule(0.8, begin_step="1ep", end_step="0.5run", frequency="0.5ep")
    with pytest.raises(ValueError, match="`begin_step` is a share of a run"):
        schedule.stages()
    exact = schedules.resolve(schedule, steps_per_epoch=40, epochs=10, accumulation=2)
    assert exact.stages() == list(range(20, 101, 10))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"final_sparsity": 1.0}, "Received: final_sparsity=1.0"),
        ({"final_sparsity": 0.5, "initial_sparsity": 0.6}, "must be at most `final_sparsity`"),
        ({"final_sparsity": 0.5, "begin_step": 10, "end_step": 9}, "Received: end_step=9"),
        ({"final_sparsity": 0.5, "frequency": 0}, "`frequency`"),
        ({"final_sparsity": 0.5, "begin_step": "soon"}, "`begin_step`"),
        ({"final_sparsity": 0.5, "power": 0}, "Received: power=0"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        PruningSchedule(**arguments)
