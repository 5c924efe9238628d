"""Targets between scikit-learn and Keras: labels to numbers on the way in, outputs to probabilities and labels back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from sklearn.utils.multiclass import check_classification_targets, type_of_target


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a model-building function is told about the data, in its argument `meta`.

    Attributes:
        input_shape: of one example, without the batch.
        target_type: scikit-learn's word for the targets: "binary", "multiclass", "multilabel-indicator",
            "multiclass-multioutput", "continuous" or "continuous-multioutput".
        n_outputs: how many targets an example has.
        n_classes: how many classes there are; a list with a number for each output where those are several; None in
            a regression.

    >>> Meta((64,), "multiclass", 1, 10).units
    10
    >>> Meta((64,), "binary", 1, 2)
    Meta(input_shape=(64,), target_type='binary', n_outputs=1, n_classes=2)
    """

    input_shape: tuple[int, ...]
    target_type: str
    n_outputs: int
    n_classes: int | list[int] | None

    @property
    def n_features(self) -> int:
        """Numbers in one example: the product of `input_shape`."""
        return math.prod(self.input_shape)

    @property
    def units(self) -> Any:
        """What the last layer must have: one unit for two classes, one for each class, label or number otherwise.

        A list of such numbers, one for each output of the model, where several classes are asked for at once.
        """
        if isinstance(self.n_classes, int):
            return _units(self.n_classes)
        if self.target_type == "multiclass-multioutput" and self.n_classes is not None:
            return [_units(classes) for classes in self.n_classes]
        return self.n_outputs

    @property
    def activation(self) -> Any:
        """What makes probabilities of the last layer's outputs: "sigmoid", "softmax", or None in a regression.

        A list, one for each output of the model, where several classes are asked for at once.
        """
        if self.n_classes is None:
            return None
        if isinstance(self.units, list):
            return ["sigmoid" if units == 1 else "softmax" for units in self.units]
        return "softmax" if isinstance(self.n_classes, int) and self.units > 1 else "sigmoid"


class Labels:
    """One class for each example, out of two or more.

    Attributes:
        classes: sorted, shape `(classes,)`.
    """

    def __init__(self, y: np.ndarray, classes: Any = None) -> None:
        self.classes = np.unique(y if classes is None else np.asarray(classes))
        self.dtype = self.classes.dtype

    @property
    def kind(self) -> str:
        """ "multiclass" for more than two classes, else "binary"."""
        return "multiclass" if len(self.classes) > 2 else "binary"

    n_outputs = 1

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def units(self) -> tuple[int, ...]:
        """The numbers of units that the last layer may have."""
        return (1, len(self.classes)) if len(self.classes) <= 2 else (len(self.classes),)

    def codes(self, y: np.ndarray) -> np.ndarray:
        """The index of each label among the classes. Raises ValueError for a label that is not among them."""
        found = np.searchsorted(self.classes, y).clip(max=len(self.classes) - 1)
        strange = np.unique(y[self.classes[found] != y])
        if len(strange):
            raise ValueError(
                f"`y` must hold the classes of the first fit only, {self.classes.tolist()}. "
                f"Received: y with {strange.tolist()}"
            )
        return found.astype("int32")

    def encode(self, y: np.ndarray, loss: Any, units: int) -> np.ndarray:
        """Targets for `loss`: a column of 0 and 1 for one unit, indices for sparse losses, else one-hot rows."""
        codes = self.codes(y)
        if units == 1:
            return codes[:, None].astype(keras.config.floatx())
        return np.eye(units, dtype=keras.config.floatx())[codes] if wants_one_hot(loss) else codes

    def default_loss(self, units: int, logits: bool) -> Any:
        """Cross-entropy for so many outputs, which are logits or probabilities."""
        if units == 1:
            return keras.losses.BinaryCrossentropy(from_logits=logits)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)

    def probabilities(self, outputs: np.ndarray, logits: bool) -> np.ndarray:
        """Shape `(n, classes)`; rows sum to 1."""
        if outputs.shape[1] > 1:
            return _softmax(outputs) if logits else outputs
        if len(self.classes) == 1:
            return np.ones_like(outputs)
        positive = _sigmoid(outputs) if logits else outputs
        return np.concatenate([1 - positive, positive], axis=1)

    def decide(self, outputs: np.ndarray, logits: bool) -> np.ndarray:
        """The likeliest class of each example."""
        if outputs.shape[1] > 1:
            return self.classes[outputs.argmax(axis=1)]
        # As argmax over the two probabilities would, ties go to the first class.
        positive = outputs[:, 0] > (0 if logits else 0.5)
        return self.classes[np.where(positive, len(self.classes) - 1, 0)]


