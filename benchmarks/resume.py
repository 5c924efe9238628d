"""What saving the state of a run costs: `fit` with ResumableTraining, plain `fit`, and plain `fit` again, in turn.

    python benchmarks/resume.py                        # all cases
    python benchmarks/resume.py --rounds 20 small

A turn is a call of `fit` over one epoch in which three states are saved; the first ones, which trace, are left out. The
same with Keras's BackupAndRestore shows what saving on the training thread costs. What the two plain ones differ by is
the noise. "held" is how long the training thread stands still for one state, "written" how long the other thread takes.
Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import numpy as np

from keras_trainkit import data
from keras_trainkit.callbacks import ResumableTraining
from keras_trainkit.callbacks.resumable_training import _ended
from keras_trainkit.resuming import snapshot, store

STEPS, BATCH = 40, 32
# Width and number of layers, and what of each.
CASES = {"small": (64, 4), "medium": (512, 8), "large": (1536, 6)}


def model(width: int, layers: int) -> keras.Model:
    """Dense layers, with Adam: three times the weights to save."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(layers)]
    result = keras.Sequential([keras.Input((width,)), *hidden, keras.layers.Dense(1)])
    result.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    return result


def turns(width: int, layers: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """A call of `fit` of each kind."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((STEPS * BATCH, width), dtype="float32"), rng.standard_normal(STEPS * BATCH, "float32")
    numbers = iter(range(10**9))

    def fit(trained: keras.Model, callback: Callable[[], list[Any]]) -> Callable[[], Any]:
        batches = data.Batches(x, y, batch_size=BATCH, seed=1)
        return lambda: trained.fit(batches, epochs=1, verbose=0, callbacks=callback())

    def saving() -> list[Any]:
        _ended.clear()
        # At the beginning, in the middle and at the end: three states.
        return [ResumableTraining(folder / str(next(numbers)), every=STEPS // 2, keep=1)]

    def backup() -> list[Any]:
        return [keras.callbacks.BackupAndRestore(folder / "backup", save_freq=STEPS // 3)]

    return {
        "resumable": fit(model(width, layers), saving),
        "backup": fit(model(width, layers), backup),
        "plain": fit(model(width, layers), list),
        "plain again": fit(model(width, layers), list),
    }


def one_state(width: int, layers: int, folder: Path, rounds: int) -> dict[str, Any]:
    """How long the training thread stands still for a state, and how long it takes to write one."""
    trained = model(width, layers)
    trained.optimizer.build(trained.trainable_variables)
    retention = store.Retention(1, 0, 0, "", lambda metric: False)
    kept = store.Store(folder / "one", retention)
    held, written = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        facts, values = snapshot.take(trained)
        held.append(1e3 * (time.perf_counter() - began))
        facts |= {"epoch": 1, "batch": 0, "inside": False, "metrics": {}}
        began = time.perf_counter()
        path = kept.write(facts, snapshot.pack(facts, values))
        written.append(1e3 * (time.perf_counter() - began))
    megabytes = round(path.stat().st_size / 1e6, 2)
    kept.release()
    return {"held": in_turn.summary(held), "written": in_turn.summary(written), "megabytes": megabytes}


def main() -> None:
    """Measures the cases, prints them and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"circumstances": in_turn.circumstances(["keras", "tensorflow", "numpy"])}
    figures |= {"rounds": arguments.rounds, "cases": {}}
    for name in arguments.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            times = in_turn.milliseconds(turns(*CASES[name], Path(folder)), arguments.rounds)
            found = {
                "states_per_fit": 3,
                "milliseconds": {kind: in_turn.summary(values) for kind, values in times.items()},
                "over_plain": {
                    kind: in_turn.ratio(values, times["plain"]) for kind, values in times.items() if kind != "plain"
                },
                "one_state": one_state(*CASES[name], Path(folder), arguments.rounds),
            }
        figures["cases"][name] = found
        print(name, found["over_plain"], found["one_state"])
    print(in_turn.write("resume", figures))


if __name__ == "__main__":
    main()
