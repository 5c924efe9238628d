"""Normalizations beside each other on scikit-learn's digits, with batches of 64 and of 2 samples.

Run it with `python examples/14_small_batch_normalization.py`; it takes about two minutes on two cores. Each net sees
600 digits, 20 times in batches of 64 or 3 times in batches of 2, and is tested on the other 1197: compare by column.
"""

import argparse
import sys
import time

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import layers, optimizers, schedules

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=3)
SEEDS = parser.parse_args().seeds
TRAINED = 600
RUNS = {64: (20, 0.2), 2: (3, 0.02)}  # by batch size: epochs and learning rate

x, y = load_digits(return_X_y=True)
x = (x.reshape(-1, 8, 8, 1) / 16).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, train_size=TRAINED, random_state=0, stratify=y)


def same(layer):
    return layer


# For each: what follows a convolution, and what is around the convolution itself.
KINDS = {
    "none": (lambda: [keras.layers.ReLU()], same),
    "BatchNormalization": (lambda: [keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU()], same),
    "Ghost, 16": (lambda: [layers.GhostBatchNormalization(16, momentum=0.9), keras.layers.ReLU()], same),
    "Group, 4": (lambda: [keras.layers.GroupNormalization(4), keras.layers.ReLU()], same),
    "WS, Group, 4": (lambda: [keras.layers.GroupNormalization(4), keras.layers.ReLU()], layers.WeightStandardization),
    "FRN, TLU": (lambda: [layers.FilterResponseNormalization(), layers.TLU()], same),
    "EvoNorm-S0, 4": (lambda: [layers.EvoNormS0(4)], same),
}


def network(kind):
    after, around = KINDS[kind]
    stages = []
    for filters, strides in [(16, 1), (24, 2), (32, 2)]:
        stages += [around(keras.layers.Conv2D(filters, 3, strides, "same")), *after()]
    return keras.Sequential(
        [keras.Input((8, 8, 1)), *stages, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


def shuffled(seed, batch, steps):
    """All epochs of one run, one behind the other, in whole batches."""
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(TRAINED) for _ in range(RUNS[batch][0])])[: steps * batch]
    return x_train[order], y_train[order]


def accuracies(kind, batch):
    """The test accuracy for each seed, in percent."""
    model = network(kind)
    epochs, peak = RUNS[batch]
    steps = TRAINED * epochs // batch // 4 * 4
    rate = schedules.Warmup(schedules.Cosine(peak, steps - steps // 10), steps // 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"], steps_per_execution=4)
    found = []
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        model.set_weights(network(kind).get_weights())
        for variable in model.optimizer.variables:  # as new, without a new trace
            variable.assign(np.zeros(variable.shape))
        model.fit(*shuffled(seed, batch, steps), batch, epochs=1, shuffle=False, verbose=0)
        found.append(100 * model.evaluate(x_test, y_test, 256, verbose=0)[1])
    return found


print(f"Test accuracy in percent: mean of {SEEDS} seeds (lowest to highest)\n\n{'':20}{'64':>22}{'2':>22}")
start, means = time.perf_counter(), {}
for kind in KINDS:
    cells = []
    for batch in RUNS:
        found = accuracies(kind, batch)
        means[kind, batch] = np.mean(found)
        cells.append(f"{np.mean(found):8.1f} ({min(found):.1f} to {max(found):.1f})")
    print(f"{kind:20}{cells[0]:>22}{cells[1]:>22}", flush=True)
print(f"\n{time.perf_counter() - start:.0f} seconds")
if min(means.values()) < 50:
    sys.exit("one of the nets did not learn")
