"""Weights that are zero: l1, groups and Hoyer on scikit-learn's digits, in the loss and in the optimizer's step.

Run it with `python examples/11_sparse_weights.py`; it takes less than a minute on a processor. A penalty in the loss
makes weights small, and a threshold has to say which of them are nothing. `DecoupledL1` and `DecoupledGroupLasso` set
them to zero themselves, and units without weights can be cut off.
"""

import sys

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import optimizers, regularizers, schedules, transforms

EPOCHS, BATCH, UNITS = 20, 32, 64
SMALL = 0.01  # what counts as nothing where nothing is zero

x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
rate = schedules.Cosine(3e-3, decay_steps=EPOCHS * -(-len(x_train) // BATCH))


def network(units=UNITS, penalty=None, *links):
    """Two hidden layers, whose kernels get the penalty, or whose optimizer the links."""
    hidden = {"activation": "relu", "kernel_regularizer": penalty}
    layers = [keras.layers.Dense(units, name="first", **hidden), keras.layers.Dense(32, name="second", **hidden)]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10, name="head")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(rate, after=list(links)), loss, metrics=["accuracy"])
    return model


def accuracy(model):
    return model.evaluate(x_test, y_test, verbose=0)[1]


def kernels(model):
    return [model.get_layer(name).kernel for name in ("first", "second")]


def train(name, penalty=None, *links):
    """Trains a network, prints how sparse it is, and returns it with its accuracy once small weights are zero."""
    keras.utils.set_random_seed(0)
    model = network(UNITS, penalty, *links)
    model.fit(x_train, y_train, BATCH, EPOCHS, verbose=0)
    before = accuracy(model)
    values = [keras.ops.convert_to_numpy(kernel) for kernel in kernels(model)]
    everything = np.concatenate([value.ravel() for value in values])
    zero, small = (everything == 0).mean(), (np.abs(everything) < SMALL).mean()
    units = np.abs(values[0]).max(axis=0)
    kept[name] = model
    for kernel, value in zip(kernels(model), values, strict=True):
        kernel.assign(np.where(np.abs(value) < SMALL, 0, value))
    after = accuracy(model)
    print(f"{name:26}{before:8.4f}{zero:9.1%}{(units == 0).sum():7}{small:9.1%}{after:10.4f}")
    return zero, after


# --------------------------------------------------------------------------------------------------------- the methods

excluded = ["bias", "head"]
kept = {}
print(f"{len(x_train)} images, {64 * UNITS + UNITS * 32} weights in two kernels; small is below {SMALL}")
print(f"{'':26}accuracy    zero  units    small  accuracy without small ones")
results = {
    "no penalty": train("no penalty"),
    "Keras's L1 in the loss": train("Keras's L1 in the loss", keras.regularizers.L1(3e-4)),
    "Hoyer in the loss": train("Hoyer in the loss", regularizers.Hoyer(3e-4)),
    "GroupLasso in the loss": train("GroupLasso in the loss", regularizers.GroupLasso(1.5e-3)),
    "DecoupledL1": train("DecoupledL1", None, transforms.DecoupledL1(0.3, excluded)),
    "DecoupledGroupLasso": train("DecoupledGroupLasso", None, transforms.DecoupledGroupLasso(0.15, exclude=excluded)),
}

# ----------------------------------------------------------------------------------------- what the penalties amount to

print("\nGroupLasso's share of the loss at the end:")
print(regularizers.summary(kept["GroupLasso in the loss"]))

# -------------------------------------------------------------------------------------------------- units that are gone

large = kept["DecoupledGroupLasso"]
first, second = kernels(large)
biases = keras.ops.convert_to_numpy(large.get_layer("first").bias)
alive = (keras.ops.convert_to_numpy(first) != 0).any(axis=0)
# A unit without weights still says relu(bias), the same for every image: it goes into the next layer's bias.
weights = large.get_weights()
weights[3] = weights[3] + np.maximum(biases[~alive], 0) @ weights[2][~alive]
weights[0], weights[1], weights[2] = weights[0][:, alive], weights[1][alive], weights[2][alive]
smaller = network(int(alive.sum()))
smaller.set_weights(weights)
distance = np.abs(large.predict(x_test, verbose=0) - smaller.predict(x_test, verbose=0)).max()
print(f"\n{alive.sum()} of {UNITS} units are left; the smaller network's logits differ by {distance:.1g}")

worst = min(after for _, after in results.values())
if results["DecoupledL1"][0] < 0.4 or not 0 < alive.sum() < UNITS - 5 or worst < 0.93 or distance > 1e-3:
    sys.exit("the networks are less sparse, or worse, than they should be")
