"""Accuracy against sparsity: single weights, 2:4 and whole filters taken out of a small network, and the files' sizes.

python examples/15_pruning.py                            # scikit-learn's digits, less than a minute
python examples/15_pruning.py --data-folder DIR          # with an mnist.npz in it: the curve of the guide, some minutes
python examples/15_pruning.py --mnist FILE --picture pruning.png

A folder of data sets that the environment variable KERAS_TRAINKIT_DATA names is looked into without being told.
"""

import argparse
import gzip
import os
import tempfile
import time
from pathlib import Path

import keras
import matplotlib
import numpy as np

from keras_trainkit import callbacks, optimizers, pruning

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--mnist", type=Path, help="an mnist.npz in place of the digits")
parser.add_argument("--data-folder", help="a folder to look for one in", default=os.environ.get("KERAS_TRAINKIT_DATA"))
parser.add_argument("--seeds", type=int, help="runs of each kind: 1, and 2 for MNIST")
parser.add_argument("--picture", type=Path, help="where the picture goes")
arguments = parser.parse_args()
FOLDER = Path(tempfile.mkdtemp(prefix="pruning-"))
there = Path(arguments.data_folder or FOLDER, "mnist.npz")
mnist = arguments.mnist or (there if there.exists() else None)
SEEDS = arguments.seeds or (2 if mnist else 1)
print(f"data: {mnist or 'the digits of scikit-learn, as no mnist.npz was named or found'}")

if mnist:
    with np.load(mnist) as data:
        x_train, y_train, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    x_train, x_test = (x.reshape(len(x), -1).astype("float32") / 255 for x in (x_train, x_test))
    UNITS, BATCH, DENSE_EPOCHS, EPOCHS = (300, 100), 512, 5, 4
    SHARES = {"single weights": [0.5, 0.8, 0.9, 0.95, 0.98, 0.99], "filters": [0.25, 0.5, 0.75]}
else:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x.astype("float32") / 16, y, test_size=0.3, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = split
    UNITS, BATCH, DENSE_EPOCHS, EPOCHS = (128, 64), 32, 8, 8
    SHARES = {"single weights": [0.5, 0.8, 0.9, 0.95], "filters": [0.5, 0.75]}


def network():
    hidden = [keras.layers.Dense(units, "relu") for units in UNITS]
    return keras.Sequential([keras.Input(x_train.shape[1:]), *hidden, keras.layers.Dense(10)])


def fit(model, epochs, rate, *more):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.AdamW(rate, weight_decay=1e-4), loss, metrics=["accuracy"])
    model.fit(x_train, y_train, BATCH, epochs, verbose=0, callbacks=list(more))
    return model


def measured(model):
    """Test accuracy, and the bytes of the weights in a file and in a compressed one."""
    plain = network()  # not compiled: the optimizer's moments would be saved, too
    plain.set_weights(model.get_weights())
    plain.save_weights(FOLDER / "model.weights.h5")
    content = (FOLDER / "model.weights.h5").read_bytes()
    return model.evaluate(x_test, y_test, verbose=0)[1], len(content), len(gzip.compress(content))


def pruned(weights, **how):
    """The trained network, pruned over the first two thirds of a second training."""
    model = network()
    model.set_weights(weights)
    if how:
        prune = callbacks.MagnitudePruning(begin_step=0, end_step="0.67run", frequency="0.25ep", **how)
        fit(model, EPOCHS, 1e-3, prune)
    else:
        fit(model, EPOCHS, 1e-3)  # as long a training without pruning is what to compare with
    return pruning.strip(model)  # no masks any more: a plain model with zeros


def kernels_sparsity(model):
    rows = [row for row in pruning.summary(model).rows if len(row.shape) > 1][:-1]
    return sum(row.zeros for row in rows) / sum(row.elements for row in rows)


kinds = [("dense", {})]
kinds += [("single weights", {"final_sparsity": share}) for share in SHARES["single weights"]]
kinds += [("2:4", {"structure": "2:4"}), ("1:4", {"structure": "1:4"})]
kinds += [("filters", {"structure": "filters", "final_sparsity": share}) for share in SHARES["filters"]]

began, found = time.perf_counter(), {}
for seed in range(SEEDS):
    keras.utils.set_random_seed(seed)
    dense = fit(network(), DENSE_EPOCHS, 2e-3).get_weights()
    for name, how in kinds:
        model = pruned(dense, **how)
        sparsity, run = round(kernels_sparsity(model), 3), measured(model)
        found.setdefault((name, sparsity), []).append(run)
        print(f"seed {seed}, {name}, {sparsity:.1%} zeros: accuracy {run[0]:.4f}", flush=True)

print(f"\n{len(x_train)} samples, {SEEDS} seeds, {time.perf_counter() - began:.0f} s\n")
print("| what | sparsity of hidden kernels | test accuracy | worst | best | file | compressed |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for (name, sparsity), runs in found.items():
    accuracy, size, small = (np.array(column) for column in zip(*runs, strict=True))
    span = f"{accuracy.min():.4f} | {accuracy.max():.4f}"
    print(f"| {name} | {sparsity:.1%} | {accuracy.mean():.4f} | {span} | {size[0]} | {small.mean():.0f} |")

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name in dict.fromkeys(name for name, _ in found):
    points = sorted((sparsity, np.mean([run[0] for run in runs])) for (n, sparsity), runs in found.items() if n == name)
    if name == "dense":
        axes.axhline(points[0][1], color="gray", linestyle="--", label=name)
    else:
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
axes.set(xlabel="share of hidden weights that are zero", ylabel="test accuracy")
axes.legend()
picture = arguments.picture or FOLDER / "pruning.png"
figure.savefig(picture, dpi=110)
print(f"\npicture: {picture}")

best = {name: max(np.mean([r[0] for r in runs]) for (n, _), runs in found.items() if n == name) for name, _ in found}
if best["single weights"] < best["dense"] - 0.02 or best["2:4"] < best["dense"] - 0.02:
    raise SystemExit("pruning cost more accuracy than it should")
