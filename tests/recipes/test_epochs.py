"""The callbacks around epochs, through fit: best model, validation in the logs, divergence, counting, Ctrl-C."""

import os
import signal
import threading

import keras
import numpy as np
import pytest

from keras_trainkit.recipes import epochs
from keras_trainkit.recipes.interruption import Interruption, StopWhenRequested

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


class Scripted(keras.callbacks.Callback):
    """Sets logs as a script says, and notes the kernel of each epoch."""

    def __init__(self, script):
        super().__init__()
        self.script, self.kernels = script, []

    def on_epoch_end(self, epoch, logs=None):
        logs.update(self.script[epoch])
        self.kernels.append(float(self.model.get_weights()[0][0, 0]))


def fit(model, callbacks, epochs=1, steps=3):
    x = np.ones((2 * steps, 1), "float32")
    return model.fit(x, x, batch_size=2, epochs=epochs, callbacks=callbacks, verbose=0)


@pytest.mark.parametrize(
    ("script", "metric", "larger", "best_epoch"),
    [
        ([(0.5, 3.0), (0.9, 2.0), (0.9, 1.0), (0.8, 0.1)], "val_accuracy", True, 3),
        ([(0.5, 3.0), (0.5, 1.0), (0.9, 2.0)], "val_loss", False, 2),
        ([(0.5, float("nan")), (0.4, 1.0), (float("nan"), 0.5)], "val_accuracy", True, 2),
    ],
)
def test_the_best_epoch_is_kept_on_disk_and_in_memory(model, tmp_path, script, metric, larger, best_epoch):
    scripted = Scripted([{"val_accuracy": accuracy, "val_loss": loss} for accuracy, loss in script])
    path = tmp_path / "model.keras"
    best = epochs.KeepBest(model, model, path, metric, larger)
    fit(model, [scripted, best], epochs=len(script))
    assert best.best["epoch"] == best_epoch and best.best["metric"] == metric
    assert best.epochs_completed == len(script)
    kept = keras.models.load_model(path).get_weights()[0][0, 0]
    assert float(kept) == scripted.kernels[best_epoch - 1] != scripted.kernels[-1]
    best.restore()
    assert float(model.get_weights()[0][0, 0]) == scripted.kernels[best_epoch - 1]
    assert [child.name for child in tmp_path.iterdir()] == ["model.keras"]


def test_no_finite_epoch_means_no_model(model, tmp_path):
    scripted = Scripted([{"val_accuracy": 0.5, "val_loss": float("inf")}])
    best = epochs.KeepBest(model, model, tmp_path / "model.keras", "val_accuracy", True)
    fit(model, [scripted, best])
    assert best.best is None and list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_last_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    epochs.save(model, path)
    whole = path.read_bytes()

    def die(self, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(keras.Sequential, "save", die)
    with pytest.raises(OSError, match="disk full"):
        epochs.save(model, path)
    assert path.read_bytes() == whole


def test_validation_measures_the_new_weights_and_later_callbacks_see_it(model):
    twin = keras.models.clone_model(model)
    measured = []

    def evaluator(part):
        assert part == "validation"
        measured.append(float(twin.get_weights()[0][0, 0]))
        return {"loss": 7.0, "accuracy": 0.25}

    seen = []
    later = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    history = fit(model, [epochs.Validation(twin, evaluator), later])
    assert seen[0]["val_loss"] == 7.0 and seen[0]["val_accuracy"] == 0.25
    assert history.history["val_accuracy"] == [0.25]
    assert measured == [float(model.get_weights()[0][0, 0])] != [0.0]


@pytest.mark.parametrize(
    ("losses", "epochs_done"),
    [((1.0, 1.0), 3), ((float("nan"), 1.0), 3), ((1.0, float("inf")), 3), ((float("nan"), float("nan")), 1)],
)
def test_training_ends_when_nothing_is_finite(model, losses, epochs_done):
    scripted = Scripted([{"loss": losses[0], "val_loss": losses[1]}] * 3)
    diverged = epochs.StopIfDiverged()
    history = fit(model, [scripted, diverged], epochs=3)
    assert len(history.epoch) == epochs_done
    assert (diverged.error is None) == (epochs_done == 3)
    if diverged.error:
        assert "epoch 1" in diverged.error and "learning_rate" in diverged.error


def test_the_stopwatch_counts_steps(model):
    stopwatch = epochs.Stopwatch(batch_size=2)
    fit(model, [stopwatch], epochs=2, steps=3)
    assert stopwatch.steps == 6
    assert stopwatch.samples_per_second == 5 * 2 / stopwatch.seconds
    assert epochs.Stopwatch(2).samples_per_second is None


def test_ctrl_c_ends_fit_between_two_steps(model):
    stopwatch = epochs.Stopwatch(batch_size=2)
    done = []
    with Interruption() as interruption:

        def press(batch, logs):
            if batch == 1:
                os.kill(os.getpid(), signal.SIGINT)
                done.append("after the signal")

        presser = keras.callbacks.LambdaCallback(on_train_batch_begin=press)
        with pytest.raises(KeyboardInterrupt):
            fit(model, [stopwatch, StopWhenRequested(interruption), presser], steps=5)
    assert done == ["after the signal"]
    # The step in which the signal came was finished, the next one not begun.
    assert int(model.optimizer.iterations.numpy()) == stopwatch.steps == 2


def test_a_second_ctrl_c_acts_at_once_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_handler_alone():
    handlers = []

    def work():
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
