"""Learning curves to search among: real trainings of small networks on scikit-learn's digits, made once and kept.

    python benchmarks/search_curves.py          # a quarter of an hour; writes benchmarks/search_curves.json

Every point of the grid is trained once, for as many epochs, with the validation loss after each. Searches then look up
what a training would have said. A loss that is not finite, or above the largest, is the largest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FILE = Path(__file__).with_suffix(".json")
EPOCHS = 27
LARGEST = 10.0
GRID: dict[str, list[Any]] = {
    "optimizer": ["sgd", "adamw", "lion"],
    # Of the optimizer's own rate.
    "rate_factor": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
    "units": [8, 32, 128],
    "batch_size": [16, 64, 256],
    "dropout": [0.0, 0.3],
}
RATES = {"sgd": 0.03, "adamw": 0.002, "lion": 0.0003}


def points() -> list[dict[str, Any]]:
    """The grid, in the order of the file's curves."""
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def curves() -> list[list[float]]:
    """The validation loss after each epoch, for each point."""
    return json.loads(FILE.read_text(encoding="utf-8"))["curves"]


def train(point: dict[str, Any], data: Any) -> list[float]:
    """One curve."""
    import keras

    from keras_trainkit import optimizers

    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(point["units"], activation="relu"), keras.layers.Dropout(point["dropout"])]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    extra = {"momentum": 0.9} if point["optimizer"] == "sgd" else {}
    rate = RATES[point["optimizer"]] * point["rate_factor"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.get(point["optimizer"], learning_rate=rate, **extra), loss)
    x, y, *validation = data
    history = model.fit(
        x, y, batch_size=point["batch_size"], epochs=EPOCHS, validation_data=validation, validation_batch_size=512,
        verbose=0,
    ).history["val_loss"]  # fmt: skip
    return [round(min(value, LARGEST), 4) if math.isfinite(value) else LARGEST for value in history]


def main() -> None:
    """Trains all, and writes the file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import keras
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(
        x.astype("float32") / 16, y, train_size=600, random_state=0, stratify=y
    )
    began, found = time.perf_counter(), []
    for number, point in enumerate(points()):
        found.append(train(point, (x_train, y_train, x_valid, y_valid)))
        if number % 20 == 0:
            keras.backend.clear_session()
            print(
                f"{number} of {len(points())}, {time.perf_counter() - began:.0f} s: {point} {found[-1][-1]}", flush=True
            )
    lines = ",\n".join(json.dumps(curve) for curve in found)
    FILE.write_text(
        f'{{"grid": {json.dumps(GRID)},\n"epochs": {EPOCHS},\n"curves": [\n{lines}\n]}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
