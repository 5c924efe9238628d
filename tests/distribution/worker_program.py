"""What each worker of the tests runs; alone, it trains on one device. Each case leaves its results in a file.

`python worker_program.py FOLDER`; the results are FOLDER/CASE-WORKER.npz.
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_trainkit import callbacks, distribution, optimizers, precision, transforms

STARTED = time.monotonic()
FEATURES, BATCH, EPOCHS = 5, 8, 2


def data(samples):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(samples, FEATURES)).astype("float32")
    return x, (x @ rng.normal(size=(FEATURES, 2))).astype("float32")


class Subclassed(keras.Model):
    """A model of the user's own, with a train step of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.last = keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(2)

    def call(self, inputs):
        return self.last(self.first(inputs))

    def train_step(self, data):
        return {**super().train_step(data), "halves": keras.ops.full((2,), 0.5)}


def sequential():
    layers = [keras.layers.Dense(6, activation="tanh"), keras.layers.BatchNormalization(synchronized=True)]
    return keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(2)])


def functional():
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(6, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.concatenate([hidden, inputs])))


def deep():
    """Enough small variables for pools, and one large enough to be compiled alone."""
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(4)]
    wide = [keras.layers.Dense(200, activation="tanh"), keras.layers.Dense(200, activation="tanh")]
    return keras.Sequential([keras.Input((FEATURES,)), *layers, *wide, keras.layers.Dense(2)])


def everything():
    options = {"clipnorm": 0.05, "gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 3}
    return optimizers.RAdam(0.05, weight_decay=0.01, after=[transforms.Lookahead(2, 0.5)], **options)


CASES = {
    "sequential": (sequential, lambda: keras.optimizers.SGD(0.1), {}),
    "functional": (functional, lambda: optimizers.Adam(0.02, global_clipnorm=0.1), {"steps_per_execution": 2}),
    "subclassed": (Subclassed, lambda: optimizers.SGD(0.1, momentum=0.9, clipvalue=0.05), {}),
    "compiled": (deep, everything, {}),
    "muon": (functional, lambda: optimizers.Muon(0.02, global_clipnorm=0.1), {}),
}


def train(strategy, case):
    make, optimizer, options = CASES[case]
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = make()
        model.compile(optimizer(), "mse", metrics=["mae", keras.metrics.R2Score(name="r2")], **options)
    distribution.enable_workers(model)
    x, y = data(28)
    held_out = data(11)
    run = model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=case == "functional", verbose=0,
                    validation_data=held_out, callbacks=[callbacks.FlushAccumulation()])  # fmt: skip
    evaluated = model.evaluate(*held_out, batch_size=BATCH, verbose=0, return_dict=True)
    results = {f"history/{name}": np.array(values) for name, values in run.history.items()}
    results |= {f"evaluate/{name}": value for name, value in evaluated.items()}
    results["programs"] = programs(model.optimizer)
    results["predict"] = model.predict(held_out[0], batch_size=BATCH, verbose=0)
    return model, results


def programs(optimizer):
    """How many compiled programs the update has run; Keras's own optimizers have none."""
    made = getattr(optimizer, "_programs", None)
    return len(made._in_place) + len(made._joined) if made is not None else 0


def overflow(strategy, wrapper):
    """One batch of six has an infinity, in the part of the last worker; the scale and the updates, by step."""
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2, dtype="mixed_float16")])
        inner = optimizers.Adam(0.01, global_clipnorm=1.0)
        optimizer = wrapper(inner, initial_scale=64.0, dynamic_growth_steps=100)
        model.compile(optimizer, "mse")
    distribution.enable_workers(model)
    x, y = data(6 * BATCH)
    x[3 * BATCH - 1] = 60000.0
    seen = []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(state(optimizer)))
    model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=[look])
    skipped = getattr(optimizer, "skipped_steps", None)
    return model, {"seen": np.array(seen), "skipped": 1 if skipped is None else keras.ops.convert_to_numpy(skipped)}


def state(optimizer):
    values = optimizer.dynamic_scale, optimizer.inner_optimizer.iterations
    return [float(keras.ops.convert_to_numpy(value)) for value in values]


def masks(strategy):
    """What dropout leaves of ones on this worker, with and without seeds for each replica."""
    keras.utils.set_random_seed(3)
    with strategy.scope():
        models = [keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5, seed=1)]) for _ in range(2)]
    distribution.separate_seeds(models[1])
    left = [strategy.run(lambda model=model: model(keras.ops.ones((1, 64)), training=True)) for model in models]
    names = ("plain", "separate")
    return models[0], {name: strategy.experimental_local_results(v)[0] for name, v in zip(names, left, strict=True)}


def files(strategy, folder):
    """Every callback that writes, at one path for all workers."""
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = functional()
        model.compile(optimizers.Adam(0.01), "mse")
    distribution.enable_workers(model)
    writing = [
        keras.callbacks.ModelCheckpoint(str(folder / "best.keras"), save_best_only=True, monitor="loss"),
        keras.callbacks.BackupAndRestore(str(folder / "backup"), delete_checkpoint=False),
        keras.callbacks.TensorBoard(str(folder / "events"), histogram_freq=1),
        keras.callbacks.CSVLogger(str(folder / "log.csv")),
        callbacks.TrainingMonitor(str(folder / "monitor"), every=2),
        distribution.chief_only(keras.callbacks.CSVLogger(str(folder / "chief.csv"))),
    ]
    model.fit(*data(28), batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=writing)
    model.save(distribution.chief_path(folder / "last.keras"))
    loaded = keras.models.load_model(folder / "best.keras")
    return model, {
        "class": type(model) is type(functional()),
        "loaded": weights(loaded),
        "chief": distribution.is_chief(),
    }


def weights(model):
    return np.concatenate([np.zeros(0), *(np.ravel(value) for value in model.get_weights())])


def main(folder):
    strategy = distribution.workers(timeout=30, start_timeout=120)
    worker = strategy.cluster_resolver.task_id if strategy.num_replicas_in_sync > 1 else "alone"
    np.savez(folder / f"seed-{worker}.npz", weights=0, draw=np.random.random(3))
    runs = {case: lambda case=case: train(strategy, case) for case in CASES}
    runs |= {
        "overflow": lambda: overflow(strategy, precision.LossScaleOptimizer),
        "overflow in Keras's": lambda: overflow(strategy, keras.optimizers.LossScaleOptimizer),
        "masks": lambda: masks(strategy),
        "files": lambda: files(strategy, folder / ("alone" if worker == "alone" else "workers")),
    }
    for case, run in runs.items():
        print(case, round(time.monotonic() - STARTED, 1), flush=True)
        model, results = run()
        np.savez(folder / f"{case}-{worker}.npz", weights=weights(model), **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
