"""`load` and `Dataset`: any supported file as arrays to train on, and the way back to raw values in a saved model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainkit.core import checks
from keras_trainkit.data import arrays, tables
from keras_trainkit.data.encoders import ArrayEncoder, Raw, TableEncoder
from keras_trainkit.data.errors import DataError
from keras_trainkit.data.splits import split_rows

Pair = tuple[np.ndarray, np.ndarray]
PARTS = ("train", "validation", "test")
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
MINIMUM_ROWS = 10
MOST_INTEGER_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Data to train on, encoded, with what it takes to save a model that accepts it raw.

    Attributes:
        name: "digits" or the file's name.
        task: "classification" or "regression".
        classes: the labels (text or int) in the order of the model's outputs, or None for regression.
        train, validation, test: `(x, y)` each. `x` float32: images `(n, h, w, c)` or vectors `(n, features)`. `y` int32
            class numbers `(n,)`, positions in `classes`; or float32 `(n, 1)`, standardized with the training target's
            mean and deviation.
        encoder: how `x` was made of the raw values.
        raw_parts: the raw values of "train", "validation", "test": an array as in the file, or a dict of columns.
        target_mean, target_deviation: regression target in original units = y * target_deviation + target_mean.
        details: more facts for `describe`.
    """

    name: str
    task: str
    classes: list[Any] | None
    train: Pair
    validation: Pair
    test: Pair
    encoder: ArrayEncoder | TableEncoder
    raw_parts: dict[str, Raw]
    target_mean: float = 0.0
    target_deviation: float = 1.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """How many numbers the model must give per row: one per class, or 1 for regression."""
        return len(self.classes) if self.classes is not None else 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one encoded row, without the batch axis."""
        return self.train[0].shape[1:]

    def attach(self, core_model: Any, softmax: bool = False) -> Any:
        """A `keras.Model` from raw values to predictions in original units, around a model trained on the encoded ones.

        It consists of built-in Keras layers and `core_model` (its weights are shared, not copied), computes in float32
        outside of `core_model`, and its `.keras` file needs no function of this package unless `core_model` does.

        Args:
            core_model: takes `(batch, *input_shape)`, gives `(batch, outputs)`.
            softmax: True if `core_model` gives logits that shall become probabilities.

        Returns:
            A model of pixels in the file's scale `(batch, h, w, c)` (or `(batch, h, w)` for one channel), of raw
            vectors `(batch, features)`, or of a dict that holds each raw column, shape `(batch,)` or `(batch, 1)`:
            numbers with NaN where missing, text without spaces around it. Classification gives what `core_model` gives,
            one number per class in the order of `classes`: probabilities if it ends in a softmax or `softmax` is True.
            Regression gives `(batch, 1)` in the target's own units.

            Keras's `predict` takes text as `np.array(words, dtype=object)` of shape `(batch,)` or as `tf.constant` of
            either shape, not as a NumPy array of dtype str; keep to one shape, because mixed ones confuse its tracing.
        """
        import keras

        raw, encoded = self.encoder.layers(self.input_shape)
        outputs = core_model(encoded)
        if self.task == "regression":
            rescale = keras.layers.Rescaling(
                self.target_deviation, self.target_mean, dtype="float32", name="original_units"
            )
            outputs = rescale(outputs)
        else:
            activation = "softmax" if softmax else "linear"
            outputs = keras.layers.Activation(activation, dtype="float32", name="classes")(outputs)
        return keras.Model(raw, outputs, name="from_raw")

    def raw(self, part: str = "test") -> Raw:
        """The raw values of "train", "validation" or "test", as `attach(...)` takes them."""
        checks.one_of("part", part, PARTS)
        return self.raw_parts[part]

    def describe(self) -> dict[str, Any]:
        """What was loaded, as a dict of plain values that `json.dumps` takes."""
        rows = {part: len(getattr(self, part)[1]) for part in PARTS}
        facts: dict[str, Any] = {
            "name": self.name,
            "task": self.task,
            "rows": sum(rows.values()),
            "splits": rows,
            "input_shape": list(self.input_shape),
            "outputs": self.outputs,
        }
        if self.classes is not None:
            counts = np.bincount(np.concatenate([getattr(self, part)[1] for part in PARTS]), minlength=self.outputs)
            facts["classes"] = list(self.classes)
            facts["class_counts"] = [int(count) for count in counts]
        else:
            facts["target_mean"], facts["target_deviation"] = self.target_mean, self.target_deviation
        return {**facts, **self.details}


def load(
    path: str | Path | None = None,
    target: str | None = None,
    seed: int = 0,
    *,
    task: str | None = None,
    header: bool | None = None,
    text: Collection[str] = (),
) -> Dataset:
    """Reads data, checks it, splits it with a seed and encodes it.

    - None: scikit-learn's digits, 8x8x1; 70 percent training, 10 validation, 20 test, stratified.
    - `.npz` in Keras's layout (`x_train`, `y_train`, `x_test`, `y_test`): a tenth of the training part becomes
      validation (or `x_val`, `y_val` where they are there). Images `(n, h, w)` or `(n, h, w, c)`, or vectors
      `(n, features)`. Bytes are divided by 255, other values normalized per channel or feature unless they lie within
      -1..1. Labels are 0..k-1 or 1..k.
    - `.csv`, `.csv.gz` with a `target` column, split like the digits: numbers normalized, missing ones filled with the
      training median and marked in a column of their own; text one-hot, rare and unknown words in one shared position.

    The task is classification if the target is text, or whole numbers: any in an `.npz`; in a CSV at most 20 different
    ones, each in 5 rows on average or more. Else it is regression, and the target is standardized.

    Args:
        path: the file.
        target: the CSV column to predict. A file without a header row has `column_1`, `column_2` ...
        seed: of the split.
        task: "classification" or "regression" instead of the rule above.
        header: whether the CSV has a header row; None looks.
        text: CSV columns to treat as text although they hold numbers.

    Raises:
        DataError: one line that says what is wrong with the data, where, and how often.

    >>> dataset = load()
    >>> dataset.input_shape, dataset.outputs, len(dataset.train[0])
    ((8, 8, 1), 10, 1259)
    """
    seed = checks.integer("seed", seed, at_least=0)
    if task is not None:
        checks.one_of("task", task, ["classification", "regression"])
    if path is None:
        if target is not None:
            raise DataError("the built-in digits have no columns: leave out `target`, or give a CSV file.")
        return load_digits(seed)
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    if not path.is_file():
        raise DataError(f"{path}: a directory, not a file.")
    name = path.name.lower()
    try:
        if name.endswith(".npz"):
            if target is not None:
                raise DataError(f"{path}: an .npz file has no columns: leave out `target`.")
            return load_npz(path, seed, task)
        if name.endswith((".csv", ".csv.gz")):
            return load_csv(path, target, seed, task, header, text)
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it.") from error
    raise DataError(f"{path}: unknown kind of file; expected .npz, .csv or .csv.gz.")


def load_digits(seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = pixels.reshape(-1, 8, 8, 1).astype(np.float32)
    rows = dict(zip(PARTS, split_rows(len(x), [VALIDATION_SHARE, TEST_SHARE], seed, labels), strict=True))
    # The pixels are counts of 0 to 16.
    encoder = ArrayEncoder([0.0], [16.0])
    raw = {part: x[rows[part]] for part in PARTS}
    return encode("digits", list(range(10)), encoder, raw, {part: labels[rows[part]] for part in PARTS})


def encode(
    name: str,
    classes: list[Any] | None,
    encoder: ArrayEncoder | TableEncoder,
    raw: dict[str, Raw],
    targets: dict[str, np.ndarray],
    details: dict[str, Any] | None = None,
) -> Dataset:
    """The dataset of raw values and targets (positions in `classes`, or numbers if there are none) by part."""
    mean, deviation = 0.0, 1.0
    if classes is None:
        mean, deviation = target_moments(name, targets["train"])
    pairs = {
        part: (encoder.encode(raw[part]), encode_target(targets[part], classes, mean, deviation)) for part in PARTS
    }
    return Dataset(
        name=name,
        task="regression" if classes is None else "classification",
        classes=classes,
        train=pairs["train"],
        validation=pairs["validation"],
        test=pairs["test"],
        encoder=encoder,
        raw_parts=raw,
        target_mean=mean,
        target_deviation=deviation,
        details=details or {},
    )


def load_npz(path: Path, seed: int, task: str | None) -> Dataset:
    data = arrays.read_npz(path)
    arrays.check_lengths(path, data)
    for name in data:
        if name.startswith("y_"):
            data[name] = arrays.flat_target(path, name, data[name])
        elif data[name].ndim not in (2, 3, 4):
            raise DataError(
                f"{path}: array `{name}` must be images (n, h, w), (n, h, w, c) or vectors (n, features). "
                f"Received: shape={data[name].shape}"
            )
        elif data[name].shape[1:] != data["x_train"].shape[1:]:
            raise DataError(
                f"{path}: rows of `{name}` have shape {data[name].shape[1:]}, rows of `x_train` "
                f"{data['x_train'].shape[1:]}."
            )
        elif 0 in data[name].shape[1:]:
            raise DataError(f"{path}: array `{name}` has empty rows. Received: shape={data[name].shape}")
        arrays.check_finite(path, name, data[name])
    for name, least in (("x_train", MINIMUM_ROWS), ("x_test", 1), ("x_val", 1)):
        if name in data and len(data[name]) < least:
            raise DataError(f"{path}: too few rows: `{name}` has {len(data[name])}, at least {least} needed.")
    targets = [name for name in data if name.startswith("y_")]
    if task is None:
        whole = all(bool((data[name] == np.floor(data[name])).all()) for name in targets)
        task = "classification" if whole else "regression"
    classes = None
    if task == "classification":
        classes = arrays.label_classes(path, "y_train", data["y_train"])
        for name in targets:
            arrays.check_range(path, name, data[name], classes, "the classes of `y_train`")
            data[name] = data[name].astype(np.int32) - classes[0]
    if "x_val" not in data:
        x, y = data["x_train"], data["y_train"]
        kept, held = split_rows(len(x), [VALIDATION_SHARE], seed, None if classes is None else y)
        data |= {"x_train": x[kept], "y_train": y[kept], "x_val": x[held], "y_val": y[held]}
    raw: dict[str, Raw] = {"train": data["x_train"], "validation": data["x_val"], "test": data["x_test"]}
    answers = {"train": data["y_train"], "validation": data["y_val"], "test": data["y_test"]}
    return encode(path.name, classes, ArrayEncoder.fit(data["x_train"]), raw, answers)


def load_csv(
    path: Path, target: str | None, seed: int, task: str | None, header: bool | None, text: Collection[str]
) -> Dataset:
    table = tables.read_table(path, header, text)
    names = list(table.columns)
    if target is None:
        raise DataError(f"{path}: name the column to predict (`target`); the columns are {', '.join(names)}.")
    if target not in table.columns:
        note = "" if table.header else " The file has no header row, so its columns are numbered."
        raise DataError(tables.unknown_column(path, target, names) + note)
    if len(table) < MINIMUM_ROWS:
        raise DataError(f"{path}: too few rows: {len(table)}, at least {MINIMUM_ROWS} needed.")
    if len(names) < 2:
        raise DataError(f"{path}: `{target}` is the only column: nothing to predict it from.")
    y = table.columns[target]
    check_column_target(path, target, y, table.lines)
    features = {name: column for name, column in table.columns.items() if name != target}
    for name, column in features.items():
        if column.dtype != object and np.isinf(column).any():
            infinite = np.isinf(column)
            raise DataError(
                f"{path}: column `{name}` holds {int(infinite.sum())} infinite value(s), "
                f"first on line {table.lines[int(np.argmax(infinite))]}."
            )
    if task is None:
        task = guess_task(y)
    classes: list[Any] | None = None
    ids = None
    if task == "classification":
        classes, ids = column_classes(path, target, y)
    elif y.dtype == object:
        raise DataError(f"{path}: target `{target}` is text; regression needs numbers.")
    rows = dict(zip(PARTS, split_rows(len(table), [VALIDATION_SHARE, TEST_SHARE], seed, ids), strict=True))
    encoder = TableEncoder.fit({name: column[rows["train"]] for name, column in features.items()})
    if not encoder.features:
        raise DataError(f"{path}: no column besides `{target}` holds a value.")
    used = [*encoder.numbers, *encoder.text]
    details = {
        "target": target,
        "header": table.header,
        "columns": {name: "text" if column.dtype == object else "number" for name, column in features.items()},
        "imputed": {
            name: int(np.isnan(features[name]).sum()) for name in encoder.numbers if np.isnan(features[name]).any()
        },
        "dropped": [name for name in features if name not in used],
        "words": {name: len(words) for name, words in encoder.text.items()},
    }
    raw: dict[str, Raw] = {part: {name: features[name][rows[part]] for name in used} for part in PARTS}
    values = y if ids is None else ids
    return encode(path.name, classes, encoder, raw, {part: values[rows[part]] for part in PARTS}, details)


def check_column_target(path: Path, name: str, y: np.ndarray, lines: np.ndarray) -> None:
    bad = np.array([cell.lower() in tables.MISSING for cell in y]) if y.dtype == object else ~np.isfinite(y)
    if not bad.any():
        return
    infinite = 0 if y.dtype == object else int(np.isinf(y).sum())
    missing = int(bad.sum()) - infinite
    found = " and ".join(f"{n} {what}" for n, what in ((missing, "missing or NaN"), (infinite, "infinite")) if n)
    raise DataError(f"{path}: target `{name}` holds {found} value(s), first on line {lines[int(np.argmax(bad))]}.")


def guess_task(y: np.ndarray) -> str:
    if y.dtype == object:
        return "classification"
    different = len(np.unique(y))
    few = different <= MOST_INTEGER_CLASSES and len(y) >= 5 * different
    return "classification" if few and bool((y == np.floor(y)).all()) else "regression"


def column_classes(path: Path, name: str, y: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The classes in sorted order, and each row's position in them."""
    found, ids = np.unique(y.astype(str) if y.dtype == object else y, return_inverse=True)
    if y.dtype != object and (found != np.floor(found)).any():
        raise DataError(f"{path}: target `{name}` holds numbers that are not whole, such as {y[0]}: no class ids.")
    if len(found) < 2:
        raise DataError(f"{path}: target `{name}` holds only one class ({found[0]}): nothing to learn.")
    if 2 * len(found) > len(y):
        raise DataError(f"{path}: target `{name}` has {len(found)} classes in {len(y)} rows: too few rows per class.")
    classes = [str(label) for label in found] if y.dtype == object else [int(label) for label in found]
    return classes, ids.reshape(-1)


def target_moments(name: str, y: np.ndarray) -> tuple[float, float]:
    deviation = float(np.std(y, dtype=np.float64))
    if deviation == 0:
        raise DataError(f"{name}: the target is {y[0]} in every training row: nothing to learn.")
    return float(np.mean(y, dtype=np.float64)), deviation


def encode_target(y: np.ndarray, classes: list[Any] | None, mean: float, deviation: float) -> np.ndarray:
    if classes is not None:
        return y.astype(np.int32)
    return ((y.astype(np.float64) - mean) / deviation).astype(np.float32)[:, None]
