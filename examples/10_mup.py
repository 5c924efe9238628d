"""MuP on scikit-learn's digits: the best learning rate of a narrow network is that of a wide one.

Run it with `python examples/10_mup.py`; it takes less than a minute on a processor.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_trainkit import initializers, optimizers

NARROW, WIDE, STEPS, BATCH = 64, 512, 150, 64
RATES = [2.0**-power for power in range(11, 3, -1)]

x, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))[: 23 * BATCH]
x, y = x[order].astype("float32"), y[order]
x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1.0)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(width):
    """Three hidden layers; the last layer begins at zero, so that narrow networks begin as wide ones do."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, "relu", kernel_initializer="he_normal", name=f"hidden_{i}") for i in range(3)]
    output = keras.layers.Dense(10, kernel_initializer="zeros", name="output")
    return keras.Sequential([keras.Input((64,)), *hidden, output], name="net")


def losses(width, with_mup):
    """The loss over the last steps of a run with each of the rates."""
    model, optimizer = build(width), optimizers.Adam(RATES[0])
    if with_mup:
        parametrized = initializers.mup(model, build(NARROW))
        if width == WIDE:
            print(parametrized, "\n")
        optimizer = parametrized.optimizer(optimizer)
    model.compile(optimizer, loss)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    found = []
    for rate in RATES:  # one compiled step serves all of them
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        optimizer.learning_rate = rate
        batches = [slice(i % 23 * BATCH, (i % 23 + 1) * BATCH) for i in range(STEPS)]
        found.append(np.mean([float(model.train_on_batch(x[one], y[one])) for one in batches][-23:]))
    return np.array(found)


# ------------------------------------------------------------------------------------------- losses over learning rates

results = {(name, width): losses(width, name == "MuP") for name in ("standard", "MuP") for width in (NARROW, WIDE)}
print("learning rate     " + "".join(f"{rate:9.2g}" for rate in RATES))
for (name, width), row in results.items():
    cells = [f"{value:8.4f}" + ("*" if value == min(row) else " ") for value in row]
    print(f"{name:9} {width:6}  " + "".join(cells))


def best(name, width):
    """The position of the best rate."""
    return int(np.argmin(results[name, width]))


for name in ("standard", "MuP"):
    row = results[name, WIDE]
    print(f"{name}: {WIDE} wide at the best rate of {NARROW}: {row[best(name, NARROW)]:.4f}, at its own {min(row):.4f}")

# ------------------------------------------------------------------------------------------------- the coordinate check

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="mup-"))
checks = {
    name: initializers.coordinate_check(
        build, [64, 128, 256, 512], optimizers.Adam(2.0**-8), (x[:128], y[:128]), loss, base=base, steps=3, seeds=1
    )
    for name, base in {"standard": None, "MuP": NARROW}.items()
}
for name, check in checks.items():
    print(f"\n{name}\n{check}")
initializers.plot_coordinate_checks(checks, folder / "coordinates.svg")
print(f"picture: {folder / 'coordinates.svg'}")

moved = {name: abs(best(name, WIDE) - best(name, NARROW)) for name in ("standard", "MuP")}
if moved["MuP"] > 1 or moved["standard"] <= moved["MuP"] or not checks["MuP"].steady or checks["standard"].steady:
    sys.exit("the best rate should stay where it is with MuP, and move without")
