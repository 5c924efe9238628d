"""The problems and the optimizers of benchmarks/training.py, and one run of an optimizer on a problem."""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import gzip
import inspect
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import training_table
from keras import layers, ops

from keras_trainkit import optimizers, schedules

WARM_UP = 0.1  # of the steps, in the schedule that all optimizers get which take one

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Data, a model, and the validation loss that is to be reached.

    Attributes:
        load: the folder of the data -> x and y to train on, x and y to validate on.
        build: the model; it is built anew for each run.
        steps, batch: of one run.
        target: the validation loss; when it was chosen, Keras's AdamW reached it after half to two thirds of a run, at
            the best of four rates.
        file: in the folder of the data; None if scikit-learn brings it.
    """

    load: Callable[[Path | None], Arrays]
    build: Callable[[], keras.Model]
    loss: str
    steps: int
    batch: int
    target: float
    title: str
    file: str | None = None


def digits(folder: Path | None) -> Arrays:
    """scikit-learn's digits; 597 of 1,797 images to validate on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x.astype("float32") / 16).reshape(-1, 8, 8, 1)
    return _split(x, y.astype("int32"), 597)


def convolutional() -> keras.Model:
    """Three convolutions, 26 thousand weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


CONTEXT, CHARACTERS = 48, 65


def shakespeare(folder: Path | None) -> Arrays:
    """Windows of 48 characters of Shakespeare's plays; the last tenth of the text is to validate on."""
    text = (folder / "tinyshakespeare.txt").read_text("utf-8")
    codes = np.searchsorted(sorted(set(text)), list(text)).astype("int32")
    split, rng = len(codes) * 9 // 10, np.random.default_rng(0)

    def windows(codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        places = rng.integers(0, len(codes) - CONTEXT, (count, 1)) + np.arange(CONTEXT)
        return codes[places], codes[places + 1]

    return *windows(codes[:split], 40_000), *windows(codes[split:], 256)


def transformer() -> keras.Model:
    """Two blocks of width 64, 112 thousand weights."""
    tokens = keras.Input((CONTEXT,), dtype="int32")
    places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    stream = layers.Embedding(CHARACTERS, 64)(tokens) + layers.Embedding(CONTEXT, 64)(places)
    for i in range(2):
        calm = layers.LayerNormalization()(stream)
        stream += layers.MultiHeadAttention(4, 16, name=f"attention_{i}")(calm, calm, use_causal_mask=True)
        wide = layers.Dense(256, activation="gelu", name=f"widen_{i}")(layers.LayerNormalization()(stream))
        stream += layers.Dense(64, name=f"narrow_{i}")(wide)
    head = layers.Dense(CHARACTERS, activation="softmax", name="head")
    return keras.Model(tokens, head(layers.LayerNormalization()(stream)))


def housing(folder: Path | None) -> Arrays:
    """California's houses: 8 numbers, 5 kinds of place; the price in standard deviations. 4,640 rows to validate on."""
    with gzip.open(folder / "california_housing.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    price = np.array([float(row.pop("median_house_value")) for row in rows])
    kind = [row.pop("ocean_proximity") for row in rows]
    kinds = sorted(set(kind))
    numbers = np.array([[float(value or "nan") for value in row.values()] for row in rows])
    numbers = np.where(np.isnan(numbers), np.nanmedian(numbers, axis=0), numbers)
    # Counts of rooms and people are spread over orders of magnitude.
    numbers[:, 3:] = np.log1p(numbers[:, 3:])
    numbers = (numbers - numbers.mean(axis=0)) / numbers.std(axis=0)
    x = np.concatenate([numbers, np.eye(len(kinds))[[kinds.index(k) for k in kind]]], axis=1)
    y = (price - price.mean()) / price.std()
    return _split(x.astype("float32"), y.astype("float32")[:, None], 4640)


def perceptron() -> keras.Model:
    """Three layers of 64, 9 thousand weights."""
    inner = [layers.Dense(64, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((13,)), *inner, layers.Dense(1)])


WORDS, LENGTH = 10_000, 160


def reviews(folder: Path | None) -> Arrays:
    """IMDB reviews as the numbers of their first 160 words; 2,000 of the test reviews to validate on."""
    with gzip.open(folder / "imdb_text_10k.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    words = {"train": [], "test": []}
    labels = {"train": [], "test": []}
    for row in rows:
        words[row["split"]].append(re.findall(r"[a-z']+", row["text"].lower())[:LENGTH])
        labels[row["split"]].append(row["label"])
    counts = collections.Counter(word for text in words["train"] for word in text)
    number = {word: i for i, (word, _) in enumerate(counts.most_common(WORDS - 2), 2)}  # 0: no word, 1: a rare one

    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        x = np.zeros((len(words[split]), LENGTH), "int32")
        for row, text in zip(x, words[split], strict=True):
            row[: len(text)] = [number.get(word, 1) for word in text]
        return x, np.array(labels[split], "float32")[:, None]

    x, y = arrays("test")
    some = np.random.default_rng(0).permutation(len(x))[:2000]
    return *arrays("train"), x[some], y[some]


def classifier() -> keras.Model:
    """An embedding of 32, a convolution over words, the largest value of each channel; 326 thousand weights."""
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(WORDS, 32),
            layers.Conv1D(32, 5, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


CROSS_ENTROPY = "sparse_categorical_crossentropy"
PROBLEMS = {
    "digits": Problem(digits, convolutional, CROSS_ENTROPY, 400, 32, 0.09, "digits, convolutional net"),
    "housing": Problem(
        housing, perceptron, "mse", 1000, 128, 0.205, "California housing, perceptron", "california_housing.csv.gz"
    ),
    "reviews": Problem(
        reviews, classifier, "binary_crossentropy", 300, 64, 0.42, "IMDB reviews, text classifier",
        "imdb_text_10k.jsonl.gz",
    ),
    "shakespeare": Problem(
        shakespeare, transformer, CROSS_ENTROPY, 600, 32, 2.1, "Shakespeare, character transformer",
        "tinyshakespeare.txt",
    ),
}  # fmt: skip

# Arguments other than the defaults. The rest of the list runs with its authors' defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "adafactor": {"relative_step": False},  # its own schedule would come on top of ours
    "muon_rms": {"scale": "rms", "adam_lr_ratio": 1.0, "learning_rate": 0.001},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "sgdw": {"momentum": 0.9, "nesterov": True},
    "soap": {"max_precond_dim": 4096},  # a basis for 10,000 words would take minutes a step
}
# These have no use for a schedule: they are made to go without, or estimate the whole step themselves.
CONSTANT = {"cocob", "schedulefreeadamw", "schedulefreeradam", "schedulefreesgd"}
# For constraints and sparse weights, which none of the problems has.
LEFT_OUT = {"conditionalgradient", "proximaladagrad"}
KERAS = {"keras_adam": "Adam", "keras_adamw": "AdamW"}


def names() -> list[str]:
    """All optimizers that can be compared, Keras's first."""
    ours = {*optimizers.list(), *ARGUMENTS} - LEFT_OUT
    return [*KERAS, *sorted(ours)]


def arguments(name: str, steps: int) -> dict[str, Any]:
    """What the optimizer gets besides its learning rate; without a schedule it may have a warm-up of its own."""
    given = {key: value for key, value in ARGUMENTS.get(name, {}).items() if key != "learning_rate"}
    if "warmup_steps" in inspect.signature(_kind(name)).parameters:
        given["warmup_steps"] = _warm_up(steps)
    return given


def default_rate(name: str) -> float:
    """The learning rate that its author, or Keras, gives it."""
    chosen = ARGUMENTS.get(name, {}).get("learning_rate")
    return chosen or inspect.signature(_kind(name)).parameters["learning_rate"].default


def make(name: str, rate: float, steps: int) -> Any:
    """The optimizer, with the schedule that all get, or with a constant rate."""
    warm_up = _warm_up(steps)
    schedule = schedules.Warmup(schedules.Cosine(rate, decay_steps=max(1, steps - warm_up)), steps=warm_up)
    return _kind(name)(rate if name in CONSTANT else schedule, **arguments(name, steps))


def settings(problem: str, name: str, steps: int | None = None) -> dict[str, Any]:
    """All that a run depends on besides rate and seed; runs of other settings are not mixed with it."""
    known = PROBLEMS[problem]
    steps = steps or known.steps
    given = arguments(name, steps)
    return {"steps": steps, "batch": known.batch, "constant_rate": name in CONSTANT, "arguments": given}


def run(
    problem: str, name: str, rate: float, seed: int, steps: int | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Trains once.

    Returns:
        `losses` on the validation data (None where they are not finite) after the steps `training_table.evaluated`;
        `step_ms`, the median time of a step over the pieces between evaluations, without the first, which compiles;
        `first_seconds`, which is that first piece.
    """
    known = PROBLEMS[problem]
    steps = steps or known.steps
    x, y, x_validation, y_validation = _data(problem, folder)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = known.build()
    model.compile(make(name, rate, steps), known.loss)
    rng, needed = np.random.default_rng(seed), steps * known.batch
    epochs = -(-needed // len(x))
    order = np.concatenate([rng.permutation(len(x)) for _ in range(epochs)])[:needed]
    watch = Watch(x_validation, y_validation, training_table.evaluated(steps))
    model.fit(x[order], y[order], batch_size=known.batch, shuffle=False, verbose=0, callbacks=[watch])
    return {
        "problem": problem,
        "optimizer": name,
        "rate": rate,
        "seed": seed,
        "settings": settings(problem, name, steps),
        "losses": [round(loss, 5) if math.isfinite(loss) else None for loss in watch.losses],
        "step_ms": round(statistics.median(watch.step_ms[1:] or watch.step_ms), 3),
        "first_seconds": round(watch.first_seconds, 2),
    }


def step_times(
    problem: str, names: list[str], folder: Path | None, rounds: int = 15, steps: int = 45
) -> dict[str, list[float]]:
    """Milliseconds of a step of `fit` by optimizer: in each round every optimizer trains its own model, in turn."""
    known = PROBLEMS[problem]
    x, y, _, _ = _data(problem, folder)
    x, y = x[: steps * known.batch], y[: steps * known.batch]
    models, clock = {}, Clock()
    for name in names:
        models[name] = known.build()
        models[name].compile(make(name, default_rate(name), known.steps), known.loss)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name, model in models.items():
            model.fit(x, y, batch_size=known.batch, shuffle=False, verbose=0, callbacks=[clock])
            if turn:  # the first compiles
                times[name].append(round(clock.step_ms, 3))
    return times


class Clock(keras.callbacks.Callback):
    """The mean time of a step, without the first ones of a `fit`."""

    SKIPPED = 5

    def __init__(self) -> None:
        super().__init__()
        self.step_ms = 0.0
        self._began = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        if batch == self.SKIPPED - 1:
            self._began = now
        elif batch >= self.SKIPPED:
            self.step_ms = 1e3 * (now - self._began) / (batch + 1 - self.SKIPPED)


class Watch(keras.callbacks.Callback):
    """Evaluates after given steps, on the weights that the optimizer means to be used, with its clock stopped."""

    def __init__(self, x: np.ndarray, y: np.ndarray, at: list[int]) -> None:
        super().__init__()
        self.data, self.at = (x, y), at
        self.losses: list[float] = []
        self.step_ms: list[float] = []
        self.first_seconds, self._step, self._began = 0.0, 0, 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self._step != self.at[len(self.losses)]:
            return
        seconds = time.perf_counter() - self._began
        before = self.at[len(self.losses) - 1] if self.losses else 0
        if not self.losses:
            self.first_seconds = seconds
        self.step_ms.append(1e3 * seconds / (self._step - before))
        self.losses.append(self._evaluate())
        if not math.isfinite(self.losses[-1]):
            self.model.stop_training = True
        self._began = time.perf_counter()

    def _evaluate(self) -> float:
        optimizer = self.model.optimizer
        other = getattr(optimizer, "offers_evaluation", bool)()
        if other:
            optimizer.to_evaluation()
        loss = self.model.evaluate(*self.data, batch_size=512, verbose=0)
        if other:
            optimizer.to_training()
        return float(loss)


@functools.cache
def _data(problem: str, folder: Path | None) -> Arrays:
    return PROBLEMS[problem].load(folder)


def _split(x: np.ndarray, y: np.ndarray, validation: int) -> Arrays:
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[validation:]], y[order[validation:]], x[order[:validation]], y[order[:validation]]


def _warm_up(steps: int) -> int:
    return max(1, round(WARM_UP * steps))


def _kind(name: str) -> Any:
    if name in KERAS:
        return getattr(keras.optimizers, KERAS[name])
    return type(optimizers.get(name.removesuffix("_rms")))
