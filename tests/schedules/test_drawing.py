"""Pictures of schedules: what is drawn is what the schedules say."""

import keras
import numpy as np
import pytest

from keras_trainkit import schedules

CYCLES = schedules.CosineRestarts(1.0, 100)


def curves(figure):
    return [line.get_xydata() for axes in figure.axes for line in axes.get_lines()]


def test_each_schedule_has_a_frame_with_its_curve():
    figure = schedules.plot({"fast": schedules.Linear(1.0, 40), "slow": schedules.Linear(1.0, "1run")}, 50)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["fast", "slow"]
    fast, slow = curves(figure)
    np.testing.assert_array_equal(fast[:, 0], np.arange(50))
    np.testing.assert_allclose(fast[[0, 20, 40], 1], [1.0, 0.5, 0.0], atol=1e-6)
    assert slow[25, 1] == pytest.approx(0.5)


def test_together_and_titles_of_the_same_kind():
    figure = schedules.plot([CYCLES, schedules.Constant(0.1), schedules.Constant(0.2)], 300, together=True, log=True)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["CosineRestarts", "Constant 1", "Constant 2"] and axes.get_yscale() == "log"


def test_many_steps_keep_peaks_jumps_and_ends():
    (curve,) = curves(schedules.plot(CYCLES, 500_000))
    assert len(curve) < 1_300 and curve[0, 0] == 0 and curve[-1, 0] == 499_999
    assert curve[:, 1].max() == 1.0 and curve[:, 1].min() < 1e-3
    assert np.all(np.diff(curve[:, 0]) > 0)


def test_schedules_of_others_are_drawn_too(tmp_path):
    theirs = keras.optimizers.schedules
    file = tmp_path / "schedules.png"
    figure = schedules.plot(
        [theirs.CosineDecay(1.0, 50), theirs.PiecewiseConstantDecay([20], [1.0, 0.5])], 60, file=file
    )
    smooth, stairs = curves(figure)
    assert smooth[25, 1] == pytest.approx(0.5)
    assert stairs[stairs[:, 0] == 20, 1] == 1.0 and stairs[stairs[:, 0] == 21, 1] == 0.5
    assert file.stat().st_size > 5_000


@pytest.mark.parametrize("wrong", ["cosine", [], [0.1], {}])
def test_what_is_no_schedule_is_an_error(wrong):
    with pytest.raises(TypeError, match="`schedule` must be a schedule, or several of them"):
        schedules.plot(wrong, 10)


def test_steps_must_be_a_number_above_0():
    with pytest.raises(ValueError, match="Received: steps=0"):
        schedules.plot(CYCLES, 0)


def test_the_lowest_frame_of_each_column_has_numbers():
    figure = schedules.plot([schedules.Constant(0.1)] * 4, 50)
    numbered = [axes.xaxis.get_major_ticks()[0].label1.get_visible() for axes in figure.axes]
    assert numbered == [False, True, True, True]
