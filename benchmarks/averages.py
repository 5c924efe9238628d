"""What averages of weights are worth on scikit-learn's digits: test loss and accuracy over seeds.

python benchmarks/averages.py --seeds 10 --write

A small convolutional net with BatchNormalization, SGD with momentum, 60% of the images to train on. Each average is
trained from the same initial weights, order and rate as the plain run of its seed; only those with a rate of their own
take another path. The differences to the plain run are taken seed by seed, with their standard error.
"""

import argparse
import time

import in_turn
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import averaging, callbacks, optimizers, schedules

RATE, BATCH = 0.1, 32
AVERAGES = {
    "the last weights": None,
    "EMA(0.99)": averaging.EMA(0.99),
    "EMA(half_life=5000)": averaging.EMA(half_life=5000),
    'SWA("0.5run")': averaging.SWA("0.5run"),
    "LAWA(5)": averaging.LAWA(5),
}
CYCLES = {'SWA("0.5run", rate=[0.1, 0.01])': averaging.SWA("0.5run", rate=[0.1, 0.01])}


def data(seed):
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    return train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)


def network(rate):
    parts = [keras.Input((8, 8, 1))]
    for filters in (8, 16):
        parts += [keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        parts += [keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.MaxPooling2D()]
    model = keras.Sequential([*parts, keras.layers.Flatten(), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"], jit_compile=False)
    return model


def measure(average, cosine, seed, epochs):
    keras.utils.set_random_seed(seed)
    x_train, x_test, y_train, y_test = data(seed)
    steps = epochs * -(-len(x_train) // BATCH)
    model = network(schedules.Cosine(RATE, steps) if cosine else RATE)
    more = [] if average is None else [callbacks.WeightAveraging(average, refresh=x_train, refresh_batch_size=256)]
    model.fit(x_train, y_train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=more)
    return [float(value) for value in model.evaluate(x_test, y_test, batch_size=1024, verbose=0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/averages.json")
    arguments = parser.parse_args()
    began, found = time.perf_counter(), {}
    for seed in range(arguments.seeds):
        for cosine in (False, True):
            for name, average in (AVERAGES if cosine else AVERAGES | CYCLES).items():
                rate = "cosine to 0" if cosine else "constant"
                found.setdefault((rate, name), []).append(measure(average, cosine, seed, arguments.epochs))
        print(f"seed {seed} after {time.perf_counter() - began:.0f} s", flush=True)
    rows = []
    print("\n| rate | weights | test loss | less than the last weights' | test accuracy | gain |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (rate, name), runs in found.items():
        runs, plain = np.array(runs), np.array(found[rate, "the last weights"])
        gain = (runs - plain) * [-1, 1]
        mean, error = gain.mean(axis=0), gain.std(axis=0, ddof=1) / np.sqrt(len(gain))
        loss, accuracy = runs.mean(axis=0)
        rows.append({"rate": rate, "weights": name, "loss": loss, "accuracy": accuracy, "runs": runs.tolist(),
                     "gain": mean.tolist(), "standard_error": error.tolist()})  # fmt: skip
        gains = [f"{m:.4f} ± {e:.4f}" if name != "the last weights" else "" for m, e in zip(mean, error, strict=True)]
        print(f"| {rate} | {name} | {loss:.4f} | {gains[0]} | {accuracy:.4f} | {gains[1]} |")
    figures = in_turn.circumstances(["keras", "tensorflow"])
    figures |= {"seeds": arguments.seeds, "epochs": arguments.epochs, "rows": rows}
    if arguments.write:
        print(in_turn.write("averages", figures))


if __name__ == "__main__":
    main()
