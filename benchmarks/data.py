"""Epochs of `fit` on `data.Batches` and on Keras's own array pipeline in turn, and Keras's a second time.

    python benchmarks/data.py                          # all cases
    python benchmarks/data.py --rounds 20 rows

The model does next to nothing, so that the time is that of the data. What Keras's two differ by is the noise of the
measurement. A turn is a call of `fit` over one epoch, the first ones, which trace, left out. On JAX set KERAS_BACKEND.
Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import noise
import numpy as np

from keras_trainkit import data

NOISE = 0.05  # If the interval of Keras to itself goes farther from 1, the machine was not quiet enough.
EPOCHS = 2  # in a call of `fit`: the second one begins where the first has ended
# Examples, their shape, and the size of a batch; the last batch of each is a smaller one.
CASES = {
    "rows": (50_010, (32,), 128),
    "images": (4_010, (32, 32, 3), 64),
    "one by one": (400, (8,), 1),
}


def model(shape: tuple[int, ...]) -> keras.Model:
    """A mean and one weight."""
    inputs = keras.Input(shape)
    mean = keras.layers.GlobalAveragePooling2D()(inputs) if len(shape) == 3 else inputs
    result = keras.Model(inputs, keras.layers.Dense(1)(mean))
    result.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    return result


def turns(examples: int, shape: tuple[int, ...], size: int) -> dict[str, Callable[[], Any]]:
    """A call of `fit` for each pipeline."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((examples, *shape), dtype="float32"), rng.standard_normal(examples, dtype="float32")
    batches = data.Batches(x, y, batch_size=size, seed=1)
    # Built in the other order than they are measured in: neither of the two that are compared meets a cold machine.
    again, keras_own, ours = model(shape), model(shape), model(shape)
    return {
        "ours": lambda: ours.fit(batches, epochs=EPOCHS, verbose=0),
        "keras": lambda: keras_own.fit(x, y, batch_size=size, epochs=EPOCHS, verbose=0),
        "keras again": lambda: again.fit(x, y, batch_size=size, epochs=EPOCHS, verbose=0),
    }


def measure(examples: int, shape: tuple[int, ...], size: int, rounds: int) -> dict[str, Any]:
    """The figures of one case, in milliseconds an epoch."""
    times = in_turn.milliseconds(turns(examples, shape, size), rounds)
    times = {name: [ms / EPOCHS for ms in values] for name, values in times.items()}
    ratios = {
        name: in_turn.ratio(times[name], times["keras"]) | median_interval(times[name], times["keras"])
        for name in ("ours", "keras again")
    }
    return {
        "examples": examples,
        "shape": list(shape),
        "batch": size,
        "milliseconds_an_epoch": {name: in_turn.summary(values) for name, values in times.items()},
        "ours_to_keras": ratios["ours"],
        "keras_to_itself": ratios["keras again"],
        "verdict": verdict(ratios["ours"], ratios["keras again"]),
    }


def median_interval(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Where the median of the quotients lies, turn by turn, with 95% confidence."""
    low, high = noise.median_interval([a / b for a, b in zip(ours, theirs, strict=True)])
    return {"low": round(low, 3), "high": round(high, 3)}


def verdict(ours: dict[str, float], again: dict[str, float]) -> str:
    """Whether the claim holds, if the noise lets one tell."""
    if again["high"] > 1 + NOISE or again["low"] < 1 - NOISE:
        return "too noisy to tell"
    return "holds" if ours["median"] <= max(1.0, again["high"]) else "does not hold"


def main() -> None:
    """Measures, prints a line for each case, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all when left out")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"no case is called {name}")
    figures: dict[str, Any] = in_turn.circumstances(["keras", "tensorflow", "jax", "numpy"])
    figures |= {
        "backend": keras.backend.backend(),
        "rounds": arguments.rounds,
        "claim": "never slower: the median ratio is at most 1, or within the 95% interval of Keras to itself",
        "cases": {},
    }
    for name in arguments.cases or CASES:
        result = measure(*CASES[name], arguments.rounds)
        figures["cases"][name] = result
        shown = "{median} [{quartile_1}, {quartile_3}]".format
        print(
            f"{name}: {shown(**result['milliseconds_an_epoch']['ours'])} ms an epoch, "
            f"{shown(**result['ours_to_keras'])} of Keras (Keras to itself {shown(**result['keras_to_itself'])}): "
            f"{result['verdict']}",
            flush=True,
        )
    if not arguments.cases:
        backend = keras.backend.backend()
        print(in_turn.write("data" if backend == "tensorflow" else f"data_{backend}", figures))


if __name__ == "__main__":
    main()
