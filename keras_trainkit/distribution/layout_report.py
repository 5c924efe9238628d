"""`ModelLayout`: where each variable of a model lies, as Keras takes it, and what that costs on each device."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_trainkit.core import backend, tables

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class VariableLayout:
    """Where one variable of a model lies.

    Attributes:
        path: of the variable.
        shape: of the whole variable.
        dtype: its name.
        axes: for each axis of the shape the axis of the mesh over which it is split, or None where it is whole.
        rule: what it was split by: `"columns"`, `"rows"`, `"heads"`, `"vocabulary"`, `"features"`, or `"whole"`.
        trainable: whether it has a gradient.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: Axes
    rule: str
    trainable: bool


@dataclasses.dataclass(frozen=True)
class Bytes:
    """What lies on one device during training, in bytes, without the activations.

    Attributes:
        parameters: of the model, trainable and not.
        gradients: of the trainable ones.
        slots: of the optimizer, its accumulators and averages included; 0 without one.
    """

    parameters: int
    gradients: int
    slots: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.slots


class ModelLayout(keras.distribution.LayoutMap):
    """A layout map for one model, which `layout_for` makes; `print` shows it.

    It goes to `keras.distribution.ModelParallel` as it is. The variables of the model are found by their whole paths.
    Keys that are added, say for the outputs of layers, are patterns, as in Keras.

    Attributes:
        variables: a `VariableLayout` for each variable of the model.
        bytes_per_device: the `Bytes` of each device.
        bytes_unsplit: the `Bytes` of each device if nothing were split.
        optimizer: the name of the class whose slots are counted, or None.
    """

    def __init__(
        self,
        device_mesh: Any,
        variables: list[VariableLayout],
        bytes_per_device: Bytes,
        bytes_unsplit: Bytes,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(device_mesh)
        self.variables = list(variables)
        self.bytes_per_device = bytes_per_device
        self.bytes_unsplit = bytes_unsplit
        self.optimizer = optimizer
        self._planned = {v.path: keras.distribution.TensorLayout(v.axes, device_mesh) for v in variables}

    def __getitem__(self, key: str) -> Any:
        """The layout of the variable with this path, or what an added pattern says, or None."""
        return self._planned[key] if key in self._planned else super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        yield from self._planned
        yield from super().__iter__()

    def __len__(self) -> int:
        return len(self._planned) + super().__len__()

    def distribution(self) -> Any:
        """A `keras.distribution.ModelParallel` with this layout, the batch split over the first axis of the mesh.

        Raises:
            RuntimeError: where this machine has not the devices of the mesh.
        """
        there, needed = keras.distribution.list_devices(), [str(device) for device in self.device_mesh.devices.flat]
        if not set(needed) <= set(there):
            raise RuntimeError(
                f"This layout is for {len(needed)} devices, and JAX has {len(there)} here. On a CPU the environment "
                f"variable XLA_FLAGS=--xla_force_host_platform_device_count={len(needed)}, set before JAX starts, "
                "splits it into as many."
            )
        return keras.distribution.ModelParallel(layout_map=self, batch_dim_name=self.device_mesh.axis_names[0])

    def check(self, model: Any) -> None:
        """Raises where a weight of the model does not lie as it is laid out here.

        Keras copies a variable whose path it does not find to every device, and says nothing.

        Raises:
            ValueError: for such variables; it names them.
        """
        # Not the seeds of random layers, which are whole anyway, and which a loaded model numbers anew.
        unknown = [v.path for v in model.weights if v.path not in self._planned]
        if unknown:
            raise ValueError(
                f"The layout does not know {_named(unknown)}: it was made for a model with other names. Keras numbers "
                "names through, so a second model in a process has others than the first: give `layout_for` the "
                "function that makes the model, or give the layers names of their own."
            )
        strange = [v.path for v in model.weights if backend.axes_of(v) != self._planned[v.path].axes]
        if strange:
            raise ValueError(
                f"{_named(strange)} are not laid out like this: the model must be made after "
                "`keras.distribution.set_distribution(layout.distribution())`."
            )

    def __repr__(self) -> str:
        split = sum(v.rule != "whole" for v in self.variables)
        return f"<ModelLayout of {len(self.variables)} variables, {split} of them split, on {_mesh(self.device_mesh)}>"

    def __str__(self) -> str:
        batch, model = self.device_mesh.axis_names
        rows = [["variable", "shape", "split over", "by", "bytes/device"]]
        sizes = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))
        for v in self.variables:
            over = ", ".join(axis or "-" for axis in v.axes) if v.rule != "whole" else ""
            own = local_bytes(v.shape, v.dtype, v.axes, sizes)
            rows.append([v.path, " x ".join(map(str, v.shape)) or "1", over, v.rule, f"{own:,}"])
        whole, part = self.bytes_unsplit, self.bytes_per_device
        slots = "slots" if self.optimizer is None else f"slots of {self.optimizer}"
        counts = [
            ["bytes on each device", "split", "unsplit"],
            ["parameters", f"{part.parameters:,}", f"{whole.parameters:,}"],
            ["gradients", f"{part.gradients:,}", f"{whole.gradients:,}"],
            [slots, f"{part.slots:,}", f"{whole.slots:,}"] if self.optimizer else [slots, "no optimizer given", ""],
            ["all but activations", f"{part.total:,}", f"{whole.total:,}"],
        ]
        head = f"{_mesh(self.device_mesh)}: the batch is split over {batch!r}, variables over {model!r}"
        return "\n".join([head, "", *tables.aligned(rows), "", *tables.aligned(counts)])


def local_bytes(shape: tuple[int, ...], dtype: str, axes: Any, sizes: dict[str, int]) -> int:
    """The bytes of one device's part of a tensor whose axes are split over these axes of a mesh."""
    parts = math.prod(sizes[axis] for axis in axes or () if axis is not None)
    return tensor_bytes(shape, dtype) // parts


def tensor_bytes(shape: Sequence[int], dtype: str) -> int:
    """The bytes of a tensor whose dtype has this name.

    >>> tensor_bytes((3, 4), "bfloat16"), tensor_bytes((), "int64"), tensor_bytes((2,), "float8_e4m3fn")
    (24, 8, 2)
    """
    bits = re.search(r"\d+", dtype)
    return math.prod(shape) * (1 if bits is None else max(1, int(bits[0]) // 8))


def _mesh(mesh: Any) -> str:
    sizes = " x ".join(f"{name} {size}" for name, size in zip(mesh.axis_names, mesh.shape, strict=True))
    return f"{sizes} = {math.prod(mesh.shape)} devices"


def _named(paths: list[str]) -> str:
    shown = ", ".join(repr(path) for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
