"""A clean terminal: imports TensorFlow without what it has to say about itself."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def import_tensorflow() -> None:
    """Imports Keras on TensorFlow in silence, unless the user has set TensorFlow's log level.

    The level alone does not do it: TensorFlow 2.21 writes some lines before it has read the level.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    talks = LEVEL in os.environ
    os.environ.setdefault(LEVEL, "3")
    # Keras 3.10 says so of every functional model of one input that was loaded, and means nothing by it.
    warnings.filterwarnings("ignore", message="The structure of `inputs` doesn't match", category=UserWarning)
    with contextlib.nullcontext() if talks else stderr_held_back():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def stderr_held_back() -> Iterator[None]:
    """Keeps what is written to standard error, by C++ code too, and shows it only after an error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        original = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            kept.seek(0)
            os.write(original, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
