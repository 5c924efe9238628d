"""Deep nets without normalization on scikit-learn's digits, which train only with the right initialization.

Run it with `python examples/09_initializers.py`; it takes less than a minute on a processor.
"""

import sys

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import initializers, layers, optimizers

EPOCHS, BATCH, WIDTH = 6, 32, 64

x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
accuracies = {}


def train(name, model, optimizer):
    """Trains without clipping and warmup, and prints how it went."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    history = model.fit(x_train, y_train, BATCH, EPOCHS, verbose=0)
    _, accuracies[name] = model.evaluate(x_test, y_test, verbose=0)
    print(f"{name:32} loss of the last epoch {history.history['loss'][-1]:9.4g}, accuracy {accuracies[name]:.4f}")


# ------------------------------------------------------------------------------ a plain stack of two dozen ReLU layers


def plain(depth=24):
    """A perceptron that Keras's default initializers leave without a signal at its end."""
    keras.utils.set_random_seed(0)
    stack = [keras.layers.Dense(WIDTH, "relu") for _ in range(depth)]
    return keras.Sequential([keras.Input((64,)), *stack, keras.layers.Dense(10, name="head")])


train("plain, Keras's default", plain(), optimizers.Adam(1e-3))
model = plain()
table = initializers.lsuv(model, x_train, seed=1)
train("plain, lsuv", model, optimizers.Adam(1e-3))

# What it did, layer by layer; the whole table is `print(table)`.
print("\n".join(str(table).splitlines()[:6]))

# ---------------------------------------------------------------------- thirty residual blocks without normalization


def hidden(initializer, name):
    """A layer of a branch, without a bias."""
    return keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer=initializer, name=name)


def residual(blocks=30, last="he_normal", join=None):
    """Blocks of two layers; `last` initializes the second of them, `join` adds shortcut and branch."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    stream = keras.layers.Dense(WIDTH, kernel_initializer="he_normal")(inputs)
    for block in range(blocks):
        branch = keras.layers.Activation("relu")(stream)
        branch = hidden("he_normal", f"block_{block}_first")(branch)
        branch = keras.layers.Activation("relu")(branch)
        # An object for each layer: one object gives the same values at every call.
        scaled = initializers.ScaledResidual(blocks, "he_normal", branches=1)
        branch = hidden(scaled if last == "scaled" else last, f"block_{block}_last")(branch)
        stream = (join or keras.layers.Add)()([stream, branch])
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(keras.layers.Activation("relu")(stream)))


train("residual, he_normal", residual(), optimizers.SGD(0.05, momentum=0.9))
train("residual, ScaledResidual", residual(last="scaled"), optimizers.SGD(0.005, momentum=0.9))
train("residual, ReZero", residual(join=layers.ReZero), optimizers.SGD(0.05, momentum=0.9))

# The layers that share the number in their names are one branch.
model = residual()
table = initializers.fixup(model, r"block_(\d+)_", seed=1)
train("residual, fixup", model, optimizers.SGD(0.05, momentum=0.9))
print("\n".join(str(table).splitlines()[:6]))

good = [name for name in accuracies if not name.endswith(("default", "he_normal"))]
bad = [name for name in accuracies if name not in good]
if min(accuracies[name] for name in good) < 0.85:
    sys.exit("the accuracy is lower than it should be")
if max(accuracies[name] for name in bad) > 0.6:
    sys.exit("what should not train trains")
