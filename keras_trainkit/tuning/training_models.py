"""What trains in the trials of a training search: a recipe on its data, or a user's model with the recipe's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np

from keras_trainkit.callbacks import ResolveSpans
from keras_trainkit.data import Batches, Dataset, OneHot
from keras_trainkit.recipes import Recipe, adjustments, preparation, rates
from keras_trainkit.recipes.epochs import Validation
from keras_trainkit.recipes.evaluation import Evaluator
from keras_trainkit.recipes.runner import evaluation_weights
from keras_trainkit.tuning.training_space import TrainingSpace


class RecipeModel(keras_tuner.HyperModel):
    """Trains as a recipe says but for what is searched; a trial's epochs are those of `recipes.run`, to the last bit.

    Args:
        recipe: what holds where nothing is searched.
        space: what is searched.
        dataset: the recipe's data.
    """

    declares_all = True

    def __init__(self, recipe: Recipe, space: TrainingSpace, dataset: Dataset) -> None:
        super().__init__(name=recipe.name)
        self.recipe, self.space, self.dataset = recipe, space, dataset
        self._job: preparation.Job | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_job": None}  # models stay where they are

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Registers the whole space, before any trial."""
        self.space.declare(hp, self.recipe, self.dataset)

    def recipe_of(self, hp: keras_tuner.HyperParameters) -> Recipe:
        """The recipe of a trial."""
        return self.space.recipe(hp.values, self.recipe)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The trial's model, compiled."""
        if not hp.values:
            self.declare_hyperparameters(hp)
        recipe = self.recipe_of(hp)
        with preparation.dtype_policy(recipe.precision):
            self._job = preparation.prepare(recipe, self.dataset)
        return self._job.trained

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        epochs: int | None = None,
        initial_epoch: int = 0,
        verbose: Any = 0,
    ) -> keras.callbacks.History:
        """Trains for the recipe's epochs, or for fewer of them, with exact validation after each."""
        job = self._job
        assert job is not None and job.trained is model
        last = job.recipe.epochs if epochs is None else min(epochs, job.recipe.epochs)
        batches = job.batches()
        with preparation.dtype_policy(job.recipe.precision):
            return model.fit(
                batches,
                initial_epoch=initial_epoch,
                epochs=last,
                steps_per_epoch=job.steps_per_epoch,
                callbacks=[
                    *evaluation_weights(job),
                    Validation(job.twin, Evaluator(job.twin, job.dataset)),
                    *callbacks,
                ],
                shuffle=False,
                verbose=0,
            )


