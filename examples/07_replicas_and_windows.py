"""Two replicas, windows of micro-batches and float16 at once, beside one device with the big batch in float32.

Every update sees the same 96 samples in three ways: as one batch, as three micro-batches of 32, and as three
micro-batches whose halves two replicas share, in float16 with loss scaling. An overflow is forced on one replica, where
plain Keras would go on with NaN. The replicas are logical CPUs, which changes no result and saves no time. A minute on
two cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_trainkit import data, distribution, optimizers, precision, schedules, training

EPOCHS, WINDOW, SAMPLES = 8, 3, 32

strategy = distribution.strategy(2)  # before TensorFlow makes its first tensor

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:1440], order[1440:]  # 15 updates of 96 in an epoch


def build(policy, window=1):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(precision.policy(policy))
    hidden = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(64, activation="relu")]
    # The logits in float32: in half precision the loss would be coarse.
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, dtype="float32")])
    optimizer = optimizers.AdamW(
        # The schedule counts updates, however many micro-batches they are made of.
        schedules.Warmup(schedules.Cosine(5e-3, decay_steps=15 * EPOCHS), 10),
        weight_decay=0.01,
        global_clipnorm=1.0,
        gradient_accumulation_steps=window,
    )
    if policy == "mixed_float16":
        optimizer = precision.LossScaleOptimizer(optimizer, initial_scale=2.0**15, dynamic_growth_steps=20)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    keras.config.set_dtype_policy("float32")
    return model


def run(name, model, batch_size):
    # One seed, one order: every update sees the same samples, whatever they are cut into.
    model.fit(data.Batches(x[train], y[train], batch_size=batch_size, seed=7), epochs=EPOCHS, verbose=0)
    found = model.evaluate(x[test], y[test], verbose=0, return_dict=True)
    updates = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    print(f"{name}: {updates} updates, test loss {found['loss']:.5f}, test accuracy {found['accuracy']:.4f}")
    return model


big = run("one batch of 96, float32", build("float32"), WINDOW * SAMPLES)
windows = run("3 micro-batches of 32, float32", build("float32", WINDOW), SAMPLES)
distance = max(np.abs(a - b).max() for a, b in zip(big.get_weights(), windows.get_weights(), strict=True))
print(f"the weights of the two are {distance:.1e} apart at most")

with strategy.scope():
    model = build("mixed_float16", WINDOW)
# Replicas with masks of their own, and samples that count alike in every micro-batch: this model has no dropout and the
# batches are even, so neither changes anything here.
training.weigh_samples(distribution.separate_seeds(model))
half = run("3 micro-batches of 32 on two replicas, float16", model, SAMPLES)
scaler = half.optimizer
print(
    f"loss scale {float(scaler.dynamic_scale.numpy()):.0f}, {int(scaler.skipped_steps.numpy())} micro-batches skipped"
)

poisoned = x[train[:SAMPLES]].copy()
poisoned[-1] = 1e30  # in the second half: the second replica's
before = half.get_weights()
half.fit(poisoned, y[train[:SAMPLES]], batch_size=SAMPLES, shuffle=False, verbose=0)
same = all(np.array_equal(a, b) for a, b in zip(before, half.get_weights(), strict=True))
print(
    f"after an overflow on the second replica alone the weights are {'the same' if same else 'NOT the same'}, "
    f"and the loss scale is {float(scaler.dynamic_scale.numpy()):.0f}"
)
