"""Schedule-free training on digits, against AdamW with a cosine schedule and with a constant rate.

Run it with `python examples/02_schedule_free.py`; it takes less than a minute on a processor. A schedule must know when
training ends. Schedule-Free trains at y and gives x, an average that can be used at any time; `EvaluationWeights` puts
x in for validation and at the end, and recomputes the statistics of BatchNormalization for it.
"""

import statistics
import sys

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import callbacks, optimizers, schedules

EPOCHS, BATCH, SEEDS = 12, 32, 3

# ---------------------------------------------------------------------------------------------------------------- data

x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)
updates = EPOCHS * -(-len(x_train) // BATCH)
print(f"{len(x_train)} training and {len(x_test)} test images of 8x8, {updates} updates, {SEEDS} seeds")

# ---------------------------------------------------------------------------------------------------------- optimizers

warmup = updates // 20


def cosine():
    """The rate falls to 0 at the last update: who stops earlier, or later, must choose it anew."""
    rate = schedules.Warmup(schedules.Cosine(5e-3, decay_steps=updates - warmup), steps=warmup)
    return optimizers.AdamW(rate, weight_decay=0.01)


def constant():
    """The same without the decay."""
    return optimizers.AdamW(5e-3, weight_decay=0.01)


def schedule_free():
    """A constant rate, no end in sight."""
    return optimizers.ScheduleFreeAdamW(1e-2, warmup_steps=warmup, weight_decay=0.01)


# ------------------------------------------------------------------------------------------------------------ training


def train(make, seed):
    """Losses on the test images after each epoch, the last accuracy, and the model."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(make(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    extra = [callbacks.EvaluationWeights(refresh=x_train, refresh_batch_size=256)] if make is schedule_free else []
    data = {"validation_data": (x_test, y_test), "batch_size": BATCH}
    history = model.fit(x_train, y_train, epochs=EPOCHS, verbose=0, callbacks=extra, **data).history
    return history["val_loss"], history["val_accuracy"][-1], model


print(f"{'':24}test loss after epoch {EPOCHS // 4:2}, {EPOCHS // 2:2}, {EPOCHS:2}     accuracy, lowest to highest")
accuracies = {}
for name, make in {"AdamW, cosine": cosine, "AdamW, constant": constant, "ScheduleFreeAdamW": schedule_free}.items():
    runs = [train(make, seed) for seed in range(SEEDS)]
    losses = np.median([losses for losses, _, _ in runs], axis=0)
    accuracies[name] = [accuracy for _, accuracy, _ in runs]
    early, half, end = losses[EPOCHS // 4 - 1], losses[EPOCHS // 2 - 1], losses[-1]
    low, middle, high = min(accuracies[name]), statistics.median(accuracies[name]), max(accuracies[name])
    print(f"{name:24}{early:21.3f} {half:6.3f} {end:6.3f}     {middle:.4f} ({low:.4f} to {high:.4f})")

# ------------------------------------------------------------------------------------------------------------- x and y

model = runs[-1][2]  # of the schedule-free optimizer, with x in its variables
at_x, _ = model.evaluate(x_test, y_test, verbose=0)
model.optimizer.to_training()
at_y, _ = model.evaluate(x_test, y_test, verbose=0)
model.optimizer.to_evaluation()
print(f"the last model: test loss {at_x:.4f} at x, which is to be used, and {at_y:.4f} at y, which is trained")
spread = max(max(a) - min(a) for a in accuracies.values())
medians = [statistics.median(a) for a in accuracies.values()]
print(f"medians of the accuracy differ by {max(medians) - min(medians):.4f}, seeds of one optimizer by {spread:.4f}:")
print("the rates are not tuned; on a task this easy the gain is that no end has to be chosen, not a better model")
if statistics.median(accuracies["ScheduleFreeAdamW"]) < 0.95:
    sys.exit("the accuracy is lower than it should be")
