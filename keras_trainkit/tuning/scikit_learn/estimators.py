"""`KerasClassifier` and `KerasRegressor`: Keras models as estimators of scikit-learn, with flat parameters."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, validation
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import type_of_target

from keras_trainkit.core import checks
from keras_trainkit.data.batches import Batches
from keras_trainkit.data.splits import split_rows
from keras_trainkit.tuning.scikit_learn import models as estimator_models
from keras_trainkit.tuning.scikit_learn.parameters import FlatParameters
from keras_trainkit.tuning.scikit_learn.targets import (
    Meta,
    Numbers,
    Target,
    classification_target,
    gives_logits,
)

_SMALLEST = 32
"""Rows of the smallest batch of a prediction: fewer are filled up, so that the number of rows changes no result."""

_WEIGHTS = (
    "batches are drawn by rows, so a row that is there twice comes in other batches than one of weight two, and "
    "float32 rounds; with all rows in one batch both train alike to 5 digits"
)

_FLAT = (
    "flat parameters are attributes like the others, but the check knows only those that the constructor names; "
    "without any it passes"
)


class KerasEstimator(FlatParameters, BaseEstimator):
    """What `KerasClassifier` and `KerasRegressor` share."""

    def __init__(
        self,
        model: Any = None,
        *,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        batch_size: int = 32,
        epochs: int = 1,
        callbacks: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        **parameters: Any,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.metrics = metrics
        self.batch_size = batch_size
        self.epochs = epochs
        self.callbacks = callbacks
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self._store_flat(parameters)

    # ---------------------------------------------------------------------------------------------------- training

    def _start(self, x: np.ndarray, target: Target, seed: int) -> None:
        """A new model for these data."""
        kind, n_outputs, n_classes = target.meta
        self.meta_ = Meta(x.shape[1:], kind, n_outputs, n_classes)
        self.model_ = estimator_models.make(self.model, self._routed("model"), self.meta_, x[:1])
        self._units = estimator_models.output_units(self.model_, target, x[:1])
        self._losses = estimator_models.compile_model(
            self.model_,
            target,
            self._units,
            (self.optimizer, self._routed("optimizer")),
            (self.loss, self._routed("loss")),
            self.metrics,
        )
        self._target, self._seed = target, seed
        self.history_: dict[str, list[float]] = {}

    def _train(self, x: np.ndarray, y: np.ndarray, weights: Any, target: Target | None, epochs: int) -> Any:
        """Trains a new model, or without `target` the one that is there, for so many epochs more."""
        batch_size = checks.integer("batch_size", self.batch_size, at_least=1)
        share = checks.number("validation_split", self.validation_split, at_least=0, below=1)
        done = 0 if target is not None else max(map(len, self.history_.values()), default=0)
        seed = check_random_state(self.random_state).randint(2**31 - 1) if target is not None else self._seed
        with estimator_models.seeded((seed + done) % 2**31):
            if target is not None:
                self._start(x, target, seed)
            encoded = self._target.encode(y, self._losses, self._units)
            train: Any = slice(None)
            held_out: Any = None
            if share:
                labels = None if self._target.several or y.ndim > 1 or self.meta_.n_classes is None else y
                train, held_out = split_rows(len(x), [share], seed, labels)
                if not len(train) or not len(held_out):
                    raise ValueError(
                        f"`validation_split` must leave rows to train on and to validate on. "
                        f"Received: validation_split={share} for {len(x)} rows"
                    )
            history = self.model_.fit(
                Batches(
                    *self._rows(x, encoded, weights, train),
                    batch_size=batch_size,
                    seed=seed + done,
                    shuffle=checks.boolean("shuffle", self.shuffle),
                ),
                initial_epoch=done,
                epochs=done + checks.integer("epochs", epochs, at_least=1),
                validation_data=None if held_out is None else self._rows(x, encoded, weights, held_out),
                validation_batch_size=batch_size,
                callbacks=self._callbacks(),
                verbose=self.verbose,
            )
        for name, values in history.history.items():
            self.history_.setdefault(name, []).extend(float(value) for value in values)
        return self

    def _rows(self, x: np.ndarray, encoded: Any, weights: Any, rows: Any) -> tuple[Any, Any, Any]:
        """These rows of all that Keras trains on; each output has weights of its own."""
        targets = keras.tree.map_structure(lambda part: part[rows], encoded)
        if weights is not None:
            weights = weights[rows].astype(keras.config.floatx())
            weights = (weights,) * len(targets) if self._target.several else weights
        return x[rows], targets, weights

    def _callbacks(self) -> list[Any]:
        given = self.callbacks
        if given is None:
            return []
        if callable(given) and not isinstance(given, (type, keras.callbacks.Callback)):
            return list(given())
        return estimator_models.fresh(list(given) if isinstance(given, (list, tuple)) else [given])

    def _goes_on(self) -> bool:
        return bool(self.warm_start) and hasattr(self, "model_")

    def _weights(self, sample_weight: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """The weight of each row as given, or None."""
        weights = None
        if sample_weight is not None:
            weights = validation._check_sample_weight(sample_weight, x, dtype="float64")
            if (weights < 0).any() or not weights.any():  # the latter is left to us before scikit-learn 1.9
                raise ValueError(
                    "`sample_weight` must be at least 0, and not zero for all rows. "
                    f"Received: weights from {weights.min()} to {weights.max()}"
                )
        class_weight = getattr(self, "class_weight", None)
        if class_weight is not None:
            by_class = compute_sample_weight(class_weight, y)
            weights = by_class if weights is None else weights * by_class
        return weights

    # -------------------------------------------------------------------------------------------------- prediction

    def _outputs(self, X: Any) -> list[np.ndarray]:
        """What each output of the model says about the rows."""
        validation.check_is_fitted(self)
        x = _inputs(_validated(self, X, reset=False))
        if x.shape[1:] != self.meta_.input_shape:
            raise ValueError(f"`X` must have rows of shape {self.meta_.input_shape}. Received: {x.shape[1:]}")
        size = min(self.batch_size, max(_SMALLEST, 2 ** math.ceil(math.log2(len(x)))))
        missing = -len(x) % size
        filled = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
        outputs = self.model_.predict(filled, batch_size=size, verbose=0)
        return [output[: len(x)] for output in (outputs if self._target.several else [outputs])]

    # ------------------------------------------------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:
            state["model_"] = estimator_models.Frozen.of(state["model_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        frozen = state.get("model_")
        if isinstance(frozen, estimator_models.Frozen):
            state = state | {"model_": frozen.thaw()}
        super().__setstate__(state)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        # The form that scikit-learn before 1.6 asks for.
        return {
            "multioutput": True,
            "X_types": ["2darray", "3darray"],
            "_xfail_checks": expected_failed_checks(self),
        }


class KerasClassifier(ClassifierMixin, KerasEstimator):
    """A classifier of scikit-learn around a function that returns a Keras model.

    The arguments of the function are parameters of the estimator: with `def build(units, dropout)` there are `units=`
    and `dropout=`, in the constructor, in `set_params` and in a grid. Arguments of the optimizer and the loss are
    parameters, too: `optimizer__learning_rate=`, `loss__label_smoothing=`. `model__epochs=` is an argument `epochs` of
    the function, where the estimator has a parameter of that name itself. If the function has an argument `meta`, it is
    given a `Meta`, from which it knows the shape of an example, the number of classes, and the units and the activation
    of its last layer.

    The function may compile its model. What is given here comes before that: an optimizer, or arguments for it,
    replaces the optimizer alone; a loss or metrics have the model compiled anew. Without a loss it is cross-entropy
    for what the targets are, of logits if the last layer is linear. For two classes the last layer has one unit or two,
    for more one for each.

    Labels may be numbers or strings; a matrix of 0 and 1 asks for any number of labels at once (`predict_proba` has a
    column for each); a matrix of classes for several classifications, one output of the model for each column
    (`predict_proba` is a list). Weights of rows and classes are scaled to a mean of 1: their ratios count.

    Every fit begins with a new model. With `random_state`, weights, order and dropout follow from it; the generators
    of the process are left as they were.

    Args:
        model: a function (or class) that returns a Keras model, or a model, of which every fit trains a copy, from the
            weights that it has.
        optimizer: a name of the kit's or Keras's, a configuration, a class, or an optimizer, of which every fit makes a
            new one. None takes the model's, or Adam.
        loss: as for `compile`; a name, a class or a loss. None takes the model's, or cross-entropy.
        metrics: as for `compile`.
        batch_size: rows in a batch, in training and in prediction.
        epochs: passes over the data; with `warm_start` so many more in each `fit`.
        callbacks: a list of callbacks, copied for each fit, of classes of such, or a function that returns a new list.
        validation_split: share of the rows that is kept for validation; drawn at random, with the classes' shares.
        shuffle: whether each epoch has an order of its own.
        class_weight: a dictionary from labels to weights, or "balanced".
        warm_start: whether another `fit` goes on with the model and its optimizer.
        random_state: an integer, a `RandomState`, or None, which draws from NumPy's global generator.
        verbose: as for Keras's `fit`.
        **parameters: arguments of the function, and with a prefix of optimizer and loss.

    Attributes:
        model_: the trained Keras model.
        history_: from names of losses and metrics to their values, epoch by epoch, over all fits that went on.
        classes_: the labels, sorted; a list of such where there are several outputs.
        meta_: what the function was told.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Raises:
        TypeError: for a parameter that nobody takes.

    Other errors come with `fit`, as scikit-learn has it. A pickle, and a deep copy, holds the model with its weights
    and the state of its optimizer: `partial_fit` goes on there. Classes of your own come along with the pickle.

    >>> import keras, numpy as np
    >>> def build(meta, units=8):
    ...     layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(meta.units, meta.activation)]
    ...     return keras.Sequential([keras.Input(meta.input_shape), *layers])
    >>> x = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> y = np.where(x[:, 0] > 0, "right", "left")
    >>> classifier = KerasClassifier(build, units=16, optimizer="radam", optimizer__learning_rate=0.1, epochs=20,
    ...                              random_state=0)
    >>> classifier.fit(x, y).predict([[-0.9], [0.9]]).tolist()
    ['left', 'right']
    >>> classifier.set_params(unit=3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: KerasClassifier has no parameter 'unit', and `model` takes no such argument. Did you mean 'units'...
    """

    def __init__(
        self,
        model: Any = None,
        *,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        batch_size: int = 32,
        epochs: int = 1,
        callbacks: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        class_weight: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__(
            model,
            optimizer=optimizer,
            loss=loss,
            metrics=metrics,
            batch_size=batch_size,
            epochs=epochs,
            callbacks=callbacks,
            validation_split=validation_split,
            shuffle=shuffle,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
            **parameters,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KerasClassifier:
        """Trains a new model; with `warm_start` the one that is there.

        Args:
            X: shape `(n, features)`, or `(n, ...)` for models of images or sequences.
            y: labels, shape `(n,)`; or `(n, outputs)`.
            sample_weight: shape `(n,)`, at least 0.
        """
        goes_on = self._goes_on()
        x, y = self._checked(X, y, reset=not goes_on)
        target = None if goes_on else classification_target(y)
        return self._fit(x, y, _mean_one(self._weights(sample_weight, x, y)), target, self.epochs)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> KerasClassifier:
        """One epoch over these rows, with the model that is there, or a new one. Weights count as they are.

        Args:
            X, y, sample_weight: as for `fit`.
            classes: all labels there will be; for the first call, if its `y` has not all of them.
        """
        first = not hasattr(self, "model_")
        x, y = self._checked(X, y, reset=first)
        target = classification_target(y, classes) if first else None
        return self._fit(x, y, self._weights(sample_weight, x, y), target, 1)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, in the shape that `y` had."""
        outputs = self._outputs(X)
        heads = zip(self._target.heads, outputs, map(gives_logits, self._losses), strict=True)
        decided = [head.decide(output, logits) for head, output, logits in heads]
        return np.stack(decided, axis=1) if self._target.several else decided[0]

    def predict_proba(self, X: Any) -> Any:
        """Probabilities, shape `(n, classes)`, in the order of `classes_`; a list of such for several outputs.

        Raises:
            ValueError: if the model's outputs are none: its last layer has neither sigmoid nor softmax, and its loss
                does not say `from_logits=True`.
        """
        outputs = self._outputs(X)
        heads = zip(self._target.heads, outputs, map(gives_logits, self._losses), strict=True)
        found = [_checked_probabilities(head.probabilities(output, logits)) for head, output, logits in heads]
        return found if self._target.several else found[0]

    def _fit(self, x: np.ndarray, y: np.ndarray, weights: Any, target: Target | None, epochs: int) -> KerasClassifier:
        self._train(x, y, weights, target, epochs)
        self.classes_ = self._target.classes
        return self

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        x, y = _validated(self, X, y, reset=reset, multi_output=True)
        if y.ndim == 2 and y.shape[1] == 1 and type_of_target(y) in ("binary", "multiclass"):
            y = validation.column_or_1d(y, warn=True)
        return _inputs(x), y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        return super()._more_tags() | {"multilabel": True}


class KerasRegressor(RegressorMixin, KerasEstimator):
    """A regressor of scikit-learn around a function that returns a Keras model.

    It takes what `KerasClassifier` takes, but no `class_weight`, and has the same attributes, but no `classes_`. The
    last layer has one unit, or one for each column of `y`; without a loss it is the mean squared error. Networks learn
    targets near 0 and 1 fastest: scikit-learn's `TransformedTargetRegressor` scales others.

    Args:
        model: a function that returns a Keras model, or a model. This and the others are as for `KerasClassifier`.
        validation_split: share of the rows that is kept for validation, drawn at random.
        **parameters: arguments of the function, and with a prefix of optimizer and loss.

    >>> import keras, numpy as np
    >>> def build(units=8):
    ...     return keras.Sequential([keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)])
    >>> x = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> regressor = KerasRegressor(build, optimizer__learning_rate=0.03, batch_size=8, epochs=10, random_state=0)
    >>> regressor.fit(x, x[:, 0] / 2).score(x, x[:, 0] / 2) > 0.9
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KerasRegressor:
        """Trains a new model; with `warm_start` the one that is there.

        Args:
            X: shape `(n, features)`, or `(n, ...)` for models of images or sequences.
            y: shape `(n,)` or `(n, outputs)`.
            sample_weight: shape `(n,)`, at least 0.
        """
        goes_on = self._goes_on()
        x, y = self._checked(X, y, reset=not goes_on)
        target = None if goes_on else Target([Numbers(y)])
        return self._train(x, y, _mean_one(self._weights(sample_weight, x, y)), target, self.epochs)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> KerasRegressor:
        """One epoch over these rows, with the model that is there, or a new one. Weights count as they are."""
        first = not hasattr(self, "model_")
        x, y = self._checked(X, y, reset=first)
        return self._train(x, y, self._weights(sample_weight, x, y), Target([Numbers(y)]) if first else None, 1)

    def predict(self, X: Any) -> np.ndarray:
        """Shape `(n,)`, or `(n, outputs)` if `y` had columns."""
        (outputs,) = self._outputs(X)
        return self._target.heads[0].decide(outputs)

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        x, y = _validated(self, X, y, reset=reset, multi_output=True, y_numeric=True)
        return _inputs(x), y


def expected_failed_checks(estimator: Any) -> dict[str, str]:
    """Which checks of scikit-learn's `check_estimator` cannot hold, and why; in the form that it takes.

    >>> sorted(expected_failed_checks(KerasRegressor()))
    ['check_sample_weight_equivalence_on_dense_data', 'check_sample_weights_invariance']
    """
    # The second is the name before scikit-learn 1.6.
    names = ["check_sample_weight_equivalence_on_dense_data", "check_sample_weights_invariance"]
    found = dict.fromkeys(names, _WEIGHTS)
    if estimator._flat_names():
        found["check_no_attributes_set_in_init"] = _FLAT
    return found


def _validated(estimator: Any, *arrays: Any, **options: Any) -> Any:
    """`X`, or `X` and `y`, checked as scikit-learn does; also after a fit, by what was learned there."""
    if hasattr(validation, "validate_data"):
        return validation.validate_data(estimator, *arrays, allow_nd=True, **options)
    return estimator._validate_data(*arrays, allow_nd=True, **options)  # before 1.6


def _inputs(x: np.ndarray) -> np.ndarray:
    """Numbers as Keras wants them: integers stay, because they may be indices."""
    return x if x.dtype.kind in "iu" else x.astype(keras.config.floatx())


def _mean_one(weights: np.ndarray | None) -> np.ndarray | None:
    return None if weights is None else weights / weights.mean()


def _checked_probabilities(found: np.ndarray) -> np.ndarray:
    if found.min() < -1e-6 or found.max() > 1 + 1e-6:
        raise ValueError(
            "`model` must end with probabilities (sigmoid or softmax), or `loss` must say `from_logits=True`. "
            f"Received: outputs from {found.min():.3g} to {found.max():.3g}"
        )
    return found
