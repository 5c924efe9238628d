"""Trains a residual network on scikit-learn's digits with parts of the kit, and opens what it left behind.

Run it with `python examples/01_quickstart.py`; it takes less than a minute on a processor. The README's example is the
short form of it.
"""

import sys
import tempfile
from pathlib import Path

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import callbacks, initializers, layers, optimizers, reporting, schedules, transforms

EPOCHS, BATCH, BLOCKS = 20, 32, 3

keras.utils.set_random_seed(0)

# ---------------------------------------------------------------------------------------------------------------- data

x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
print(f"{len(x_train)} training and {len(x_test)} test images of 8x8")

# --------------------------------------------------------------------------------------------------------------- model

# The last layer of each branch starts small, so that the sum over branches does not grow with their number; branches
# are dropped at random during training, the later the more often.
inputs = keras.Input((64,))
stream = keras.layers.Dense(128)(inputs)
for rate in layers.depth_rates(0.2, BLOCKS):
    branch = keras.layers.LayerNormalization()(stream)
    branch = keras.layers.Dense(128, activation="gelu")(branch)
    branch = keras.layers.Dense(
        128, kernel_initializer=initializers.ScaledResidual(BLOCKS, "glorot_uniform", branches=1)
    )(branch)
    stream = layers.StochasticDepth(rate)([stream, branch])
logits = keras.layers.Dense(10)(keras.layers.LayerNormalization()(stream))
model = keras.Model(inputs, logits)

# ----------------------------------------------------------------------------------------------------------- optimizer

updates = EPOCHS * -(-len(x_train) // BATCH)
warmup = updates // 10
optimizer = optimizers.RAdam(
    schedules.Warmup(schedules.Cosine(3e-3, decay_steps=updates - warmup), steps=warmup),
    weight_decay=0.01,
    weight_decay_exclude=["bias", "gamma", "beta"],
    global_clipnorm=1.0,
    after=[transforms.Lookahead(6, 0.5)],
)
model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])

# ------------------------------------------------------------------------------------------------------------ training

run = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="quickstart-"))
model.fit(
    x_train,
    y_train,
    batch_size=BATCH,
    epochs=EPOCHS,
    validation_data=(x_test, y_test),
    verbose=0,
    callbacks=[callbacks.TrainingMonitor(run), callbacks.Progress()],
)

# ------------------------------------------------------------------------------------------------------------- results

model.save(run / "model.keras")
loaded = keras.models.load_model(run / "model.keras")
_, accuracy = loaded.evaluate(x_test, y_test, verbose=0)
last = reporting.read_run(run).steps[-1]
print(f"test accuracy {accuracy:.4f} after {int(loaded.optimizer.iterations)} updates")
print(f"last gradient norm {last['gradient_norm']:.3f}, update to weight ratio {last['update_to_weight_ratio']:.1e}")
print(f"report: {reporting.report(run)}")
print(f"TensorBoard: tensorboard --logdir {run / 'tensorboard'}")
if accuracy < 0.96:
    sys.exit("the accuracy is lower than it should be")
