"""Whole steps of `fit`, with the kit's Adam and with Keras's in turn: a convolutional net, a perceptron, a transformer.

    python benchmarks/fit.py                          # all models
    python benchmarks/fit.py --rounds 10 --steps 20 mlp

Each model is built three times from the same weights: with our Adam, with Keras's, and with Keras's once more. What the
two of Keras differ by is the noise of the measurement. A turn is a call of `fit` on a prepared batch, repeated; the
first ones, which trace and compile, do not count. Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import noise
import numpy as np
import tensorflow as tf
from keras import layers

from keras_trainkit import optimizers

VOCABULARY, CONTEXT, CLASSES = 100, 64, 10
NOISE = 0.05  # If the interval of Keras to itself goes farther from 1, the machine was not quiet enough.


def mlp() -> keras.Model:
    """Three layers of 256 on 64 features."""
    inner = [layers.Dense(256, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((64,)), *inner, layers.Dense(CLASSES)])


def cnn() -> keras.Model:
    """Six convolutions with batch normalization on images of 16x16."""
    parts: list[Any] = [keras.Input((16, 16, 3))]
    for width in (16, 32, 64):
        for stride in (1, 2):
            parts += [layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)]
            parts += [layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)])


def transformer() -> keras.Model:
    """Two blocks of width 64 on characters."""
    tokens = keras.Input((CONTEXT,), dtype="int32")
    stream = layers.Embedding(VOCABULARY, 64)(tokens)
    for _ in range(2):
        calm = layers.LayerNormalization()(stream)
        stream += layers.MultiHeadAttention(4, 16)(calm, calm, use_causal_mask=True)
        stream += layers.Dense(64)(layers.Dense(256, activation="gelu")(layers.LayerNormalization()(stream)))
    return keras.Model(tokens, layers.Dense(VOCABULARY)(layers.LayerNormalization()(stream)))


# With the size of a batch.
MODELS = {"mlp": (mlp, 128), "cnn": (cnn, 32), "transformer": (transformer, 16)}


def batch(model: keras.Model, size: int, steps: int) -> tf.data.Dataset:
    """One batch of random numbers, or of tokens and the next ones, as often as a turn has steps."""
    rng, inputs = np.random.default_rng(0), model.inputs[0]
    shape = (size, *inputs.shape[1:])
    if inputs.dtype == "int32":
        x = rng.integers(0, VOCABULARY, shape).astype("int32")
        y = np.roll(x, -1, axis=1)
    else:
        x = rng.standard_normal(shape).astype("float32")
        y = rng.integers(0, CLASSES, size).astype("int32")
    return tf.data.Dataset.from_tensors((x, y)).repeat(steps).prefetch(2)


def turn(build: Callable[[], Any], size: int, optimizer: Any, steps: int) -> tuple[Callable[[], Any], float]:
    """A call of `fit`, and the seconds of the first one."""
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = batch(model, size, steps)
    began = time.perf_counter()
    model.fit(data, shuffle=False, verbose=0)
    return (lambda: model.fit(data, shuffle=False, verbose=0)), time.perf_counter() - began


def measure(build: Callable[[], Any], size: int, rounds: int, steps: int) -> dict[str, Any]:
    """The figures of one model, in milliseconds a step."""
    makers = {
        "ours": lambda: optimizers.Adam(1e-3),
        "keras": lambda: keras.optimizers.Adam(1e-3),
        "keras again": lambda: keras.optimizers.Adam(1e-3),
    }
    # The last is built first, so that neither of the two that are compared meets a cold machine.
    turns, first = {}, {}
    for name in reversed(makers):
        turns[name], first[name] = turn(build, size, makers[name](), steps)
    times = in_turn.milliseconds({name: turns[name] for name in makers}, rounds)
    times = {name: [ms / steps for ms in values] for name, values in times.items()}
    ratios = {
        name: in_turn.ratio(times[name], times["keras"]) | median_interval(times[name], times["keras"])
        for name in ("ours", "keras again")
    }
    weights = build().trainable_variables
    return {
        "batch": size,
        "variables": len(weights),
        "parameters": int(sum(np.prod(weight.shape) for weight in weights)),
        "milliseconds_a_step": {name: in_turn.summary(values) for name, values in times.items()},
        "ours_to_keras": ratios["ours"],
        "keras_to_itself": ratios["keras again"],
        "first_fit_seconds": {name: round(seconds, 2) for name, seconds in first.items()},
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
    """Measures, prints a line for each model, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all when left out")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100, help="in a call of fit")
    arguments = parser.parse_args()
    for name in arguments.models:
        if name not in MODELS:
            parser.error(f"no model is called {name}")
    figures: dict[str, Any] = in_turn.circumstances(["keras", "tensorflow"])
    figures |= {
        "rounds": arguments.rounds,
        "steps_in_a_call": arguments.steps,
        "claim": "never slower: the median ratio is at most 1, or within the 95% interval of Keras to itself",
        "models": {},
    }
    for name in arguments.models or MODELS:
        result = measure(*MODELS[name], arguments.rounds, arguments.steps)
        figures["models"][name] = result
        shown = "{median} [{quartile_1}, {quartile_3}]".format
        print(
            f"{name}: {shown(**result['milliseconds_a_step']['ours'])} ms a step, "
            f"{shown(**result['ours_to_keras'])} of Keras (Keras to itself {shown(**result['keras_to_itself'])}): "
            f"{result['verdict']}",
            flush=True,
        )
    if not arguments.models:
        print(in_turn.write("fit", figures))


if __name__ == "__main__":
    main()
