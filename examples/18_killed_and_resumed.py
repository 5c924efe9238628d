"""A run on scikit-learn's digits that is killed in the middle of a step, started again, and ends as if it never was.

Run it with `python examples/18_killed_and_resumed.py`; it takes less than a minute on a processor. It starts itself
three times: whole, killed, and once more by the same command.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_trainkit import callbacks, data, optimizers, resuming

EPOCHS, BATCH = 6, 64


class KillAt(keras.callbacks.Callback):
    """The power cut."""

    def __init__(self, update):
        super().__init__()
        self.update = update

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.update:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kill_at=None):
    """What a training script looks like: nothing in it asks whether it is the first time."""
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.AdamW(3e-3, use_ema=True), loss, metrics=["accuracy"])
    stopping = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    listed = [stopping, callbacks.ResumableTraining(folder / "resume", every=10)]
    if kill_at is not None:
        listed.append(KillAt(kill_at))
    history = model.fit(
        data.Batches(x[:1500], y[:1500], batch_size=BATCH, seed=1),
        epochs=EPOCHS,
        validation_data=(x[1500:], y[1500:]),
        callbacks=listed,
        verbose=0,
    )
    np.savez(folder / "end.npz", *model.get_weights(), losses=history.history["val_loss"])


def start(folder, *arguments):
    """This program again, in a process of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.run([sys.executable, __file__, str(folder), *map(str, arguments)], check=False).returncode


def main():
    """Three processes, two runs."""
    with tempfile.TemporaryDirectory() as parent:
        whole, killed = Path(parent, "whole"), Path(parent, "killed")
        assert start(whole) == 0
        print("whole:  ended")
        assert start(killed, 80) == -signal.SIGKILL
        for saved in resuming.saved_states(killed / "resume"):
            print(f"killed: {saved.path.name} holds epoch {saved.facts['epoch'] + 1}, batch {saved.facts['batch']}")
        assert start(killed) == 0
        with np.load(whole / "end.npz") as one, np.load(killed / "end.npz") as other:
            assert all(np.array_equal(one[name], other[name]) for name in one.files)
            print(f"both end with the same bits, and val_loss {one['losses'][-1]:.4f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        main()
