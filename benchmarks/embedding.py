"""LazyAdam on embedding tables: what a step costs by the rows touched and by the rows there are.

    python benchmarks/embedding.py                    # tables of 10,000, 100,000 and 1,000,000 rows of 32
    python benchmarks/embedding.py --rounds 5

Against our Adam and Keras's, in turn. Figures go to benchmarks/results/. The largest table needs 2.5 GB of memory.

- `update` is the update alone, for a sparse gradient that is ready in memory.
- `fit` is a whole step of `fit` on a model of an embedding and a dense layer.
- `fit_gathered` is the same with a layer that gathers rows from the variable itself. Keras's Embedding reads the whole
  variable first, and TensorFlow, once a variable has been written to row by row, copies it for every such read. So the
  forward pass of `fit` costs a copy of the table, whatever the optimizer saves.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_trainkit import optimizers

WIDTH, FIT_STEPS = 32, 10
# Rows of the table, rows touched in a step.
CASES = [(10_000, 1_000), (100_000, 1_000), (1_000_000, 1_000), (1_000_000, 10_000)]
MAKERS = {
    "LazyAdam": lambda: optimizers.LazyAdam(1e-3),
    "Adam": lambda: optimizers.Adam(1e-3),
    "Keras's Adam": lambda: keras.optimizers.Adam(1e-3),
}
# Most that the time of a step may grow to the largest table from one of a tenth of its rows, with as many touched. The
# smallest table is not compared with: it fits into the processor's caches.
AT_MOST = 1.5


def touched_rows(rows: int, touched: int) -> np.ndarray:
    """Different rows, at random."""
    return np.random.default_rng(0).choice(rows, touched, replace=False).astype("int32")


def update(make: Callable[[], Any], rows: int, touched: int) -> Callable[[], Any]:
    """The update alone."""
    table = keras.Variable(np.zeros((rows, WIDTH), "float32"), name="embeddings")
    values = tf.Variable(np.random.default_rng(1).standard_normal((touched, WIDTH)).astype("float32"))
    indices = tf.Variable(touched_rows(rows, touched))
    optimizer = make()
    optimizer.build([table])

    @tf.function(autograph=False)
    def step() -> None:
        gradient = tf.IndexedSlices(tf.identity(values), tf.identity(indices), tf.constant([rows, WIDTH]))
        optimizer.apply([gradient], [table])

    return step


class GatheringEmbedding(layers.Embedding):
    """Never reads the rows that it does not need."""

    def call(self, inputs: Any) -> Any:
        return tf.gather(self.embeddings.value, inputs)


def fit(kind: type[layers.Embedding], make: Callable[[], Any], rows: int, touched: int) -> Callable[[], Any]:
    """A call of `fit`, of FIT_STEPS steps."""
    pieces = 10
    model = keras.Sequential(
        [
            keras.Input((pieces,), dtype="int32"),
            kind(rows, WIDTH, embeddings_initializer="zeros"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model.compile(make(), "mse")
    x = touched_rows(rows, touched).reshape(-1, pieces)
    data = tf.data.Dataset.from_tensors((x, np.ones((len(x), 1), "float32"))).repeat(FIT_STEPS)
    return lambda: model.fit(data, shuffle=False, verbose=0)


# What makes a step, and how many steps a call of it has.
KINDS: dict[str, tuple[Callable[..., Callable[[], Any]], int]] = {
    "update": (update, 1),
    "fit": (functools.partial(fit, layers.Embedding), FIT_STEPS),
    "fit_gathered": (functools.partial(fit, GatheringEmbedding), FIT_STEPS),
}
CLAIMED = ("update", "fit_gathered")


def measure(kind: str, rows: int, touched: int, rounds: int) -> dict[str, Any]:
    """The figures of one table."""
    make_step, steps = KINDS[kind]
    times = in_turn.milliseconds({name: make_step(make, rows, touched) for name, make in MAKERS.items()}, rounds)
    times = {name: [ms / steps for ms in values] for name, values in times.items()}
    gc.collect()
    return {
        "rows": rows,
        "touched": touched,
        "milliseconds": {name: in_turn.summary(values) for name, values in times.items()},
        "LazyAdam_to": {
            name: in_turn.ratio(times["LazyAdam"], values) for name, values in times.items() if name != "LazyAdam"
        },
    }


def growth(results: list[dict[str, Any]]) -> float:
    """LazyAdam's time on the largest table over that on the one before, with the same rows touched."""
    alike = [result["milliseconds"]["LazyAdam"]["median"] for result in results if result["touched"] == CASES[0][1]]
    return round(alike[-1] / alike[-2], 2)


def main() -> None:
    """Measures, prints a line for each table, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--largest", type=int, help="leave larger tables out, judge nothing, write no figures")
    arguments = parser.parse_args()
    figures: dict[str, Any] = in_turn.circumstances(["keras", "tensorflow"])
    figures |= {
        "rounds": arguments.rounds,
        "width": WIDTH,
        "claim": f"LazyAdam's step takes at most {AT_MOST} times as long on a table 10 times as large, but for the "
        "copy of the table that Keras's Embedding makes in its forward pass (`fit`)",
    }
    for kind in KINDS:
        results = []
        for rows, touched in CASES:
            if arguments.largest and rows > arguments.largest:
                continue
            results.append(measure(kind, rows, touched, arguments.rounds))
            spread = "{median} [{quartile_1}, {quartile_3}]".format
            times = ", ".join(f"{name} {spread(**ms)}" for name, ms in results[-1]["milliseconds"].items())
            print(f"{kind}, {touched} of {rows} rows: {times} ms", flush=True)
            keras.utils.clear_session()
        figures[kind] = {"tables": results}
        if arguments.largest:
            continue
        grown = figures[kind]["growth"] = growth(results)
        word = "no claim"
        if kind in CLAIMED:
            figures[kind]["holds"] = grown <= AT_MOST
            word = "holds" if grown <= AT_MOST else "DOES NOT HOLD"
        print(f"{kind}: LazyAdam's time grows {grown} times to the largest table: {word}")
    if not arguments.largest:
        print(in_turn.write("embedding", figures))


if __name__ == "__main__":
    main()
