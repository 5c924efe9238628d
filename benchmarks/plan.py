"""`distribution.plan` beside what happened: memory, bytes and seconds of `fit` on 1, 2 and 4 replicas.

    python benchmarks/plan.py                          # all models
    python benchmarks/plan.py --rounds 5 transformer
    python benchmarks/plan.py --no-times               # on a machine that is busy with other work

Each number of replicas runs in a process of its own, on logical CPUs, in turn. They share the machine's cores, and a
plan is for devices of their own: what it expects for computing is multiplied by the replicas here. The bandwidth is
that of a large reduction in the same process. So the check is of the sum of computing and exchanging, and of the bytes;
how far overlap goes on real devices it cannot say. Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import numpy as np
import psutil
import tensorflow as tf
from keras import layers

from keras_trainkit import distribution, optimizers

REPLICAS = (1, 2, 4)
SAMPLES = {"transformer": 32, "perceptron": 64}  # of a replica
STEPS = 20  # in a call of `fit`
LARGE = 2**22  # float32 numbers in the reduction that the bandwidth is taken from


def transformer() -> keras.Model:
    """Three blocks on 64 tokens; its memory is in the activations."""
    tokens = keras.Input((64,), dtype="int32")
    stream = layers.Embedding(2000, 128)(tokens)
    for _ in range(3):
        calm = layers.LayerNormalization()(stream)
        stream = stream + layers.MultiHeadAttention(4, 32)(calm, calm)
        stream = stream + layers.Dense(128)(layers.Dense(512, activation="gelu")(layers.LayerNormalization()(stream)))
    return keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(stream)))


def perceptron() -> keras.Model:
    """Six million weights; its memory is in gradients and slots."""
    return keras.Sequential(
        [keras.Input((1024,)), layers.Dense(2048, "relu"), layers.Dense(2048, "relu"), layers.Dense(10)]
    )


def compiled(make: Any) -> keras.Model:
    """With AdamW and global clipping."""
    model = make()
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.AdamW(1e-3, global_clipnorm=1.0), criterion)
    return model


def data(model: keras.Model, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and classes."""
    rng, spec = np.random.default_rng(0), model.inputs[0]
    shape = (samples, *spec.shape[1:])
    x = rng.integers(0, 2000, shape) if spec.dtype == "int32" else rng.standard_normal(shape, dtype="float32")
    return x, rng.integers(0, 10, samples)


def bandwidth(strategy: Any) -> float:
    """Bytes a second that each replica sends in a large reduction."""
    replicas = strategy.num_replicas_in_sync

    def reduce() -> Any:
        value = tf.ones([LARGE])
        return tf.reduce_sum(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, [value])[0])

    run = tf.function(lambda: strategy.experimental_local_results(strategy.run(reduce)))
    times = in_turn.milliseconds({"reduce": lambda: [float(v) for v in run()]}, 10)["reduce"]
    return 2 * (replicas - 1) / replicas * 4 * LARGE / (statistics.median(times) / 1e3)


def between_batches(model: keras.Model, x: np.ndarray, y: np.ndarray, options: dict[str, Any]) -> float:
    """Milliseconds from the end of one batch to the end of the next: the median of an epoch."""
    ends: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    model.fit(x, y, callbacks=[watch], **options)
    return 1e3 * float(np.median(np.diff(ends)[2:]))


