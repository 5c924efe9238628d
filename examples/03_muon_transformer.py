"""A character transformer trained with Muon, which leaves vectors, embeddings and the head to AdamW, and with AdamW.

Run it with `python examples/03_muon_transformer.py`; it takes about a minute on a processor. It reads the topics of
Python's own help; `python examples/03_muon_transformer.py FILE` reads any other text, say Shakespeare's plays.
"""

import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import keras
import numpy as np
from keras import layers, ops

from keras_trainkit import optimizers, schedules

CONTEXT, WIDTH, HEADS, BLOCKS = 48, 64, 4, 2
STEPS, BATCH, RATES = 250, 32, [0.003, 0.01, 0.03]  # the same steps, and rates to choose from, for each optimizer

# ---------------------------------------------------------------------------------------------------------------- data

text = Path(sys.argv[1]).read_text("utf-8") if len(sys.argv) > 1 else "\n".join(topics[key] for key in sorted(topics))
characters = sorted(set(text))
codes = np.searchsorted(characters, list(text)).astype("int32")
split = len(codes) * 9 // 10
print(f"{split} characters to train on, {len(codes) - split} to test on, {len(characters)} different ones")


def windows(codes, count, seed):
    """Random pieces of the text, and the same moved on by one character."""
    starts = np.random.default_rng(seed).integers(0, len(codes) - CONTEXT, (count, 1))
    places = starts + np.arange(CONTEXT)
    return codes[places], codes[places + 1]


x_train, y_train = windows(codes[:split], STEPS * BATCH, seed=0)
x_test, y_test = windows(codes[split:], 512, seed=1)

# --------------------------------------------------------------------------------------------------------------- model


def make_model():
    """Two blocks of causal attention and of a perceptron, normalized before each."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((CONTEXT,), dtype="int32")
    places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    stream = layers.Embedding(len(characters), WIDTH)(tokens) + layers.Embedding(CONTEXT, WIDTH)(places)
    for i in range(BLOCKS):
        calm = layers.LayerNormalization()(stream)
        stream += layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{i}")(
            calm, calm, use_causal_mask=True
        )
        wide = layers.Dense(4 * WIDTH, activation="gelu", name=f"widen_{i}")(layers.LayerNormalization()(stream))
        stream += layers.Dense(WIDTH, name=f"narrow_{i}")(wide)
    return keras.Model(tokens, layers.Dense(len(characters), name="head")(layers.LayerNormalization()(stream)))


# ---------------------------------------------------------------------------------------------------------- optimizers


def scheduled(peak):
    """A tenth of the steps up, then down to 0."""
    return schedules.Warmup(schedules.Cosine(peak, decay_steps=STEPS - STEPS // 10), steps=STEPS // 10)


def adamw(peak):
    return optimizers.AdamW(scheduled(peak), weight_decay=0.01)


def muon(peak):
    """The scale `rms` gives Muon's updates the size of AdamW's, so that one rate serves both of its halves."""
    return optimizers.Muon(scheduled(peak), scale="rms", adam_lr_ratio=1.0, weight_decay=0.01)


optimizer = muon(1e-3)
optimizer.build(make_model().trainable_variables)
print("\nMuon's routes:")
for path, route in optimizer.routes.items():
    print(f"    {path:44}{route}")

# ------------------------------------------------------------------------------------------------------------ training


def train(optimizer):
    """Loss on the test text, in nats per character, and the seconds of training."""
    model = make_model()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    began = time.perf_counter()
    model.fit(x_train, y_train, batch_size=BATCH, shuffle=False, verbose=0)
    return model.evaluate(x_test, y_test, batch_size=256, verbose=0), time.perf_counter() - began


print(f"\n{STEPS} steps of {BATCH} windows; test loss by learning rate, in nats per character:")
best = {}
for name, make in {"AdamW": adamw, "Muon with AdamW": muon}.items():
    runs = [train(make(rate)) for rate in RATES]
    best[name] = min(loss for loss, _ in runs)
    shown = ", ".join(f"{rate:g}: {loss:.3f}" for rate, (loss, _) in zip(RATES, runs, strict=True))
    print(f"    {name:16}{shown}; {sum(seconds for _, seconds in runs) / len(RATES):.1f} s a run, compiling included")

# ------------------------------------------------------------------------------------------------------------- results

frequencies = np.bincount(codes[:split]) / split
entropy = -np.sum(frequencies * np.log(frequencies, where=frequencies > 0, out=np.zeros_like(frequencies)))
gain = best["AdamW"] - best["Muon with AdamW"]
print(f"\nbest of {len(RATES)} rates each: AdamW {best['AdamW']:.3f}, Muon with AdamW {best['Muon with AdamW']:.3f};")
print(f"who knows only how frequent each character is comes to {entropy:.3f}")
print(
    f"Muon is {'ahead' if gain > 0 else 'behind'} by {abs(gain):.3f} after equally many steps, not seconds. This is one"
)
print("seed and a short run of a tiny model: it shows how to use Muon, and is no evidence that Muon is better")
if max(best.values()) > entropy - 0.4:
    sys.exit("a loss is higher than it should be")
