"""One of several workers whose training is cut: `python workers_program.py FOLDER EVERY [BATCH SIGNAL]`.

The last worker gets the signal when so many batches of the run are done. Started again by the same command without it,
training goes on; at its end each worker writes FOLDER/end-WORKER.npz. EVERY of "never" saves nothing on the way.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from keras_trainkit import callbacks, data, distribution, optimizers, precision

EPOCHS, BATCH = 3, 8


def make_model(strategy):
    keras.utils.set_random_seed(3)
    with strategy.scope():
        layers = [
            keras.layers.Dense(16, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)
        ]  # fmt: skip
        model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(1)])
        inner = optimizers.AdamW(0.02, gradient_accumulation_steps=3, use_ema=True, global_clipnorm=0.5)
        model.compile(precision.LossScaleOptimizer(inner, dynamic_growth_steps=5), "mse", metrics=["mae"])
    distribution.separate_seeds(model)
    return distribution.enable_workers(model)


def main(folder, every, batch=0, name="SIGKILL"):
    strategy = distribution.workers(timeout=15, start_timeout=120)
    worker = strategy.cluster_resolver.task_id
    rng = np.random.default_rng(11)
    x = rng.normal(size=(88, 5)).astype("float32")
    y = (x[:, :1] - x[:, 1:2] ** 2).astype("float32")
    seen = [0]

    def count(_, logs):
        seen[0] += 1
        if seen[0] == batch and worker == 1:
            print("cut", flush=True)
            os.kill(os.getpid(), signal.Signals[name])

    listed = [
        callbacks.ReduceOnPlateau("val_loss", patience=1, min_delta=0.2, factor=0.5),
        callbacks.TrainingMonitor(folder / "logs", every=2, tensorboard=False),
        keras.callbacks.LambdaCallback(on_train_batch_end=count),
    ]
    if every != "never":
        resume = callbacks.ResumableTraining(folder / "resume", every=int(every) if every.isdigit() else every)
        listed.insert(1, resume)
    model = make_model(strategy)
    source, validation = data.Batches(x, y, batch_size=BATCH, seed=5), (x[:16], y[:16])
    history = model.fit(source, epochs=EPOCHS, verbose=0, callbacks=listed, validation_data=validation)
    copies = [strategy.experimental_local_results(v.value) for v in [*model.variables, *model.optimizer.variables]]
    values = [copy.numpy() for mine in copies for copy in mine]
    losses = np.array([history.history["loss"], history.history["val_loss"]])
    np.savez(folder / f"end-{worker}.npz", *values, losses=losses, epochs=np.array(history.epoch))
    if every != "never":
        print("resumed from", resume.resumed_from, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *[int(a) if a.isdigit() else a for a in sys.argv[3:]])