def child(name: str, replicas: int, timed: bool) -> dict[str, Any]:
    """The figures of one process, of each replica."""
    strategy, samples = distribution.strategy(replicas), SAMPLES[name]
    process, make = psutil.Process(), globals()[name]
    with strategy.scope():  # what the first `fit` of a process loads is no model's
        small = keras.Sequential([keras.Input((4,)), layers.Dense(10)])
        small = compiled(lambda: small)
    small.fit(*data(small, 4 * replicas), batch_size=replicas, verbose=0)
    resident, counted = process.memory_info().rss, tf.config.experimental.get_memory_info("CPU:0")["current"]
    with strategy.scope():
        model = compiled(make)
    x, y = data(model, STEPS * samples * replicas)
    options = {"batch_size": samples * replicas, "verbose": 0}
    model.fit(x, y, **options)
    steps = [between_batches(model, x, y, options) for _ in range(5 if timed else 0)]
    most, done = [resident], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], process.memory_info().rss)

    tf.config.experimental.reset_memory_stats("CPU:0")
    watcher = threading.Thread(target=watch)
    watcher.start()
    model.fit(x, y, **options)
    done.set()
    watcher.join()
    peak = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    speed = None if not timed else bandwidth(strategy) if replicas > 1 else 1.0
    row = distribution.plan(model, (x[:samples], y[:samples]), replicas, bandwidth=speed).rows[0]
    slots = sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in model.optimizer.variables)
    fresh = compiled(make)
    seconds = {}
    if timed:
        seconds = {
            "milliseconds_a_step": steps,
            "compute_milliseconds": 1e3 * row.compute_seconds,
            "exchange_milliseconds": 1e3 * row.exchange_seconds,
            "bandwidth": speed,
        }
    return seconds | {
        "bytes_sent": row.sent,
        "slots": {"planned": distribution.plan(fresh, samples, 1, activations=0).held.slots, "real": slots},
        "memory": {
            "planned": row.memory,
            "allocator": (peak - counted) / replicas,
            "resident": (most[0] - resident) / replicas,
        },
        "load": round(os.getloadavg()[0], 1),
    }


def start(name: str, replicas: int, options: list[str]) -> dict[str, Any]:
    """`child` in a process."""
    command = [sys.executable, str(Path(__file__)), "--child", str(replicas), name, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    """The middle and the ends."""
    return {
        "median": round(statistics.median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)
    }  # fmt: skip


def summary(found: dict[int, list[dict[str, Any]]], timed: bool) -> dict[str, Any]:
    """Planned over measured, by the number of replicas, over all rounds."""
    result: dict[str, Any] = {}
    for replicas, rounds in found.items():
        case: dict[str, Any] = {
            "planned_to_allocator": spread([f["memory"]["planned"] / f["memory"]["allocator"] for f in rounds]),
            "planned_to_resident": spread([f["memory"]["planned"] / f["memory"]["resident"] for f in rounds]),
            "slots_equal": all(f["slots"]["planned"] == f["slots"]["real"] for f in rounds),
            "bytes_sent": rounds[0]["bytes_sent"],
        }
        if timed:
            case["milliseconds_a_step"] = spread([ms for f in rounds for ms in f["milliseconds_a_step"]])
            case["expected_to_measured"] = spread(
                [
                    (replicas * one["compute_milliseconds"] + f["exchange_milliseconds"]) / ms
                    for one, f in zip(found[1], rounds, strict=True)
                    for ms in f["milliseconds_a_step"]
                ]
            )
        result[str(replicas)] = case | {"rounds": rounds}
    return result


def main() -> None:
    """Measures, prints a line for each model and number of replicas, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(SAMPLES)}; all when left out")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each number; five epochs in each")
    parser.add_argument("--no-times", action="store_true", help="compare memory and bytes alone")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models if name not in SAMPLES]:
        parser.error(f"no such model: {', '.join(unknown)}")
    timed = not arguments.no_times
    if arguments.child:
        print(json.dumps(child(arguments.models[0], arguments.child, timed)))
        return
    figures: dict[str, Any] = in_turn.circumstances(["keras", "tensorflow"])
    figures |= {"rounds": arguments.rounds, "models": {}}
    began = time.perf_counter()
    for name in arguments.models or SAMPLES:
        found: dict[int, list[dict[str, Any]]] = {replicas: [] for replicas in REPLICAS}
        for _ in range(arguments.rounds):
            for replicas in REPLICAS:
                found[replicas].append(start(name, replicas, [] if timed else ["--no-times"]))
        figures["models"][name] = {"samples": SAMPLES[name], "replicas": summary(found, timed)}
        for replicas, result in figures["models"][name]["replicas"].items():
            shown = {key: value for key, value in result.items() if key != "rounds"}
            print(f"{name}, {replicas} replicas: {shown}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    if not arguments.models:
        print(in_turn.write("plan", figures))


if __name__ == "__main__":
    main()
