"""Replicas on one machine, workers on several, and what the machine has.

Names load when they are first used, because the command starts workers without waiting for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_trainkit.distribution.chief import chief_only, chief_path, is_chief
    from keras_trainkit.distribution.cluster import Cluster
    from keras_trainkit.distribution.devices import describe_devices
    from keras_trainkit.distribution.enabling import enable_workers
    from keras_trainkit.distribution.joining import workers
    from keras_trainkit.distribution.layout import layout_for
    from keras_trainkit.distribution.layout_report import Bytes, ModelLayout, VariableLayout
    from keras_trainkit.distribution.lost import WorkerLost
    from keras_trainkit.distribution.plan_report import Plan, PlanRow
    from keras_trainkit.distribution.planning import plan
    from keras_trainkit.distribution.seeds import separate_seeds
    from keras_trainkit.distribution.strategies import SingleDevice, strategy

__all__ = [
    "Bytes",
    "Cluster",
    "ModelLayout",
    "Plan",
    "PlanRow",
    "SingleDevice",
    "VariableLayout",
    "WorkerLost",
    "chief_only",
    "chief_path",
    "describe_devices",
    "enable_workers",
    "is_chief",
    "layout_for",
    "plan",
    "separate_seeds",
    "strategy",
    "workers",
]

_HOMES = {
    "Bytes": "layout_report",
    "Cluster": "cluster",
    "ModelLayout": "layout_report",
    "Plan": "plan_report",
    "PlanRow": "plan_report",
    "SingleDevice": "strategies",
    "VariableLayout": "layout_report",
    "WorkerLost": "lost",
    "chief_only": "chief",
    "chief_path": "chief",
    "describe_devices": "devices",
    "enable_workers": "enabling",
    "is_chief": "chief",
    "layout_for": "layout",
    "plan": "planning",
    "separate_seeds": "seeds",
    "strategy": "strategies",
    "workers": "joining",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"keras_trainkit.distribution.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'keras_trainkit.distribution' has no attribute {name!r}")
