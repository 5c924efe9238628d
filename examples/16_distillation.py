"""A small network that learns from a large one: Keras's own Distiller, with an optimizer of the kit.

    python examples/16_distillation.py                 # scikit-learn's digits, less than a minute
    python examples/16_distillation.py --mnist mnist.npz

Compares the student that has the labels alone with the one that hears its teacher, too, over several seeds.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_trainkit import callbacks, optimizers, schedules

if not hasattr(keras, "distillation"):
    print(f"Keras {keras.__version__} has no keras.distillation yet (3.12 has); nothing to show.")
    sys.exit(0)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--mnist", type=Path, help="an mnist.npz in place of the digits")
parser.add_argument("--seeds", type=int, default=3)
arguments = parser.parse_args()

if arguments.mnist:
    with np.load(arguments.mnist) as data:
        x_train, y_train, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    x_train, x_test = (x.reshape(len(x), -1).astype("float32") / 255 for x in (x_train, x_test))
    TEACHER, STUDENT, BATCH, EPOCHS = (800, 400), (20,), 256, 8
else:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x.astype("float32") / 16, y, test_size=0.3, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = split
    TEACHER, STUDENT, BATCH, EPOCHS = (256, 256), (12,), 32, 12


def network(units, dropout=0.0):
    layers = [keras.Input(x_train.shape[1:])]
    for width in units:
        layers += [keras.layers.Dense(width, "relu"), *([keras.layers.Dropout(dropout)] if dropout else [])]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def train(model):
    """Trains a network, or a Distiller with its student, and returns the seconds it took."""
    rate = schedules.Warmup(schedules.Cosine(1e-2, "0.95run"), "0.05run")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(rate), loss, metrics=["accuracy"])
    began = time.perf_counter()
    model.fit(x_train, y_train, BATCH, EPOCHS, verbose=0, callbacks=[callbacks.ResolveSpans()])
    return time.perf_counter() - began


def accuracy(model):
    return float(np.mean(model.predict(x_test, 512, verbose=0).argmax(1) == y_test))


results, seconds = {"teacher": [], "student alone": [], "student, distilled": []}, {}
for seed in range(arguments.seeds):
    keras.utils.set_random_seed(seed)
    teacher = network(TEACHER, dropout=0.3)
    seconds["teacher"] = train(teacher)

    alone = network(STUDENT)
    student = keras.models.clone_model(alone)
    student.set_weights(alone.get_weights())  # both begin alike
    seconds["student alone"] = train(alone)

    # The teacher's softened answers say which wrong digits are nearly right. Keras freezes the teacher. The loss must
    # be an object: with the default, the name "kl_divergence", Keras 3.15 takes logits for probabilities.
    logits = keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())
    distiller = keras.distillation.Distiller(teacher, student, logits, student_loss_weight=0.5)
    seconds["student, distilled"] = train(distiller)

    for name, model in zip(results, (teacher, alone, distiller.student), strict=True):
        results[name].append((accuracy(model), model.count_params()))

print("| network | parameters | test accuracy, mean | worst | best | seconds of training |")
print("| --- | --- | --- | --- | --- | --- |")
for name, runs in results.items():
    found = np.array([run[0] for run in runs])
    cells = f"{found.mean():.4f} | {found.min():.4f} | {found.max():.4f} | {seconds[name]:.1f}"
    print(f"| {name} | {runs[0][1]} | {cells} |")

gain = np.array([a[0] - b[0] for a, b in zip(results["student, distilled"], results["student alone"], strict=True)])
print(f"\nthe distilled student is better by {gain.mean():+.4f} on average, in {int((gain > 0).sum())} of {len(gain)}")
if np.mean([run[0] for run in results["student, distilled"]]) < 0.8:
    sys.exit("the distilled student is worse than it should be")
