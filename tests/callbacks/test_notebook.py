"""Progress and LivePlot in a notebook, which is faked: one place on the page that is shown again and again."""

import sys
import types

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks
from keras_trainkit.callbacks import live_plot


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, content, raw=False):
        assert raw and set(content) == {"text/html", "text/plain"}
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch):
    """What was shown in each place, in their order."""
    places = []

    def display(content, raw=False, display_id=False):
        assert raw and display_id is True
        places.append([content])
        return Handle(places[-1])

    ipython, shell = types.ModuleType("IPython"), types.SimpleNamespace(kernel=object())
    ipython.get_ipython, ipython.display = (lambda: shell), types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    # What matplotlib asks for when it sees IPython: the version, and before 3.9 a module of its windows.
    ipython.shell, ipython.version_info = shell, (9, 0, 0, "")
    ipython.core = types.ModuleType("IPython.core")
    ipython.core.pylabtools = types.ModuleType("IPython.core.pylabtools")
    monkeypatch.setitem(sys.modules, "IPython.core", ipython.core)
    return places


def fit(*shown, epochs=3, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.025), "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=8, epochs=epochs, verbose=0, callbacks=list(shown), **options)
    return model


def test_curves_grow_in_one_place(notebook):
    model = fit(callbacks.LivePlot(every=0), validation_split=0.25)
    (place,) = notebook
    assert len(place) == 3
    logs = {name: values[-1] for name, values in model.history.history.items()}
    assert all(f"{name} {value:.4g}" in place[-1]["text/plain"] for name, value in logs.items())
    assert place[-1]["text/html"].count("data:image/svg+xml;base64,") == 2
    assert "<b>Loss</b>" in place[-1]["text/html"] and "<b>MAE</b>" in place[-1]["text/html"]


def test_curves_are_drawn_by_the_clock_and_at_the_end(notebook, monkeypatch):
    # The clock may stand anywhere: it counts from the start of the machine.
    monkeypatch.setattr(live_plot, "time", types.SimpleNamespace(perf_counter=lambda: 5.0))
    fit(callbacks.LivePlot(metrics=["loss"], every=3600))
    (place,) = notebook
    assert [content["text/plain"].partition(":")[0] for content in place] == ["epoch 1", "epoch 3"]
    assert place[-1]["text/html"].count("<figure") == 1


def test_values_that_are_not_finite_leave_gaps(notebook):
    plot = callbacks.LivePlot(every=0)
    plot.on_train_begin()
    for epoch, loss in enumerate([1.0, float("nan"), 0.5]):
        plot.on_epoch_end(epoch, {"loss": loss})
    assert "nan" not in notebook[0][-1]["text/html"] and len(notebook[0]) == 3
    again = callbacks.LivePlot(every=0)
    again.on_train_begin()
    again.set_state(plot.get_state())
    again.on_epoch_end(3, {"loss": 0.25})
    assert again.get_state()["lines"]["loss"][4] == 0.25 and len(again.get_state()["lines"]["loss"]) == 4


def test_progress_has_a_place_with_bars(notebook, capsys):
    fit(callbacks.Progress(every=1e-9), epochs=2)
    (place,) = notebook
    assert capsys.readouterr().out == ""
    last = place[-1]["text/plain"].splitlines()
    assert [line.split("  ")[0] for line in last] == ["epoch 1/2", "epoch 2/2"]
    first = place[0]["text/plain"]
    assert first.startswith("run    ─") and "epoch  " in first and "step 0/8" in first
    assert "\x1b" not in "".join(content["text/html"] for content in place)


def test_a_terminal_with_ipython_is_no_notebook(notebook, capsys):
    sys.modules["IPython"].shell.kernel = None
    fit(callbacks.LivePlot(every=0), callbacks.Progress(), epochs=1)
    assert notebook == [] and capsys.readouterr().out.startswith("epoch 1/1  loss ")


def test_without_ipython_nothing_is_imported_or_shown():
    assert "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None
    fit(callbacks.LivePlot(every=0), epochs=1)


def test_configuration():
    plot = callbacks.LivePlot(metrics=["loss"], every=2, columns=3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(plot))
    assert again.get_config() == plot.get_config() == {"metrics": ["loss"], "every": 2.0, "columns": 3}
    with pytest.raises(TypeError, match="`metrics` must be a list of names. Received: metrics='loss'"):
        callbacks.LivePlot("loss")
    with pytest.raises(ValueError, match="`columns` must be an integer at least 1"):
        callbacks.LivePlot(columns=0)
