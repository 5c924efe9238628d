"""Training parts for Keras 3: optimizers, schedules, initializers, regularizers, layers, callbacks and a command.

Importing the package registers every class with Keras, so that saved models load.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from keras_trainkit._version import __version__

_SUBPACKAGES = [
    "averaging",
    "callbacks",
    "core",
    "data",
    "distribution",
    "finders",
    "guards",
    "initializers",
    "layers",
    "optimizers",
    "precision",
    "pruning",
    "recipes",
    "regularizers",
    "reporting",
    "resuming",
    "schedules",
    "testing",
    "training",
    "transforms",
    "tuning",
]

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"keras_trainkit.{name}")
    raise AttributeError(f"module 'keras_trainkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})


def _runs_as_command() -> bool:
    # `keras-trainkit --help` must not wait 3 s for TensorFlow: the command loads the parts when it needs them.
    # While `python -m keras_trainkit` looks the package up, sys.argv[0] is "-m"; for other modules it is a path.
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    return program == "-m" or program.removesuffix(".exe") == "keras-trainkit"


if not _runs_as_command():
    # One of the modules that load late has a class to register.
    for _name in [*_SUBPACKAGES, "data.rates"]:
        importlib.import_module(f"keras_trainkit.{_name}")
