"""Two workers train one model, and go on after one was killed.

Run it with `keras-trainkit launch --workers 2 examples/05_two_workers.py`; it takes a minute on a processor. Started
with `python`, the same script trains on one device. With `--restarts 1` and the argument `--kill` worker 1 is killed in
the middle, and all start again from the last checkpoint:

    keras-trainkit launch --workers 2 --restarts 1 examples/05_two_workers.py --kill

The files are in the folder `two-workers` of the temporary folder, and gone afterwards.
"""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import callbacks, distribution, optimizers

EPOCHS, BATCH = 6, 64

# ------------------------------------------------------------------------------------------------------------- workers

# Before anything else of TensorFlow: the workers find each other here, and wait until all are there.
strategy = distribution.workers(timeout=30)
keras.utils.set_random_seed(0)
chief = distribution.is_chief()
folder = Path(tempfile.gettempdir()) / "two-workers"

# ---------------------------------------------------------------------------------------------------------------- data

x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
# Every worker has the same data; each takes its share of each batch.
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)

# --------------------------------------------------------------------------------------------------------------- model

with strategy.scope():
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    optimizer = optimizers.RAdam(5e-3, weight_decay=0.01, global_clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
distribution.enable_workers(model)  # the one line more

# ------------------------------------------------------------------------------------------------------------ training


class KillOnce(keras.callbacks.Callback):
    """Kills worker 1 in the middle of training, the first time."""

    def on_epoch_begin(self, epoch, logs=None):
        """As a broken machine would: without a word."""
        mark = folder / "killed"
        if epoch == EPOCHS // 2 and not chief and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


folder.mkdir(exist_ok=True)
history = model.fit(
    x_train,
    y_train,
    batch_size=BATCH,
    epochs=EPOCHS,
    validation_data=(x_test, y_test),
    verbose=2 if chief else 0,
    # One path for all workers: only the chief writes.
    callbacks=[
        keras.callbacks.BackupAndRestore(folder / "backup", double_checkpoint=True),
        keras.callbacks.ModelCheckpoint(folder / "best.keras", monitor="val_accuracy", mode="max", save_best_only=True),
        callbacks.TrainingMonitor(folder / "run"),
        *([KillOnce()] if "--kill" in sys.argv else []),
    ],
)

# ---------------------------------------------------------------------------------------------------------- evaluation

# On all workers: each computes its share, and all have the result.
loss, accuracy = model.evaluate(x_test, y_test, batch_size=BATCH, verbose=0)
classes = model.predict(x_test, batch_size=BATCH, verbose=0).argmax(axis=1)
print(f"replicas: {strategy.num_replicas_in_sync}, test loss {loss:.4f}, accuracy {accuracy:.4f}")
if chief:
    best = keras.models.load_model(folder / "best.keras")
    print(f"the checkpoint is a {type(best).__module__.partition('.')[0]} {type(best).__name__}")
    shutil.rmtree(folder)
if abs((classes == y_test).mean() - accuracy) > 1e-6 or accuracy < 0.9:
    sys.exit("the accuracy is not what it should be")
