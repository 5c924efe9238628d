"""Weights in eight and four bits: Keras's own `quantize`, on a network that an optimizer of the kit trained.

    python examples/17_quantization.py                 # scikit-learn's digits, less than a minute
    python examples/17_quantization.py --mnist mnist.npz

Measures accuracy, bytes and the time of a prediction, over several seeds. Keras's "gptq" and "awq" take a model made of
blocks and data to calibrate on, and so have no place here; "float8" is for training, on devices that have it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_trainkit import optimizers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--mnist", type=Path, help="an mnist.npz in place of the digits")
parser.add_argument("--seeds", type=int, default=3)
arguments = parser.parse_args()
FOLDER = Path(tempfile.mkdtemp(prefix="quantization-"))

if arguments.mnist:
    with np.load(arguments.mnist) as data:
        x_train, y_train, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    x_train, x_test = (x.reshape(len(x), -1).astype("float32") / 255 for x in (x_train, x_test))
    UNITS, BATCH, EPOCHS = (512, 512), 256, 5
else:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x.astype("float32") / 16, y, test_size=0.3, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = split
    UNITS, BATCH, EPOCHS = (512, 512), 32, 8


def network(weights=None):
    hidden = [keras.layers.Dense(units, "relu") for units in UNITS]
    model = keras.Sequential([keras.Input(x_train.shape[1:]), *hidden, keras.layers.Dense(10)])
    if weights is not None:
        model.set_weights(weights)
    return model


def trained():
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.AdamW(1e-3, weight_decay=1e-3), loss, metrics=["accuracy"])
    model.fit(x_train, y_train, BATCH, EPOCHS, verbose=0)
    return model.get_weights()  # without the optimizer, whose moments a file would hold, too


def measured(model):
    """Accuracy, bytes in memory, bytes of the file, and milliseconds for a batch of 512 (the best of several)."""
    accuracy = float(np.mean(model.predict(x_test, 512, verbose=0).argmax(1) == y_test))
    # Bytes as the variables hold them: Keras packs two numbers of four bits into one byte.
    memory = sum(int(np.prod(w.shape)) * keras.ops.convert_to_numpy(w).dtype.itemsize for w in model.weights)
    model.save(FOLDER / "model.keras")
    loaded = keras.models.load_model(FOLDER / "model.keras", compile=False)
    batch, times = keras.ops.convert_to_tensor(x_test[:512]), []
    loaded.predict_on_batch(batch)
    for _ in range(20):
        began = time.perf_counter()
        loaded.predict_on_batch(batch)
        times.append(time.perf_counter() - began)
    same = np.allclose(loaded.predict_on_batch(batch), model.predict_on_batch(batch), atol=1e-4)
    if not same:
        sys.exit("the loaded model says something else than the saved one")
    return accuracy, memory, (FOLDER / "model.keras").stat().st_size, 1000 * min(times)


results = {"float32": [], "int8": [], "int4": []}
for seed in range(arguments.seeds):
    keras.utils.set_random_seed(seed)
    weights = trained()
    results["float32"].append(measured(network(weights)))
    for mode in ("int8", "int4"):
        small = network(weights)
        try:
            small.quantize(mode)  # after training: there are no gradients for whole numbers
        except ValueError as error:
            print(f"Keras {keras.__version__} cannot do {mode}: {error}")
            continue
        results[mode].append(measured(small))

print("| weights | test accuracy, mean | worst | best | bytes in memory | bytes of the file | ms for 512 samples |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for name, runs in results.items():
    if runs:
        accuracy, memory, file, time_taken = (np.array(column) for column in zip(*runs, strict=True))
        cells = f"{accuracy.mean():.4f} | {accuracy.min():.4f} | {accuracy.max():.4f} | {memory[0]} | {file[0]}"
        print(f"| {name} | {cells} | {time_taken.min():.2f} |")

drop = np.mean([run[0] for run in results["float32"]]) - np.mean([run[0] for run in results["int8"]])
if drop > 0.02:
    sys.exit("eight bits cost more accuracy than they should")