class TrainingModel(keras_tuner.HyperModel):
    """A model of yours, compiled and trained as a point of a `TrainingSpace` says.

    Your function may have hyperparameters of its own; they are searched together with the training's. What `fit` is
    given, by `tuner.search`, are arrays: then batch sizes and augmentation can be searched. With a `tf.data.Dataset` or
    a generator they cannot, and an error says so.

    Args:
        build: a function of the hyperparameters, or a `keras_tuner.HyperModel`, for a model that is built and not
            compiled.
        space: what of the training is searched.
        loss, metrics, weighted_metrics: as for `compile`. With augmentation or label smoothing of classes the loss must
            take rows of probabilities, and so must the metrics.
        recipe: what holds where nothing is searched; its `data`, `model` and `replicas` do not count here. Its
            `warmup` is a share of the run.
        classes: how many there are, if integer labels are to be augmented or smoothed.

    Raises:
        ValueError: a warm-up in updates; in a search, a model that is compiled or not built.

    >>> def build(hp):
    ...     units = hp.Choice("units", [8, 16])
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(1)])
    >>> space = TrainingSpace(optimizer=["adamw", "lion"], learning_rate="auto", batch_size=[16, 32])
    >>> hp = keras_tuner.HyperParameters()
    >>> model = TrainingModel(build, space, loss="mse").build(hp)
    >>> sorted(hp.values)
    ['batch_size', 'learning_rate', 'optimizer', 'units']
    """

    def __init__(
        self,
        build: Callable[[keras_tuner.HyperParameters], keras.Model] | keras_tuner.HyperModel,
        space: TrainingSpace,
        *,
        loss: Any,
        metrics: Any = None,
        weighted_metrics: Any = None,
        recipe: Recipe | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe or Recipe()
        self.space, self.classes = space, classes
        self._model_of = build.build if isinstance(build, keras_tuner.HyperModel) else build
        self._compiled_with = {"loss": loss, "metrics": metrics, "weighted_metrics": weighted_metrics}
        if self.recipe.warmup >= 1:
            raise ValueError(
                "`recipe` must have a warm-up that is a share of the run, below 1, since its length is not known here. "
                f"Received: warmup={self.recipe.warmup}"
            )

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Registers the training's part of the space; the model's own is found when it is built."""
        self.space.declare(hp, self.recipe)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The model, compiled as the hyperparameters say."""
        if not any(name in hp.values for name in self.space.searched):
            self.declare_hyperparameters(hp)
        recipe = self.space.recipe(hp.values, self.recipe)
        with preparation.dtype_policy(recipe.precision):
            model = self._model_of(hp)
            if model.compiled or not model.built:
                state = "compiled" if model.compiled else "not built"
                raise ValueError(
                    "`build` must return a model that is built, with an input shape, and not compiled. "
                    f"Received: a model that is {state}"
                )
            adjustments.adjust(model, recipe)
            schedule = rates.in_spans(
                recipe.schedule_name, recipe.learning_rate, recipe.warmup, recipe.schedule_arguments
            )
            model.compile(preparation.optimizer_with(recipe, schedule), **self._compiled_with)
        return model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        x: Any = None,
        y: Any = None,
        *,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains; arguments of `search` win over the recipe's where both speak of epochs or batches."""
        recipe = self.space.recipe(hp.values, self.recipe)
        kwargs.setdefault("epochs", recipe.epochs)
        callbacks = [ResolveSpans(epochs=recipe.epochs), *callbacks]
        if not _are_arrays(x) or y is None:
            for name in ("batch_size", "augmentation", "label_smoothing"):
                if name in self.space.searched:
                    raise keras_tuner.errors.FatalValueError(
                        f"`{name}` can be searched with arrays alone, as in `search(x, y)`. "
                        f"Received: x of type {type(x).__name__}, y of type {type(y).__name__}"
                    )
            return model.fit(x, y, callbacks=callbacks, **kwargs)
        kwargs.setdefault("batch_size", recipe.batch_size)
        y = self._rows(y)
        if kwargs.get("validation_data") is not None and _are_arrays(kwargs["validation_data"]):
            inputs, targets, *weights = kwargs["validation_data"]
            kwargs["validation_data"] = (inputs, self._rows(targets), *weights)
        maps = adjustments.augmentations(recipe, self.classes, tuple(np.shape(keras.tree.flatten(x)[0])[1:]))
        if not maps:
            return model.fit(x, y, callbacks=callbacks, **kwargs)
        weights, split = kwargs.pop("sample_weight", None), kwargs.pop("validation_split", 0.0)
        if split:
            # As Keras does: the last rows, before any are mixed.
            count = int(len(keras.tree.flatten(x)[0]) * (1 - split))
            held_out = tuple(_rows_of(part, slice(count, None)) for part in (x, y, weights) if part is not None)
            kwargs["validation_data"] = held_out
            x, y, weights = (_rows_of(part, slice(count)) for part in (x, y, weights))
        batches = Batches(x, y, weights, batch_size=kwargs.pop("batch_size"), seed=recipe.seed, maps=maps)
        return model.fit(batches, callbacks=callbacks, **kwargs)

    def _rows(self, y: Any) -> Any:
        """Labels as rows of probabilities, if it was said how many classes there are."""
        return y if self.classes is None else OneHot(self.classes)(0, (y, y))[1]


def _are_arrays(parts: Any) -> bool:
    return all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(parts))


def _rows_of(part: Any, rows: slice) -> Any:
    return None if part is None else keras.tree.map_structure(lambda leaf: leaf[rows], part)
