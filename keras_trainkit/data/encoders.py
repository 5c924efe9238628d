"""Encoders: the way from raw values to what a model trains on, in NumPy for arrays, as Keras layers for saved models.

Arrays are encoded up front in NumPy, so that reading data touches no device and training sees floats only, under any
precision and strategy. The same numbers go into built-in Keras layers when a model is saved, so that its file takes raw
values and loads without this package.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_trainkit.data.errors import DataError

Raw = np.ndarray | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArrayEncoder:
    """`(x - mean) / deviation` for images `(n, h, w, c)`, per channel, or vectors `(n, features)`, per feature.

    Attributes:
        mean: one number per channel or feature.
        deviation: the same; never 0.
    """

    mean: list[float]
    deviation: list[float]

    @classmethod
    def fit(cls, x: np.ndarray) -> ArrayEncoder:
        """Bytes become 0..1, values within -1..1 stay as they are, all else gets mean 0 and deviation 1.

        `x` must be training rows only.
        """
        x = with_channel(x)
        channels = x.shape[-1]
        if x.dtype == np.uint8:
            return cls([0.0] * channels, [255.0] * channels)
        if x.dtype == bool or (x.min() >= -1 and x.max() <= 1):
            return cls([0.0] * channels, [1.0] * channels)
        axes = tuple(range(x.ndim - 1))
        return cls(*moments(x.mean(axes, dtype=np.float64), x.var(axes, dtype=np.float64)))

    def encode(self, x: Any) -> np.ndarray:
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        return (with_channel(x).astype(np.float32) - mean) / deviation

    def layers(self, input_shape: tuple[int, ...]) -> tuple[Any, Any]:
        import keras

        raw = keras.Input(input_shape, name="raw", dtype="float32")
        if any(self.mean) or len(set(self.deviation)) > 1:
            variance = [d * d for d in self.deviation]
            scale = keras.layers.Normalization(mean=self.mean, variance=variance, dtype="float32", name="normalize")
        else:
            scale = keras.layers.Rescaling(1 / self.deviation[0], dtype="float32", name="rescale")
        return raw, scale(raw)


@dataclasses.dataclass(frozen=True)
class TableEncoder:
    """Columns of a table to one matrix: numbers normalized, marks of missing numbers, text one-hot, in this order.

    Attributes:
        numbers: names of the numeric columns.
        medians, mean, deviation: of the training rows, one per numeric column; missing numbers become the median first.
        marked: numeric columns that get a column of their own, 1 where the number was missing.
        text: text column to its words, most frequent first; any other word goes to one shared position, the first.
    """

    numbers: list[str]
    medians: list[float]
    mean: list[float]
    deviation: list[float]
    marked: list[str]
    text: dict[str, list[str]]

    @classmethod
    def fit(cls, columns: Mapping[str, np.ndarray], rare: int | None = None, words: int = 200) -> TableEncoder:
        """Learns from training rows only.

        Args:
            columns: numeric columns float64 with NaN for missing; text columns dtype object. Columns without a single
                number are left out.
            rare: words seen in fewer rows than this share one position; None: 2, or 0.05 percent of the rows if more.
            words: at most this many words of a text column get a position of their own.
        """
        rows = len(next(iter(columns.values())))
        rare = max(2, math.ceil(0.0005 * rows)) if rare is None else rare
        numbers, filled, medians, marked, text = [], [], [], [], {}
        for name, column in columns.items():
            if column.dtype == object:
                found, counts = np.unique(column.astype(str), return_counts=True)
                order = np.argsort(-counts, kind="stable")[:words]
                text[name] = [str(found[i]) for i in order if counts[i] >= rare]
                continue
            missing = np.isnan(column)
            if missing.all():
                continue
            numbers.append(name)
            medians.append(float(np.float32(np.median(column[~missing]))))
            filled.append(np.where(missing, medians[-1], column))
            if missing.any():
                marked.append(name)
        matrix = np.stack(filled, axis=1) if filled else np.zeros((rows, 0))
        mean, deviation = moments(matrix.mean(axis=0), matrix.var(axis=0))
        return cls(numbers, medians, mean, deviation, marked, text)

    @property
    def features(self) -> list[str]:
        """What each position of the encoded matrix holds."""
        words = [f"{name}={word}" for name, known in self.text.items() for word in ["(other)", *known]]
        return [*self.numbers, *(f"{name} missing" for name in self.marked), *words]

    def encode(self, columns: Any) -> np.ndarray:
        parts: list[np.ndarray] = []
        if self.numbers:
            matrix = np.stack([np.ravel(columns[name]) for name in self.numbers], axis=1).astype(np.float32)
            missing = np.isnan(matrix)
            filled = np.where(missing, np.array(self.medians, np.float32), matrix)
            parts.append((filled - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32))
            parts.append(missing[:, self.marked_positions].astype(np.float32))
        for name, words in self.text.items():
            position = {word: i + 1 for i, word in enumerate(words)}
            parts.append(
                np.eye(len(words) + 1, dtype=np.float32)[[position.get(w, 0) for w in np.ravel(columns[name])]]
            )
        return np.concatenate(parts, axis=1)

    @property
    def marked_positions(self) -> list[int]:
        return [self.numbers.index(name) for name in self.marked]

    def layers(self, input_shape: tuple[int, ...]) -> tuple[Any, Any]:
        import keras

        if self.text and keras.backend.backend() != "tensorflow":
            raise DataError(
                f"a saved model that takes text (`{next(iter(self.text))}`) needs Keras on TensorFlow; "
                f"Keras runs on {keras.backend.backend()}."
            )
        raw: dict[str, Any] = {}
        for name in (*self.numbers, *self.text):
            raw[name] = keras.Input((1,), name=input_name(name), dtype="string" if name in self.text else "float32")
        parts = []
        if self.numbers:
            columns = [raw[name] for name in self.numbers]
            matrix = keras.layers.Concatenate(name="encode_numbers", dtype="float32")(columns)
            isnan = keras.ops.isnan(matrix)
            missing = keras.ops.cast(isnan, "float32")
            medians = keras.layers.Rescaling(self.medians, name="encode_medians", dtype="float32")(missing)
            variance = [d * d for d in self.deviation]
            normalize = keras.layers.Normalization(
                mean=self.mean, variance=variance, name="encode_normalize", dtype="float32"
            )
            parts.append(normalize(keras.ops.where(isnan, medians, matrix)))
            parts += [missing[:, i : i + 1] for i in self.marked_positions]
        for i, (name, words) in enumerate(self.text.items()):
            lookup = keras.layers.StringLookup(vocabulary=words, output_mode="one_hot", name=f"encode_words_{i}")
            parts.append(keras.ops.cast(lookup(raw[name]), "float32"))
        return raw, keras.layers.Concatenate(name="encode_all", dtype="float32")(parts) if len(parts) > 1 else parts[0]


def with_channel(x: np.ndarray) -> np.ndarray:
    """Images `(n, h, w)` as `(n, h, w, 1)`; anything else as it is."""
    return x[..., None] if x.ndim == 3 else x


def input_name(column: str) -> str:
    """A legal layer name for a column, its own name if possible: Keras warns where they differ."""
    name = column.replace("/", "_")
    taken = re.fullmatch(r"(cast|isnan|where|get_item|encode_\w+|classes|original_units|from_raw)(_\d+)?", name)
    return f"column_{name}" if taken or name != column else name


def moments(mean: np.ndarray, variance: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation as lists of numbers that float32 holds exactly; a constant column gets deviation 1."""
    deviation = np.sqrt(variance)
    # The variance of equal numbers is rounding noise, and dividing by it would blow that noise up.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    deviation = np.where(constant, 1.0, deviation)
    return mean.astype(np.float32).tolist(), deviation.astype(np.float32).tolist()
