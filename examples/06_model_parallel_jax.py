"""A character transformer split over 2 x 4 devices of JAX, by a layout that is proposed, printed and then checked.

Run it with `python examples/06_model_parallel_jax.py`; it takes about a minute. The eight devices are parts of one
processor: the computation is that of eight accelerators, the speed is not.
"""

import os
import sys
import time
from pydoc_data.topics import topics

# JAX reads these when it starts, so they stand before the imports.
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import keras
import numpy as np
from keras import layers, ops

from keras_trainkit import distribution, optimizers

CONTEXT, WIDTH, HEADS, BLOCKS = 32, 64, 4, 2
STEPS, BATCH = 60, 32

# ---------------------------------------------------------------------------------------------------------------- data

text = "\n".join(topics[key] for key in sorted(topics))
characters = sorted(set(text))
codes = np.searchsorted(characters, list(text)).astype("int32")
starts = np.random.default_rng(0).integers(0, len(codes) - CONTEXT, (STEPS * BATCH, 1))
places = starts + np.arange(CONTEXT)
x, y = codes[places], codes[places + 1]
symbols = -(-len(characters) // 4) * 4  # rounded up, so that embedding and head divide by four devices
print(f"{len(codes)} characters, {len(characters)} different ones")

# --------------------------------------------------------------------------------------------------------------- model


def make_model():
    """Blocks of causal attention and of a perceptron, normalized before each. Nothing in it says where it will lie."""
    tokens = keras.Input((CONTEXT,), dtype="int32")
    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    stream = layers.Embedding(symbols, WIDTH, name="tokens")(tokens)
    stream += layers.Embedding(CONTEXT, WIDTH, name="positions")(positions)
    for i in range(BLOCKS):
        calm = layers.LayerNormalization(name=f"calm_{i}")(stream)
        attend = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{i}")
        stream += attend(calm, calm, use_causal_mask=True)
        calm = layers.LayerNormalization(name=f"still_{i}")(stream)
        wide = layers.Dense(4 * WIDTH, activation="gelu", name=f"widen_{i}")(calm)
        stream += layers.Dense(WIDTH, name=f"narrow_{i}")(wide)
    return keras.Model(tokens, layers.Dense(symbols, name="head")(layers.LayerNormalization(name="last")(stream)))


def make_optimizer():
    """The larger epsilon is for the comparison: Adam blows up the rounding of gradients that should be zero."""
    return optimizers.AdamW(2e-3, weight_decay=0.01, global_clipnorm=1.0, epsilon=1e-4)


# -------------------------------------------------------------------------------------------------------------- layout

layout = distribution.layout_for(make_model, {"batch": 2, "model": 4}, optimizer=make_optimizer())
print(f"\n{layout}\n")

# ------------------------------------------------------------------------------------------------------------ training


def train(placed):
    """The model and its losses, batch by batch."""
    keras.distribution.set_distribution(placed)
    keras.utils.set_random_seed(0)
    model, losses = make_model(), []
    model.compile(make_optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    began = time.perf_counter()
    for i in range(0, STEPS * BATCH, BATCH):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(x[i : i + BATCH], y[i : i + BATCH])))
    print(f"    loss {losses[0]:.3f} to {losses[-1]:.3f} in {time.perf_counter() - began:.1f} s, compiling included")
    return model, np.array(losses)


print("2 x 4 devices:")
split, split_losses = train(layout.distribution())
layout.check(split)
kernel = next(v for v in split.trainable_variables if v.path == "widen_0/kernel")
moment = next(v for v in split.optimizer.variables if v.path.endswith("widen_0_kernel_velocity"))
for variable in (kernel, moment):
    part = variable.value.addressable_shards[0].data.shape
    print(f"    {variable.path}: {tuple(variable.shape)}, of which each device has {tuple(part)}")

# The names of layers are given above, so that the second model is named as the first.
print("one device:")
alone, alone_losses = train(None)

# ------------------------------------------------------------------------------------------------------------- results

apart = max(np.abs(a - b).max() for a, b in zip(split.get_weights(), alone.get_weights(), strict=True))
held = sum(v.value.addressable_shards[0].data.nbytes for v in [*split.variables, *split.optimizer.variables])
said = layout.bytes_per_device.parameters + layout.bytes_per_device.slots
print(f"\nlosses differ by {np.abs(split_losses - alone_losses).max():.1e} at most, weights by {apart:.1e}")
print(f"each device holds {held:,} bytes of parameters and slots; the layout said {said:,}")
if held != said or np.abs(split_losses - alone_losses).max() > 1e-3 or split_losses[-1] > split_losses[0] - 0.5:
    sys.exit("that is not as it should be")
