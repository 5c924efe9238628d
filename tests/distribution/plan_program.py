"""What a training takes for real on several replicas: the bytes that meet, and the memory of `fit`.

As a program: `python plan_program.py REPLICAS` prints both for a small transformer beside its plan, as JSON.
"""

import gc
import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_trainkit import distribution, optimizers

CRITERION = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(6)


def transformer():
    tokens = keras.Input((64,), dtype="int32")
    stream = layers.Embedding(2000, 128)(tokens)
    for _ in range(2):
        calm = layers.LayerNormalization()(stream)
        stream = stream + layers.MultiHeadAttention(4, 32)(calm, calm)
        stream = stream + layers.Dense(128)(layers.Dense(512, activation="gelu")(layers.LayerNormalization()(stream)))
    return keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(stream)))


def perceptron():
    return keras.Sequential(
        [keras.Input((1024,)), layers.Dense(1536, "relu"), layers.Dense(1024, "relu"), layers.Dense(10)]
    )


def batch_for(model, samples):
    spec = model.inputs[0]
    shape = (samples, *spec.shape[1:])
    x = RNG.integers(0, 2000, shape) if spec.dtype == "int32" else RNG.normal(size=shape).astype("float32")
    return x, RNG.integers(0, 10, samples)


def bytes_reduced(strategy, make, optimizer, samples, updates, monkeypatch):
    """The bytes that each replica gives into reductions for one update, dense ones and those of rows."""
    window = getattr(optimizer(), "inner_optimizer", optimizer()).gradient_accumulation_steps or 1
    given, context = [0, 0], tf.distribute.ReplicaContext
    reduce_all = context.all_reduce

    def counting(self, reduce_op, value, *arguments, **options):
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, tf.IndexedSlices):
                given[1] += sum(int(np.prod(t.shape)) * t.dtype.size for t in (tensor.values, tensor.indices))
            else:
                given[0] += int(np.prod(tensor.shape)) * tensor.dtype.size
        return reduce_all(self, reduce_op, value, *arguments, **options)

    monkeypatch.setattr(context, "all_reduce", counting)
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        model = make()
        model.compile(optimizer(), CRITERION, run_eagerly=True)
    x, y = batch_for(model, samples * replicas * window * updates)
    model.fit(x, y, batch_size=samples * replicas, verbose=0)
    return [count / replicas / updates for count in given]


def peak_of_fit(strategy, make, optimizer, samples):
    """The most bytes in use during `fit`, for each replica, by TensorFlow's allocator."""
    replicas = strategy.num_replicas_in_sync
    gc.collect()
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    with strategy.scope():
        model = make()
        model.compile(optimizer(), CRITERION)
    x, y = batch_for(model, 4 * samples * replicas)
    model.fit(x, y, batch_size=samples * replicas, verbose=0)
    tf.config.experimental.reset_memory_stats("CPU:0")
    model.fit(x, y, batch_size=samples * replicas, epochs=3, verbose=0)
    return (tf.config.experimental.get_memory_info("CPU:0")["peak"] - before) / replicas


def compare(strategy, make, optimizer, samples):
    """The peak of a real `fit` and that of the plan, in bytes for each replica."""
    real = peak_of_fit(strategy, make, optimizer, samples)
    model = make()
    model.compile(optimizer(), CRITERION)
    row = distribution.plan(model, batch_for(model, samples), strategy.num_replicas_in_sync).rows[0]
    return {"planned": row.memory, "real": real, "all_reduce": row.all_reduce, "all_gather": row.all_gather}


def main():
    import pytest

    strategy = distribution.strategy(int(sys.argv[1]))
    found = compare(strategy, transformer, lambda: optimizers.AdamW(1e-3), 16)
    found["counted"] = bytes_reduced(strategy, transformer, lambda: optimizers.AdamW(1e-3), 16, 1, pytest.MonkeyPatch())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
