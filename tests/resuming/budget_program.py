"""Training on a budget of time that kills itself with SIGKILL at a batch: `python budget_program.py FOLDER [BATCH]`.

Every batch takes a second of the program's own clock, which begins anew in each process as a real one may. What the
budget is at after each batch goes to FOLDER/lives.jsonl.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from keras_trainkit import callbacks, data, optimizers, schedules


class Life(keras.callbacks.Callback):
    """The clock, the record, and the end."""

    def __init__(self, budget, file, last):
        super().__init__()
        self.now, self.budget, self.file, self.last, self.batches = float(os.getpid()), budget, file, last, 0
        budget.clock = lambda: self.now

    def on_train_batch_begin(self, batch, logs=None):
        if self.batches == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches += 1
        self._write(float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        self.now += 1.0

    def _write(self, rate):
        made = int(self.model.optimizer.iterations)
        line = [os.getpid(), made, self.budget.elapsed, self.budget.speed, rate]
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def main(folder, last):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(schedules.Linear(1e-2, 400)), "mse")
    x = np.random.default_rng(2).normal(size=(40, 2)).astype("float32")
    budget = callbacks.TimeBudget(100)
    with (folder / "lives.jsonl").open("a") as file:
        life = Life(budget, file, last)
        resume = callbacks.ResumableTraining(folder / "resume", every=1)
        source = data.Batches(x, x[:, :1], batch_size=4, seed=1)
        model.fit(source, epochs=40, verbose=0, callbacks=[budget, life, resume])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
