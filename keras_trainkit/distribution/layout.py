"""`layout_for`: proposes how to split a model's variables over devices, and counts what each device holds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import layers

from keras_trainkit.core import backend, checks
from keras_trainkit.distribution import paper
from keras_trainkit.distribution.layout_report import Bytes, ModelLayout, VariableLayout, local_bytes

RULES = ("column", "row", "replicate")
ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)
Tensor = tuple[tuple[int, ...], str, Any]
"""The shape of a tensor, its dtype, and the axes of the mesh over which its axes are split."""
WHOLE = (*ATTENTION, layers.Dense, layers.EinsumDense, layers.Embedding)
"""Layers to take as one, even if there are layers inside, such as an activation."""


def layout_for(
    model: Any,
    mesh: Any,
    *,
    optimizer: Any = None,
    rules: Mapping[str, str] | None = None,
    indivisible: str = "error",
) -> ModelLayout:
    """Proposes a layout for model parallelism with Keras on JAX, and counts the bytes on each device beforehand.

    The batch is split over the first axis of the mesh, variables over the second:

    - a dense layer by its columns (outputs), and the next one, if it takes just that many inputs and no layer with
      weights lies between, by its rows: what passes from one to the other stays on its device (Shoeybi et al. 2019,
      "Megatron-LM", arXiv:1909.08053);
    - attention (`MultiHeadAttention`, `GroupQueryAttention`) by its heads: the kernels and biases of queries, keys and
      values, and the inputs of the output's kernel;
    - an embedding by its vocabulary, or else by its features;
    - all else, such as normalizations and convolutions, is copied to every device.

    The result is the same for every layout; memory and communication are not.

    Args:
        model: a function without arguments that returns the model, uncompiled; the model is then made on paper: it
            takes no memory, and the one that the function makes next has the same names. Or a built model, whose
            variables' paths must be those of the model to be trained.
        mesh: a `keras.distribution.DeviceMesh` with two axes, or their sizes, such as `{"batch": 2, "model": 4}`. With
            more devices than this machine has the layout can be printed, but not used.
        optimizer: whose slots are counted, of the kit or of Keras, with its averages and accumulators; it is not
            changed. None counts no slots.
        rules: what to do with layers in whose variables' paths a regular expression is found: `"column"` (the last axis
            of kernels and embeddings), `"row"` (the first) or `"replicate"`. The first one found counts.
        indivisible: `"error"`, or `"replicate"` to copy what the second axis of the mesh does not divide to every
            device.

    Returns:
        A `ModelLayout`, for `print` and for `keras.distribution.ModelParallel`.

    Raises:
        RuntimeError: on another backend than JAX: `keras.distribution.ModelParallel` works on no other.
        ValueError: where a size does not divide by the devices it is to be split over, for a rule that is found
            nowhere, for a mesh that has not two axes, for a model that has no variables yet, and for a model or an
            optimizer that cannot be made on paper (Keras's Adafactor; the kit's can).
        TypeError: for an argument of the wrong kind.

    Example:

    >>> def make_model():
    ...     return keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(4)])
    >>> if keras.backend.backend() == "jax":
    ...     layout = layout_for(make_model, {"batch": 2, "model": 4}, optimizer=keras.optimizers.Adam())
    ...     assert [v.rule for v in layout.variables] == ["columns", "columns", "rows", "whole"]
    ...     assert layout.bytes_per_device.parameters == 4 * ((8 * 64 + 64 + 64 * 4) // 4 + 4)
    """
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            "`layout_for` needs Keras on JAX (KERAS_BACKEND=jax): `keras.distribution.ModelParallel` works on no other "
            f"backend. Here Keras runs on {keras.backend.backend()!r}; see `distribution.strategy` for replicas."
        )
    checks.one_of("indivisible", indivisible, ("error", "replicate"))
    for pattern, rule in (rules or {}).items():
        re.compile(pattern)
        checks.one_of("rules", rule, RULES)
    device_mesh = _mesh(mesh)
    model = _model(model)
    axis, parts = device_mesh.axis_names[1], int(device_mesh.shape[1])
    chosen = Splitting(dict(rules or {}), parts, indivisible == "replicate").of(model)
    found = []
    for variable in model.variables:
        shape, (position, rule) = tuple(variable.shape), chosen.get(variable.path, (None, "whole"))
        axes = tuple(axis if i == position else None for i in range(len(shape)))
        found.append(VariableLayout(variable.path, shape, backend.dtype(variable), axes, rule, variable.trainable))
    slots = [] if optimizer is None else _slots(model, found, optimizer, device_mesh)
    sizes = dict(zip(device_mesh.axis_names, map(int, device_mesh.shape), strict=True))
    split, unsplit = (_bytes(found, slots, each) for each in (sizes, dict.fromkeys(sizes, 1)))
    return ModelLayout(device_mesh, found, split, unsplit, None if optimizer is None else type(optimizer).__name__)


class Splitting:
    """Decides by which axis each variable is split.

    Args:
        rules: the user's, by pattern.
        parts: devices to split over.
        lenient: whether what does not divide is copied.
    """

    def __init__(self, rules: dict[str, str], parts: int, lenient: bool) -> None:
        self._rules, self._parts, self._lenient = rules, parts, lenient
        self._found: dict[str, tuple[int, str]] = {}
        self._met: set[str] = set()
        self._width: int | None = None
        """Outputs of the last dense layer, if it is split by columns and what follows may take them as they lie."""

    def of(self, model: Any) -> dict[str, tuple[int, str]]:
        """For each path of a variable that is split the number of the axis, and what it is split by.

        Raises:
            ValueError: for an axis that does not divide, or a rule that is found nowhere.
        """
        for layer in dict.fromkeys(_leaves(model)):
            if not layer.built and layer.weights == [] and isinstance(layer, WHOLE):
                raise ValueError(f"`model` must be built: its layer {layer.name!r} has no variables yet.")
            self._split(layer)
        if unmet := [pattern for pattern in self._rules if pattern not in self._met]:
            raise ValueError(
                f"`rules` must be patterns that are found in the path of a layer's variable, such as "
                f"{model.variables[0].path!r}. Received: rules={self._rules!r}, of which {unmet[0]!r} is found nowhere"
            )
        return self._found

    def _split(self, layer: Any) -> None:
        rule, width = self._rule(layer), self._width
        if isinstance(layer, ATTENTION):
            self._width = None
            self._heads(layer, rule)
        elif isinstance(layer, layers.Embedding) and rule is None:
            self._width = None
            rows = layer.input_dim % self._parts == 0 or layer.output_dim % self._parts != 0
            self._axis(layer, 0 if rows else -1, "vocabulary" if rows else "features")
        elif isinstance(layer, layers.Dense) and rule is None:
            self._width = None
            if width is not None and _weights(layer)[0].shape[0] == width:
                self._axis(layer, 0, "rows")
            elif self._axis(layer, -1, "columns"):
                self._width = layer.units
        elif rule in ("column", "row"):
            self._width = None
            if self._axis(layer, *((-1, "columns") if rule == "column" else (0, "rows"))) and rule == "column":
                self._width = int(_weights(layer)[0].shape[-1])
        elif layer.trainable_variables:
            self._width = None

    def _rule(self, layer: Any) -> str | None:
        """The first of the user's rules that is found in a path of the layer."""
        for pattern, rule in self._rules.items():
            if any(re.search(pattern, variable.path) for variable in layer.variables):
                self._met.add(pattern)
                return rule
        return None

    def _axis(self, layer: Any, axis: int, name: str) -> bool:
        """Splits the layer's weights by their first or last axis; whether that was possible."""
        weights = _weights(layer)
        if not weights:
            raise ValueError(
                f"`rules` can split layers that have a kernel or embeddings, and {layer.name!r} "
                f"({type(layer).__name__}) has none. Received: rules={self._rules!r}"
            )
        if not all(self._divides(w, axis % len(w.shape), name) for w in weights):
            return False
        for weight in weights:
            self._found[weight.path] = (axis % len(weight.shape), name)
        bias = getattr(layer, "bias", None)
        if axis == -1 and bias is not None and bias.shape[-1] == weights[0].shape[-1]:
            self._found[bias.path] = (len(bias.shape) - 1, name)
        return True

    def _heads(self, layer: Any, rule: str | None) -> None:
        """Splits attention by its heads, which lie at the second axis of the kernels that make them."""
        if rule == "replicate":
            return
        if rule is not None:
            raise ValueError(
                f"`rules` can have attention replicated, which is otherwise split by its heads. Received: "
                f"rules={self._rules!r}, of which {rule!r} is for {layer.name!r} ({type(layer).__name__})"
            )
        for variable in layer.variables:
            part, name = ["", *variable.path.split("/")][-2:]
            if name == "kernel":
                axis = 0 if part == "attention_output" else 1
            elif name == "bias" and part != "attention_output":
                axis = 0
            else:
                continue
            if self._divides(variable, axis, "heads"):
                self._found[variable.path] = (axis, "heads")

    def _divides(self, variable: Any, axis: int, name: str) -> bool:
        size = int(variable.shape[axis])
        if size % self._parts == 0:
            return True
        if self._lenient:
            return False
        others = [i for i, other in enumerate(variable.shape) if other % self._parts == 0]
        hint = ""
        if name != "heads" and len(variable.shape) - 1 in others:
            hint = ', "column"'
        elif name != "heads" and 0 in others:
            hint = ', "row"'
        raise ValueError(
            f"The second axis of `mesh` must divide what is split over it: {variable.path!r} has {size} {name}, and "
            f"the axis {self._parts} devices. Change the size, or pass "
            f'rules={{{variable.path.rpartition("/")[0]!r}: "replicate"{hint and " or" + hint[1:]}}} or '
            f'indivisible="replicate". Received: mesh with {self._parts} devices, shape={tuple(variable.shape)}'
        )


def _weights(layer: Any) -> list[Any]:
    """The layer's matrices: what a rule splits."""
    return [v for v in layer.variables if v.name in ("kernel", "embeddings")]


def _leaves(layer: Any) -> Iterator[Any]:
    """The innermost layers, attention as a whole, in the order of the computation."""
    inside = [] if isinstance(layer, WHOLE) else backend.sublayers(layer)
    for each in inside:
        yield from _leaves(each)
    if not inside:
        yield layer


def _mesh(mesh: Any) -> Any:
    """The mesh itself, or one of these sizes of the devices there are, or else of devices that would be needed."""
    if isinstance(mesh, Mapping):
        sizes = {name: checks.integer(f"mesh[{name!r}]", size, at_least=1) for name, size in mesh.items()}
        count, there = math.prod(sizes.values()), keras.distribution.list_devices()
        kind = there[0].partition(":")[0]
        devices = there[:count] if len(there) >= count else [f"{kind}:{i}" for i in range(count)]
        mesh = keras.distribution.DeviceMesh(tuple(sizes.values()), tuple(sizes), devices) if sizes else None
    if not isinstance(mesh, keras.distribution.DeviceMesh) or len(mesh.axis_names) != 2:
        raise ValueError(
            "`mesh` must have two axes, for the batch and for the variables, of which each may have one device: a "
            f'DeviceMesh or sizes such as {{"batch": 2, "model": 4}}. Received: mesh={mesh!r}'
        )
    return mesh


def _model(model: Any) -> Any:
    if isinstance(model, keras.Model):
        made = model
    elif callable(model):
        made = paper.model_made_by(model)
        if not isinstance(made, keras.Model):
            raise TypeError(f"`model` must be a function that returns a keras.Model. Received: {made!r} of {model!r}")
    else:
        raise TypeError(f"`model` must be a keras.Model, or a function that returns one. Received: model={model!r}")
    if not made.variables:
        raise ValueError("`model` must be built, so that its variables have shapes: give it an Input, or build it.")
    return made


def _bytes(found: list[VariableLayout], slots: list[Tensor], sizes: dict[str, int]) -> Bytes:
    """What one device of a mesh with these sizes holds."""
    own = [local_bytes(v.shape, v.dtype, v.axes, sizes) for v in found]
    gradients = [count for count, v in zip(own, found, strict=True) if v.trainable]
    return Bytes(sum(own), sum(gradients), sum(local_bytes(*slot, sizes) for slot in slots))


def _slots(model: Any, found: list[VariableLayout], optimizer: Any, mesh: Any) -> list[Tensor]:
    """The variables of such an optimizer, built on paper in the way that it is built to train."""
    layouts = {v.path: keras.distribution.TensorLayout(v.axes, mesh) for v in found}
    laid_out = backend.laid_out([(variable, layouts[variable.path]) for variable in model.variables])
    slots = paper.slots_of(optimizer, model.trainable_variables, laid_out)
    return [(tuple(v.shape), backend.dtype(v), backend.axes_of(v)) for v in slots]