class Indicator:
    """Any number of labels for each example: a matrix of 0 and 1."""

    kind = "multilabel-indicator"

    def __init__(self, y: np.ndarray) -> None:
        self.n_outputs = y.shape[1]
        self.dtype = y.dtype
        # What scikit-learn's scorers recognize as several labels; a flat array of two would pass for two classes.
        self.classes = [np.array([0, 1]) for _ in range(self.n_outputs)]

    @property
    def n_classes(self) -> list[int]:
        """Two for each label: there or not."""
        return [2] * self.n_outputs

    def units(self) -> tuple[int, ...]:
        """The numbers of units that the last layer may have."""
        return (self.n_outputs,)

    def codes(self, y: np.ndarray) -> np.ndarray:
        """The matrix; ValueError if it is another kind of target than in the first fit."""
        if y.ndim != 2 or y.shape[1] != self.n_outputs or type_of_target(y) != self.kind:
            raise ValueError(
                f"`y` must be a matrix of 0 and 1 with {self.n_outputs} columns, as in the first fit. "
                f"Received: y of shape {y.shape}"
            )
        return y

    def encode(self, y: np.ndarray, loss: Any, units: int) -> np.ndarray:
        """Targets for `loss`."""
        return self.codes(y).astype(keras.config.floatx())

    def default_loss(self, units: int, logits: bool) -> Any:
        """Cross-entropy, label by label."""
        return keras.losses.BinaryCrossentropy(from_logits=logits)

    def probabilities(self, outputs: np.ndarray, logits: bool) -> np.ndarray:
        """Shape `(n, labels)`: of each label's being there."""
        return _sigmoid(outputs) if logits else outputs

    def decide(self, outputs: np.ndarray, logits: bool) -> np.ndarray:
        """A matrix of 0 and 1, of the type that `fit` was given."""
        return (outputs > (0 if logits else 0.5)).astype(self.dtype)


class Numbers:
    """Regression: one number for each example, or several.

    Attributes:
        flat: whether `y` was one-dimensional, as predictions then are, too.
    """

    classes = None
    n_classes = None

    def __init__(self, y: np.ndarray) -> None:
        self.flat = y.ndim == 1
        self.n_outputs = 1 if self.flat else y.shape[1]
        self.dtype = y.dtype if y.dtype.kind == "f" else np.dtype("float64")

    @property
    def kind(self) -> str:
        """Scikit-learn's word."""
        return "continuous" if self.n_outputs == 1 else "continuous-multioutput"

    def units(self) -> tuple[int, ...]:
        """The numbers of units that the last layer may have."""
        return (self.n_outputs,)

    def encode(self, y: np.ndarray, loss: Any, units: int) -> np.ndarray:
        """Shape `(n, outputs)`."""
        if (1 if y.ndim == 1 else y.shape[1]) != self.n_outputs:
            raise ValueError(f"`y` must have {self.n_outputs} outputs, as in the first fit. Received: shape {y.shape}")
        return y.reshape(len(y), -1).astype(keras.config.floatx())

    def default_loss(self, units: int, logits: bool) -> Any:
        """The mean squared error."""
        return keras.losses.MeanSquaredError()

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions in the shape of `y`, and of its type; float64 for integers."""
        return (outputs[:, 0] if self.flat else outputs).astype(self.dtype)


class Target:
    """What one `y` asks of a model: one head, or one for each column where each column has classes of its own.

    Attributes:
        heads: what each output of the model answers: `Labels`, `Indicator` or `Numbers`.
        several: whether the model must have a list of outputs.
    """

    def __init__(self, heads: list[Any], several: bool = False) -> None:
        self.heads, self.several = heads, several

    @property
    def meta(self) -> tuple[str, int, Any]:
        """Type, number of outputs and number of classes, as `Meta` has them."""
        if self.several:
            return "multiclass-multioutput", len(self.heads), [head.n_classes for head in self.heads]
        (head,) = self.heads
        return head.kind, head.n_outputs, head.n_classes

    @property
    def classes(self) -> Any:
        """As scikit-learn has it in `classes_`."""
        return [head.classes for head in self.heads] if self.several else self.heads[0].classes

    def columns(self, y: np.ndarray) -> list[np.ndarray]:
        """The part of `y` that each head answers. Raises ValueError for another number than in the first fit."""
        if not self.several:
            return [y]
        if y.ndim != 2 or y.shape[1] != len(self.heads):
            raise ValueError(f"`y` must have {len(self.heads)} columns, as in the first fit. Received: {y.shape}")
        return list(y.T)

    def encode(self, y: np.ndarray, losses: list[Any], units: list[int]) -> Any:
        """Targets for Keras: an array, or a tuple of them, because tf.data takes a list for one tensor."""
        columns = self.columns(y)
        encoded = [head.encode(*rest) for head, *rest in zip(self.heads, columns, losses, units, strict=True)]
        return tuple(encoded) if self.several else encoded[0]


def classification_target(y: np.ndarray, classes: Any = None) -> Target:
    """Which kind of classification `y` asks for; `classes` are all there will be, where `y` has only some.

    Raises:
        ValueError: for targets that are no classes.
    """
    check_classification_targets(y)
    kind = type_of_target(y, input_name="y")
    if kind == "multilabel-indicator":
        return Target([Indicator(y)])
    if kind == "multiclass-multioutput":
        return Target([Labels(column) for column in y.T], several=True)
    return Target([Labels(y, classes)])


def wants_one_hot(loss: Any) -> bool:
    """Whether a loss of several classes compares rows of probabilities; sparse ones, and a user's own, take indices."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name.lower()
    if "sparse" in name:
        return False
    return "categorical" in name or isinstance(loss, str) or _is_of_keras(loss)


def gives_logits(loss: Any) -> bool:
    """Whether a loss says that the model's outputs are logits."""
    return isinstance(loss, keras.losses.Loss) and bool(loss.get_config().get("from_logits", False))


def _units(classes: int) -> int:
    return 1 if classes <= 2 else classes


def _is_of_keras(loss: Any) -> bool:
    home = loss.__module__ if hasattr(loss, "__name__") else type(loss).__module__
    return home.partition(".")[0] == "keras"


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
