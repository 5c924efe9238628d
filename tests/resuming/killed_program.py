"""A training that kills itself with SIGKILL at a chosen moment: `python killed_program.py FOLDER EPOCHS [MOMENT]`.

Started again by the same command with another moment, or none, it goes on; at its end it writes FOLDER/end.npz. With
FOLDER of "whole" in its name nothing is saved on the way.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from cutting import Moments, Witness, watch_writing

from keras_trainkit import callbacks, data, optimizers, precision


def make_model():
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(1)])
    inner = optimizers.AdamW(0.02, gradient_accumulation_steps=3, use_ema=True, global_clipnorm=0.5)
    model.compile(precision.LossScaleOptimizer(inner, dynamic_growth_steps=5), "mse", metrics=["mae"])
    return model


def main(folder, epochs, moment):
    rng = np.random.default_rng(11)
    x = rng.normal(size=(90, 5)).astype("float32")
    y = (x[:, :1] - x[:, 1:2] ** 2).astype("float32")
    moments = Moments(lambda: os.kill(os.getpid(), signal.SIGKILL))
    watch_writing(moments)
    moments.start(moment)
    witness = Witness(moments)
    listed = [
        keras.callbacks.EarlyStopping("val_loss", patience=40, restore_best_weights=True),
        callbacks.ReduceOnPlateau("val_loss", patience=1, min_delta=0.2, factor=0.5),
        callbacks.TrainingMonitor(folder / "logs", every=2, tensorboard=False),
        witness,
    ]
    if "whole" not in folder.name:
        listed.insert(1, callbacks.ResumableTraining(folder / "resume", every=2))
    model = make_model()
    source, validation = data.Batches(x, y, batch_size=8, seed=5), (x[:10], y[:10])
    history = model.fit(source, epochs=epochs, verbose=0, callbacks=listed, validation_data=validation)
    values = [keras.ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]
    seen = json.dumps([history.history, history.epoch, witness.calls])
    np.savez(folder / "end.npz", *values, seen=np.array(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
