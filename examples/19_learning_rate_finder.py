"""Finds a learning rate by a range test, trains with it inside a time budget, and beside it with rates far off.

    python examples/19_learning_rate_finder.py --picture rates.png

The table shows what each rule suggests and how far the sweeps differ. After the sweeps the model is what it was, to the
bit; the example checks it.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from keras_trainkit import callbacks, finders, optimizers, schedules


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scikit-learn's digits in a fixed random order; the last 360 are to validate on."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = (images[order] / 16).astype("float32").reshape(-1, 8, 8, 1)
    y = labels[order].astype("int32")
    return x[:-360], y[:-360], x[-360:], y[-360:]


def net() -> keras.Model:
    """Two convolutions, with the same first weights each time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )


def compiled(rate: float) -> keras.Model:
    model = net()
    schedule = schedules.Warmup(schedules.Cosine(rate, "0.9run"), "0.1run")
    model.compile(optimizers.AdamW(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", help="where to draw the curves")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    x, y, x_validation, y_validation = data()

    model = net()
    model.compile(optimizers.AdamW(1e-3), "sparse_categorical_crossentropy")
    before = model.get_weights()
    found = finders.learning_rate(model, x, y, batch_size=32, minimum=1e-6, seeds=2)
    print(found)
    same = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    print(f"the model is what it was: {same}")
    if arguments.picture:
        found.plot(arguments.picture)

    if found.suggestion is None:
        raise SystemExit("the loss fell nowhere")
    for name, rate in {
        "suggested": found.suggestion,
        "a hundredth of it": found.suggestion / 100,
        "a hundred times it": found.suggestion * 100,
    }.items():
        model = compiled(rate)
        budget = callbacks.TimeBudget("1min")  # on a slow machine the decay ends in time nevertheless
        model.fit(x, y, batch_size=32, epochs=arguments.epochs, verbose=0, callbacks=[callbacks.ResolveSpans(), budget])
        loss, accuracy = model.evaluate(x_validation, y_validation, verbose=0)
        print(f"{name}: learning rate {rate:.2g}, validation loss {loss:.3f}, accuracy {accuracy:.3f}")

    noise = finders.noise_scale(compiled(found.suggestion), x, y, measurements=8)
    print(f"before training, {noise}")


if __name__ == "__main__":
    main()
