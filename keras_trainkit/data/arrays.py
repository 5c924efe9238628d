"""Arrays: reads `.npz` files in Keras's layout and checks arrays and labels before anything trains on them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from keras_trainkit.data.errors import DataError

NAMES = ("x_train", "y_train", "x_test", "y_test")
VALIDATION_NAMES = ("x_val", "y_val")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads `x_train`, `y_train`, `x_test`, `y_test` (and `x_val`, `y_val` where both are there) from an `.npz` file.

    Raises:
        DataError: not an npz, damaged, an array is missing, or an array is no array of numbers.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file, or a damaged one (no zip directory at its end).")
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = list(archive.files)
            missing = [name for name in NAMES if name not in there]
            if missing:
                held = ", ".join(there) if there else "no array at all"
                raise DataError(
                    f"{path}: missing {', '.join(missing)}; expected {', '.join(NAMES)}; the file holds {held}."
                )
            wanted = [*NAMES, *(VALIDATION_NAMES if all(name in there for name in VALIDATION_NAMES) else ())]
            return {name: read_member(path, archive, name) for name in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged .npz file ({error}).") from error


def read_member(path: Path, archive, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except ValueError as error:  # pickled objects, or a header that is no header
        raise DataError(f"{path}: array `{name}` cannot be read as numbers ({error}).") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DataError(
            f"{path}: array `{name}` must hold numbers. Received: dtype={getattr(array, 'dtype', 'no array')}"
        )
    return array


def check_lengths(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for part in ("train", "val", "test"):
        x, y = arrays.get(f"x_{part}"), arrays.get(f"y_{part}")
        if x is None or y is None:
            continue
        for name, array in ((f"x_{part}", x), (f"y_{part}", y)):
            if array.ndim == 0:
                raise DataError(f"{path}: array `{name}` is a single number, not an array of rows.")
        if len(x) != len(y):
            raise DataError(f"{path}: lengths differ: `x_{part}` has {len(x)} rows, `y_{part}` has {len(y)}.")


def check_finite(path: Path, name: str, array: np.ndarray) -> None:
    """Raises DataError with the count and the first place if `array` holds NaN or infinity."""
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array)
    if not bad.any():
        return
    nans = int(np.isnan(array).sum())
    infinite = int(bad.sum()) - nans
    found = " and ".join(f"{count} {what}" for count, what in ((nans, "NaN"), (infinite, "infinite")) if count)
    first = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
    place = str(first[0]) if len(first) == 1 else str(first)
    raise DataError(f"{path}: array `{name}` holds {found} value{'s' * (nans + infinite > 1)}, first at index {place}.")


def flat_target(path: Path, name: str, y: np.ndarray) -> np.ndarray:
    """`y` of shape `(n,)` or `(n, 1)` as `(n,)`."""
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    if y.ndim != 1:
        hint = " (one-hot labels: save their argmax)" if y.ndim == 2 else ""
        raise DataError(f"{path}: array `{name}` must have shape (n,) or (n, 1){hint}. Received: shape={y.shape}")
    return y


def label_classes(path: Path, name: str, labels: np.ndarray) -> list[int]:
    """The classes of whole-number labels: 0..k-1, or 1..k, with none left out.

    Raises:
        DataError: labels that are negative, not whole, or out of range (the first one and its row).
    """
    whole = labels == np.floor(labels)
    if not whole.all():
        row = int(np.argmin(whole))
        raise DataError(
            f"{path}: array `{name}` must hold whole class ids; {int((~whole).sum())} are not, "
            f"first {labels[row]} at row {row}."
        )
    labels = labels.astype(np.int64)
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise DataError(
            f"{path}: array `{name}` holds {int((labels < 0).sum())} negative label(s), "
            f"first {labels[row]} at row {row}."
        )
    found = np.unique(labels)
    if len(found) < 2:
        raise DataError(f"{path}: array `{name}` holds only one class ({found[0]}): nothing to learn.")
    start = 1 if found[0] == 1 else 0
    classes = range(start, start + len(found))
    if found[-1] != classes[-1]:
        check_range(path, name, labels, list(classes), f"it has {len(found)} different labels")
    return list(classes)


def check_range(path: Path, name: str, labels: np.ndarray, classes: list[int], because: str) -> None:
    outside = (labels < classes[0]) | (labels > classes[-1]) | (labels != np.floor(labels))
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"{path}: labels out of range: `{name}` must hold class ids {classes[0]} to {classes[-1]} ({because}); "
            f"{int(outside.sum())} label(s) are not, first {labels[row]} at row {row}."
        )
