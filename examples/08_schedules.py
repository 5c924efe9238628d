"""Schedules on scikit-learn's digits: by share of the run, for momentum and dropout too, over a plateau, until enough.

Run it with `python examples/08_schedules.py`; it takes less than a minute on a processor.
"""

import sys
import tempfile
from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import callbacks, optimizers, schedules

EPOCHS, BATCH = 10, 32

x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)


def train(name, rate, *more, momentum=0.9, epochs=EPOCHS):
    """Trains a small network and prints how it went; returns the model."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(128, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(rate, momentum=momentum), loss, metrics=["accuracy"])
    # Lengths such as "0.9run" become numbers when `fit` starts; the compiled step sees only those.
    every = [callbacks.ResolveSpans(), *more]
    model.fit(x_train, y_train, BATCH, epochs, verbose=0, callbacks=every, validation_data=(x_test, y_test))
    test_loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    print(f"{name:30} loss {test_loss:.4f}, accuracy {accuracy:.4f} after {int(model.optimizer.iterations)} updates")
    return model, accuracy


# ---------------------------------------------------------------------------------------------- a picture to begin with

cycle = schedules.OneCycle(0.3, "1run", peak_at=0.4)
known = {
    "cosine": schedules.Warmup(schedules.Cosine(0.2, "0.9run"), "0.1run"),
    "WSD": schedules.WSD(0.2, warmup_steps="0.5ep", stable_steps="0.7run", decay_steps="0.25run"),
    "one cycle": cycle,
}
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="schedules-"))
picture = folder / "schedules.svg"
schedules.plot(known, EPOCHS * 45, epochs=EPOCHS, file=picture)
print(f"picture: {picture}")

# -------------------------------------------------------------------------------------------------- the learning rate

accuracies = [train("constant", 0.2)[1]]
for name in ("cosine", "WSD"):
    accuracies.append(train(name, known[name])[1])

# ------------------------------------------------------------------------------------------------ other hyperparameters

# Smith's one cycle has the momentum fall while the rate rises; here the dropout rate falls, too.
follow = callbacks.HyperparameterSchedule(momentum=cycle.momentum(), dropout=schedules.Linear(0.3, "1run", 0.05))
accuracies.append(train("one cycle, with momentum", cycle, follow)[1])

# ------------------------------------------------------------------------------------------------------- by the metric

plateau = callbacks.ReduceOnPlateau("val_loss", factor=0.3, patience=1, warmup=2, cooldown=1)
slow = schedules.Warmup(schedules.InverseSqrt(0.3, "2ep"), "1ep")
accuracies.append(train("inverse root over a plateau", slow, plateau)[1])
print(f"the plateau's multiplier is {plateau.multiplier:.3g}")

# ------------------------------------------------------------------------------------------------- a run without an end


class Enough(keras.callbacks.Callback):
    """Begins the cooldown once the model is good enough; it could as well be a file that appears."""

    def __init__(self, cooldown):
        super().__init__()
        self.cooldown = cooldown

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_accuracy"] > 0.96:
            self.cooldown.begin()


cooldown = callbacks.StartCooldown(decay_steps="2ep")
endless = schedules.WSD(0.2, warmup_steps="0.5ep")
model, accuracy = train("WSD until it is enough", endless, Enough(cooldown), cooldown, epochs=100)
print(f"the cooldown began at update {cooldown.started} and ended the run")
accuracies.append(accuracy)

# The file knows where on the schedule it was.
model.save(folder / "model.keras")
loaded = keras.models.load_model(folder / "model.keras")
assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate)
if min(accuracies) < 0.94 or cooldown.started is None:
    sys.exit("the accuracy is lower than it should be")
