"""A `fit` that ends with an exception tells no callback: what stood around the train step is taken off nevertheless."""

import gc

import keras
import numpy as np
import pytest

from keras_trainkit import averaging, callbacks, optimizers, schedules
from keras_trainkit.core import backend
from keras_trainkit.monitoring.activations import Activations

RNG = np.random.default_rng(61)
X = RNG.normal(size=(24, 3)).astype("float32")
AROUND = {
    "averaging": lambda path: callbacks.WeightAveraging(averaging.EMA(0.5)),
    "pruning": lambda path: callbacks.MagnitudePruning(0.5, begin_step=1, end_step=3, frequency=1),
    "hyperparameters": lambda path: callbacks.HyperparameterSchedule(beta_1=schedules.Linear(0.9, 9, 0.5)),
}
INSIDE = {
    "monitor": lambda path: callbacks.TrainingMonitor(path / "log", every=1, layers_every=1, tensorboard=False),
    "nonfinite": lambda path: callbacks.NonFiniteGuard(path / "bad"),
    "spikes": lambda path: callbacks.SpikeGuard(verbose=0),
    "unfreezing": lambda path: callbacks.GradualUnfreezing(at=50),
}
ALL = AROUND | (INSIDE if backend.ON_TENSORFLOW else {})


class Failing(keras.callbacks.Callback):
    """Raises at the second call of one kind."""

    def __init__(self, where):
        super().__init__()
        self.calls = 0
        setattr(self, where, self._called)

    def _called(self, *arguments, **keywords):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt


def network():
    layers = [keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.1), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizers.Adam(0.1), "mse", jit_compile=not backend.ON_TENSORFLOW)
    return model


def fit(model, *listed, **options):
    model.fit(X, X[:, :1], batch_size=4, epochs=3, verbose=0, callbacks=list(listed), **options)


def moved(model):
    """Which weights a `fit` of no callbacks moves."""
    before = model.get_weights()
    fit(model)
    return [bool(np.any(a != b)) for a, b in zip(before, model.get_weights(), strict=True)]


@pytest.mark.parametrize("name", ALL)
def test_the_train_step_is_the_models_own_again(name, tmp_path):
    model, listed = network(), ALL[name](tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(model, listed, Failing("on_train_batch_end"))
    assert "train_step" not in vars(model)
    if name == "hyperparameters":
        assert listed.values() == {}  # it has none but while a `fit` runs
    assert moved(model) == [True] * 4
    fit(model, listed)  # the same callback in another `fit`
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("where", ["on_epoch_begin", "on_epoch_end", "on_test_begin", "on_train_batch_begin"])
def test_wherever_it_fails(where, tmp_path):
    model = network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, AROUND["averaging"](tmp_path), Failing(where), validation_data=(X, X[:, :1]))
    assert "train_step" not in vars(model)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_however_many_there_are(order, tmp_path):
    model, listed = network(), [make(tmp_path) for make in ALL.values()]
    with pytest.raises(KeyboardInterrupt):
        fit(model, *listed[::order], Failing("on_epoch_end"), validation_data=(X, X[:, :1]))
    assert "train_step" not in vars(model)
    assert moved(model) == [True] * 4


def test_data_that_fail(tmp_path):
    def data():
        for _ in range(6):
            yield X[:4], X[:4, :1]
        raise OSError("the disk has gone")

    model = network()
    with pytest.raises(Exception, match="the disk has gone"):
        model.fit(data(), epochs=2, verbose=0, callbacks=[AROUND["averaging"](tmp_path)])
    assert "train_step" not in vars(model)


def test_a_later_fit_is_not_undone_by_an_earlier_one(tmp_path):
    """What held the first `fit` may go while the second one runs."""
    model, listed, held, seen = network(), ALL["averaging"](tmp_path), [], []

    class Hold(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            held.append(backend.epoch_iterator_of_fit())

    class Drop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            held.clear()
            gc.collect()
            seen.append("train_step" in vars(self.model))

    fit(model, listed, Hold())
    model.fit(X, X[:, :1], batch_size=24, verbose=0, callbacks=[listed, Drop()])
    assert seen == [True]


@pytest.mark.tensorflow
def test_a_step_that_another_one_holds_measures_nothing_any_more():
    model = network()
    watching = Activations(model, 1)
    watching.attach()
    held = model.train_step
    object.__setattr__(model, "train_step", lambda data: held(data))
    watching.detach()  # leaves what was put around it
    fit(model)
    assert watching.values() == {} and "train_step" in vars(model)


def test_outside_of_a_fit_there_is_nothing_to_fail():
    called = []
    backend.when_fit_fails(lambda: called.append(1))()
    assert not called
