"""What watching a run costs: `fit` with TrainingMonitor, with Keras's TensorBoard callback, and plain, in turn.

    python benchmarks/monitoring.py                    # both cases
    python benchmarks/monitoring.py --rounds 40 mlp

A turn is a call of `fit` over one epoch; the first ones, which trace, are left out. "monitor" writes a line every 10
updates, as by default; "layers" also measures every layer every 100 updates; "tensorboard" is Keras's callback with
update_freq=1, and "tensorboard 10" with update_freq=10. What the two plain ones differ by is the noise. Beside the
times stands the work of all cores together, which a busy machine lengthens less. The aims: at most 1.02 times plain
`fit` on the convolutional net, 1.05 on the perceptron of 50,000 parameters. Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import numpy as np

from keras_trainkit import data, optimizers
from keras_trainkit.callbacks import TrainingMonitor

AIMS = {"cnn": 1.02, "mlp": 1.05}


def mlp() -> keras.Model:
    """50,890 parameters."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((784,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])


def cnn() -> keras.Model:
    """Three convolutions with batch normalization."""
    keras.utils.set_random_seed(0)
    layers: list[keras.layers.Layer] = []
    for filters in (16, 32, 64):
        layers += [keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)]
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


# The model, the shape of a sample, samples in a batch, steps in a turn.
CASES: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...], int, int]] = {
    "cnn": (cnn, (28, 28, 1), 64, 100),
    "mlp": (mlp, (784,), 64, 400),
}


def turns(case: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """A call of `fit` of each kind."""
    make, shape, batch, steps = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * batch, *shape), dtype="float32")
    y = rng.integers(0, 10, steps * batch)

    def fit(callback: keras.callbacks.Callback | None) -> Callable[[], Any]:
        model = make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=False)
        batches = data.Batches(x, y, batch_size=batch, seed=1)
        callbacks = [] if callback is None else [callback]
        return lambda: model.fit(batches, epochs=1, verbose=0, callbacks=callbacks)

    return {
        "monitor": fit(TrainingMonitor(folder / "monitor", every=10)),
        "layers": fit(TrainingMonitor(folder / "layers", every=10, layers_every=100)),
        "tensorboard": fit(keras.callbacks.TensorBoard(folder / "keras", update_freq=1)),
        "tensorboard 10": fit(keras.callbacks.TensorBoard(folder / "keras10", update_freq=10)),
        "plain": fit(None),
        "plain again": fit(None),
    }


def main() -> None:
    """Measures the cases, prints them and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"circumstances": in_turn.circumstances(["keras", "tensorflow", "tensorboard"])}
    figures |= {"rounds": arguments.rounds, "aims": AIMS, "cases": {}}
    for case in arguments.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            work: dict[str, list[float]] = {}
            times = in_turn.milliseconds(turns(case, Path(folder)), arguments.rounds, of_processors=work)
        figures["cases"][case] = {
            "steps": CASES[case][3],
            "milliseconds": {kind: in_turn.summary(values) for kind, values in times.items()},
            "over_plain": {
                kind: in_turn.ratio(values, times["plain"]) for kind, values in times.items() if kind != "plain"
            },
            "processors_over_plain": {
                kind: in_turn.ratio(values, work["plain"]) for kind, values in work.items() if kind != "plain"
            },
        }
        for which in ("over_plain", "processors_over_plain"):
            print(case, which, {kind: found["median"] for kind, found in figures["cases"][case][which].items()})
    print(in_turn.write("monitoring", figures))


if __name__ == "__main__":
    main()
