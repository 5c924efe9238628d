"""The ground: pure transforms, and the one optimizer that knows variables. Imports nothing else of the kit.

Names load when they are first used, because the command line needs `core.checks` without waiting for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_trainkit.core.compose import Chain, Masked, Partition, chain, masked, partition
    from keras_trainkit.core.guard import Guard
    from keras_trainkit.core.optimizer import TransformOptimizer
    from keras_trainkit.core.transform import Context, LeafContext, Slot, Transform, Treatment, register_transform

__all__ = [
    "Chain",
    "Context",
    "Guard",
    "LeafContext",
    "Masked",
    "Partition",
    "Slot",
    "Transform",
    "TransformOptimizer",
    "Treatment",
    "chain",
    "masked",
    "partition",
    "register_transform",
]

_MODULES = ("transform", "guard", "compose", "optimizer")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            contents = vars(importlib.import_module(f"keras_trainkit.core.{module}"))
            if name in contents:
                return contents[name]
    raise AttributeError(f"module 'keras_trainkit.core' has no attribute {name!r}")
