"""One file that holds a state: a zip of plain bytes and a manifest in JSON with their checksums, written whole or not.

Nothing in it is pickled: reading a file runs no code of it, and any tool that opens zips can look inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"


class Damaged(Exception):
    """A file that is not what was written: cut short, changed, or of another kind."""


def write(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Writes a bundle under a temporary name, has the disk take it, and then gives it its name.

    A process or a machine that dies leaves either the whole file or none of that name.

    Args:
        path: the file.
        facts: plain values, ready for JSON; NaN and infinity may be among them.
        arrays: NumPy arrays of any dtype that is no object, or what `numpy.asarray` makes such arrays of.

    Raises:
        OSError: for a full disk and the like; the temporary file is gone then, and all other files are as before.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "state.zip")
    >>> write(path, {"epoch": 3}, {"weights": np.arange(3)})
    >>> read(path)[0]["epoch"], read(path)[1]["weights"].tolist()
    (3, [0, 1, 2])
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open_to_write(partial) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                described = {}
                for number, (name, given) in enumerate(arrays.items()):
                    array = np.asarray(given)
                    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                    entry = f"arrays/{number}"
                    archive.writestr(entry, content)
                    described[name] = {
                        "entry": entry,
                        "dtype": array.dtype.name,
                        "shape": list(array.shape),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
                archive.writestr(MANIFEST, json.dumps({"format": FORMAT, "facts": facts, "arrays": described}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def open_to_write(path: Path) -> IO[bytes]:
    """The file that a bundle is written into."""
    return path.open("wb")


def sync_folder(folder: Path) -> None:
    """Has the disk take the folder's list of names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_facts(path: Path) -> dict[str, Any]:
    """The plain values of a bundle alone.

    Raises:
        Damaged: if it is no whole bundle.
    """
    with _opened(path) as archive:
        return _manifest(archive)["facts"]


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plain values and the arrays of a bundle, every byte checked.

    Raises:
        Damaged: if it is not what was written.
    """
    with _opened(path) as archive:
        manifest = _manifest(archive)
        arrays = {}
        for name, about in manifest["arrays"].items():
            content = archive.read(about["entry"])
            if hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise Damaged(f"{path}: `{name}` is not what was written")
            arrays[name] = np.frombuffer(content, dtype_of(about["dtype"])).reshape(about["shape"])
        return manifest["facts"], arrays


def dtype_of(name: str) -> np.dtype:
    """The dtype of a name, bfloat16 and the like included.

    >>> dtype_of("bfloat16").itemsize
    2
    """
    import ml_dtypes  # noqa: F401  # NumPy knows the names then

    return np.dtype(name)


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, OSError, NotImplementedError) as error:
        raise Damaged(f"{path}: {error}") from error


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    manifest = json.loads(archive.read(MANIFEST))
    if manifest["format"] != FORMAT:
        raise ValueError(f"this is format {manifest['format']} of a newer version; here format {FORMAT} is read")
    return manifest
