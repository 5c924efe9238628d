"""`keras-trainkit plot-schedule`."""

import numpy as np
import pytest

from keras_trainkit import schedules
from keras_trainkit.cli.main import main
from keras_trainkit.recipes import rates


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_of_several_schedules(capsys, here, monkeypatch):
    drawn = {}
    plot = schedules.plot
    monkeypatch.setattr(
        schedules, "plot", lambda made, steps, **options: drawn.update(made) or plot(made, steps, **options)
    )
    given = ["cosine", "wsd:decay_steps=0.5run,shape=linear,alpha=0.2", "one_cycle"]
    assert main(["plot-schedule", *given, "--steps", "100", "--learning-rate", "2", "--output", "all.svg"]) == 0
    assert capsys.readouterr().out == "all.svg\n"
    assert (here / "all.svg").read_text().startswith("<?xml")
    assert list(drawn) == given
    wsd = drawn[given[1]].schedule
    assert (wsd.learning_rate, wsd.stable_steps, wsd.decay_steps, wsd.alpha) == (2.0, 45, 45, 0.2)
    assert drawn["one_cycle"] == schedules.OneCycle(2.0, 100)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cosin"], ["'cosin'", "Did you mean 'cosine'"]),
        (["tahn:upper=2"], ["'tanh'"]),
        (["wsd:shape"], ["'shape' is no ARGUMENT=VALUE"]),
        (["wsd:shape=square"], ["`shape` must be one of"]),
        (["wsd:form=linear"], ["form"]),
        (["cosine:initial_learning_rate=2"], ["as --learning-rate"]),
        (["cosine", "--steps", "0"], ["--steps"]),
        (["cosine", "--warmup", "1000"], ["--warmup must be shorter than the run of 1000 updates"]),
        (["cosine", "--output", "picture.gif"], [".svg, .png, .pdf", "picture.gif"]),
        (["cosine", "--output", "none/picture.svg"], ["there is no folder none"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, here, arguments, words):
    assert main(["plot-schedule", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("keras-trainkit: error: ") and error.count("\n") == 1
    assert [word for word in words if word not in error] == []
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", rates.SCHEDULES)
def test_every_name_of_a_recipe_spans_the_run(name):
    schedule = rates.build(name, 0.5, 200, 20, 20.0)
    found = np.array(schedule(np.arange(200)))
    assert found.max() == pytest.approx(0.5, rel=1e-5) and found.min() > 0 and np.argmax(found) in (20, 59)
    assert name in schedules.list()
    ends = {"constant": 1.0, "inversesqrt": (18 / 198) ** 0.5, "step": 0.01, "multistep": 0.01, "exponential": 0.01}
    assert found[-1] / 0.5 == pytest.approx(ends.get(name, 0.0), rel=0.05, abs=0.016)


def test_wsd_without_a_stable_phase_takes_what_is_left():
    wsd = rates.build("wsd", 1.0, 100, 0, 10.0, {"decay_steps": "3ep"}).schedule
    assert (wsd.stable_steps, wsd.decay_steps) == (70, 30)
    given = rates.build("wsd", 1.0, 100, 0, 10.0, {"stable_steps": 10, "decay_steps": "0.3run"}).schedule
    assert (given.stable_steps, given.decay_steps) == (10, 30)
