"""Stochastic weight averaging of a small convolutional net with BatchNormalization, on scikit-learn's digits.

Run it with `python examples/21_swa.py`; it takes some seconds on a processor. It trains once without an average and
once with one, and shows what the average is worth with statistics of its own, and with those of other weights.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import averaging, callbacks, layers, optimizers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)


def network():
    """Two convolutions, each followed by BatchNormalization."""
    keras.utils.set_random_seed(arguments.seed)
    parts = [keras.Input((8, 8, 1))]
    for filters in (16, 32):
        parts += [keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        parts += [keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.MaxPooling2D()]
    parts += [keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(parts)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


def train(*more):
    model = network()
    model.fit(x_train, y_train, batch_size=32, epochs=arguments.epochs, verbose=0, callbacks=list(more))
    return model


def show(name, model):
    loss, accuracy = model.evaluate(x_test, y_test, batch_size=256, verbose=0)
    print(f"{name:48}  test loss {loss:.4f}  accuracy {accuracy:.4f}")
    return loss


def statistics(model):
    """The moving means and variances of the BatchNormalization layers."""
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return [variable for layer in found for variable in (layer.moving_mean, layer.moving_variance)]


plain = train()
last = show("the last weights", plain)

# From the sixth epoch on the learning rate falls from 0.1 to 0.01 in each epoch, and a snapshot is taken at its end.
# Averaged weights have never seen a batch, so their statistics are computed from the training data.
average = averaging.SWA(start="0.5run", every="1ep", rate=[0.1, 0.01])
model = train(callbacks.WeightAveraging(average, refresh=x_train))
snapshots = model.optimizer.weight_averages.count
swa = show(f"the average of {snapshots} snapshots, statistics refreshed", model)

# The same average with the statistics that training left behind in a run without `refresh`.
refreshed = [np.array(variable) for variable in statistics(model)]
for variable, value in zip(statistics(model), statistics(plain), strict=True):
    variable.assign(value)
stale = show("the same average, statistics of other weights", model)
for variable, value in zip(statistics(model), refreshed, strict=True):
    variable.assign(value)

# What the callback does can be done by hand, too, for averages that were made elsewhere.
layers.refresh_batch_statistics(model, x_train, batch_size=32)
again = show("refreshed by hand, for weights from anywhere", model)
if not (swa < 1.2 * last and swa < stale and abs(again - swa) < 1e-4):
    raise SystemExit("the average should be about as good as the last weights, or better, once refreshed")
