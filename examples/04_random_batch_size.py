"""Batches whose size is drawn anew at each step, with a learning rate that follows, beside batches of one size.

Small batches bring noise into the gradient, large ones take it out; drawing the size mixes both. The draws, and the
order of the examples, follow from the seed alone, so that a run can be repeated on any machine, stopped and gone on
with. Both runs see the same number of examples. Half a minute on two cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_trainkit import data, optimizers, schedules

SIZES, REFERENCE, EPOCHS, SEED = [16, 32, 64, 128], 32, 12, 1

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:1400], order[1400:]

# For validation: one pass in the arrays' own order.
held_out = data.Batches(x[test], y[test], batch_size=256, shuffle=False)


def build(rate):
    keras.utils.set_random_seed(SEED)
    inner = [keras.layers.Dense(128, activation="relu"), keras.layers.Dropout(0.2)]
    model = keras.Sequential([keras.Input((64,)), *inner, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Rows that fill a last batch up carry weights: weighted metrics know of them.
    model.compile(optimizers.AdamW(rate, weight_decay=0.01), loss, weighted_metrics=["accuracy"])
    return model


def run(batch_size):
    batches = data.Batches(x[train], y[train], batch_size=batch_size, seed=SEED)
    # Its length is in updates. Of random sizes one only knows about how many there will be.
    mean = batch_size if isinstance(batch_size, int) else np.mean(batch_size.sizes)
    schedule = schedules.Warmup(schedules.Cosine(2e-3, int(EPOCHS * len(train) / mean)), 20)
    # At batches of 32 the schedule's own rate; at 128 twice that, at 16 seven tenths.
    model = data.follow_batch_size(build(data.RateByBatch(schedule, REFERENCE, rule="sqrt")))
    model.fit(batches, epochs=EPOCHS, validation_data=held_out, verbose=2)
    return batches.state()["step"], model.evaluate(held_out, verbose=0, return_dict=True)


drawn = data.RandomSize(SIZES)
print("the first sizes:", drawn.at(np.arange(10), SEED).tolist())
for name, size in {"one size": REFERENCE, "random sizes": drawn}.items():
    updates, found = run(size)
    print(f"{name}: {updates} updates, test accuracy {found['accuracy']:.4f}, test loss {found['loss']:.4f}")
