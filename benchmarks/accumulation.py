"""What gradient accumulation costs: windows of `fit` beside the gradients and the one update that they are made of.

    python benchmarks/accumulation.py                       # all models, windows of 4
    python benchmarks/accumulation.py --window 8 --rounds 10 mlp

In turn, in one process: steps that compute gradients and drop them, steps of our Adam, of our Adam with accumulation,
and of Keras's with accumulation. A window of k must take k gradients and one update, that is k - 1 of the first and one
of the second; the claim is that ours takes at most 10% more. Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import fit
import in_turn
import keras
import tensorflow as tf

from keras_trainkit import optimizers

MOST = 1.1


class Gradients(keras.optimizers.Optimizer):
    """Has the gradients computed, and keeps one number of them."""

    def build(self, variables: Any) -> None:
        """Makes the place for the number."""
        super().build(variables)
        self.kept = self.add_variable((), dtype="float32", name="kept")

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Uses an element of each gradient: TensorFlow leaves out what nothing uses, even if a write waits for it."""
        if not self.built:
            with tf.init_scope():
                self.build(trainable_variables)
        dense = [g.values if isinstance(g, tf.IndexedSlices) else g for g in grads if g is not None]
        self.kept.assign(tf.add_n([tf.reshape(g, [-1])[0] for g in dense]))
        self.iterations.assign_add(1)


def measure(name: str, window: int, rounds: int, steps: int) -> dict[str, Any]:
    """The figures of one model."""
    build, size = fit.MODELS[name]
    makers = {
        "gradients": lambda: Gradients(learning_rate=0.0),
        "updates": lambda: optimizers.Adam(1e-3),
        "ours": lambda: optimizers.Adam(1e-3, gradient_accumulation_steps=window),
        "keras": lambda: keras.optimizers.Adam(1e-3, gradient_accumulation_steps=window),
    }
    turns = {key: fit.turn(build, size, make(), steps)[0] for key, make in makers.items()}
    times = in_turn.milliseconds(turns, rounds)
    times = {key: [ms / steps for ms in values] for key, values in times.items()}
    parts = [(window - 1) * g + u for g, u in zip(times["gradients"], times["updates"], strict=True)]
    windows = {key: [window * ms for ms in times[key]] for key in ("ours", "keras")}
    to_parts = in_turn.ratio(windows["ours"], parts) | fit.median_interval(windows["ours"], parts)
    return {
        "batch": size,
        "milliseconds_a_step": {key: in_turn.summary(values) for key, values in times.items()},
        "ours_to_its_parts": to_parts,
        "keras_to_the_same_parts": in_turn.ratio(windows["keras"], parts),
        "ours_to_keras": in_turn.ratio(windows["ours"], windows["keras"]),
        "verdict": "holds" if to_parts["median"] <= MOST else "does not hold",
    }


def main() -> None:
    """Measures, prints a line for each model, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(fit.MODELS)}; all when left out")
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=96, help="in a call of fit; whole windows")
    arguments = parser.parse_args()
    if arguments.steps % arguments.window:
        parser.error("--steps must be a multiple of --window")
    unknown = [name for name in arguments.models if name not in fit.MODELS]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}")
    models = {}
    for name in arguments.models or fit.MODELS:
        models[name] = measure(name, arguments.window, arguments.rounds, arguments.steps)
        print(name, {key: value for key, value in models[name].items() if key != "batch"}, flush=True)
    figures = {
        **in_turn.circumstances(["keras", "tensorflow"]),
        "window": arguments.window,
        "rounds": arguments.rounds,
        "claim": f"a window takes at most {MOST} times its gradients and its update",
        "models": models,
    }
    print(in_turn.write("accumulation", figures))


if __name__ == "__main__":
    main()
