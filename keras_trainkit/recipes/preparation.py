"""From a recipe to everything that its run needs, in memory. All that can be wrong with a run shows here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from keras_trainkit import data, distribution, optimizers, precision
from keras_trainkit.recipes import adjustments, batches, models, rates
from keras_trainkit.recipes.errors import RecipeError
from keras_trainkit.recipes.recipe import Recipe

# Biases, and the offsets and scales of normalizations.
NOT_DECAYED = [r"(^|/)(bias|beta|gamma|scale)$"]


@dataclass(frozen=True)
class Job:
    """A recipe made concrete: its data, its models, and the lengths that follow.

    `trained` is compiled under the recipe's strategy and takes encoded examples. `twin` is the same model without
    optimizer and strategy; it is given the trained weights to measure and save them. `complete` goes from raw values
    through `twin` to predictions. Training batches go through `maps`.
    """

    recipe: Recipe
    dataset: data.Dataset
    trained: keras.Model
    twin: keras.Model
    complete: keras.Model
    steps_per_epoch: int
    updates: int
    warmup_updates: int
    maps: tuple[Any, ...] = ()

    def batches(self) -> data.Batches:
        """The training data as the run sees it: whole batches, pass after pass."""
        recipe = self.recipe
        return data.Batches(
            *self.dataset.train, batch_size=recipe.batch_size, seed=recipe.seed, endless=True, maps=[*self.maps]
        )

    def headline(self) -> str:
        """What is about to run, for people."""
        recipe = self.recipe
        replicas = f", {recipe.replicas} replicas" if recipe.replicas > 1 else ""
        return (
            f"{self.trained.name} of {self.trained.count_params():,} weights, {recipe.optimizer_name}, "
            f"{recipe.precision}{replicas}; {recipe.epochs} epochs of {self.steps_per_epoch:,} steps, "
            f"{self.updates:,} updates"
        )

    def describe(self) -> dict[str, Any]:
        """What followed from the recipe, as plain values."""
        return {
            "data": self.dataset.describe(),
            "model": self.trained.name,
            "parameters": self.trained.count_params(),
            "steps_per_epoch": self.steps_per_epoch,
            "updates": self.updates,
            "warmup_updates": self.warmup_updates,
        }


def prepare(recipe: Recipe, dataset: data.Dataset | None = None) -> Job:
    """Reads and checks the data (unless given), builds, checks and compiles the model.

    Raises:
        RecipeError, keras_trainkit.data.DataError: in one line, what makes the run impossible.
    """
    if keras.backend.backend() != "tensorflow":
        raise RecipeError(
            f"training runs on TensorFlow, but Keras was told to run on {keras.backend.backend()} "
            "(KERAS_BACKEND, or keras.json): set KERAS_BACKEND=tensorflow"
        )
    # First of all: logical devices can be made only before TensorFlow is used.
    with _as_recipe_error():
        strategy = distribution.strategy(recipe.replicas)
    if dataset is None:
        dataset = data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    keras.utils.set_random_seed(recipe.seed)
    steps = batches.steps_per_epoch(len(dataset.train[0]), recipe.batch_size, recipe.accumulation)
    updates = steps * recipe.epochs // recipe.accumulation
    warmup = recipe.warmup_updates(updates)
    if warmup >= updates:
        raise RecipeError(
            f"`warmup` must be shorter than the run, which has {updates} updates. Received: warmup={warmup}"
        )
    classes = dataset.outputs if dataset.task == "classification" else None
    maps = tuple(adjustments.augmentations(recipe, classes, dataset.input_shape))
    with strategy.scope():
        trained, twin = models.build(recipe.model, dataset.input_shape, dataset.outputs)
        adjustments.adjust(trained, recipe)
    distribution.separate_seeds(trained)
    with _as_recipe_error("`model`: "):
        complete = dataset.attach(twin, softmax=True)
    with strategy.scope():
        trained.compile(make_optimizer(recipe, updates, warmup), **objective(dataset.task, soft=bool(maps)))
    return Job(recipe, dataset, trained, twin, complete, steps, updates, warmup, maps)


def make_schedule(recipe: Recipe, updates: int, warmup: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of each update: a ramp, then the recipe's schedule, which ends with the last update."""
    with _as_recipe_error("`schedule`: "):
        return rates.build(
            recipe.schedule_name,
            recipe.learning_rate,
            updates,
            warmup,
            updates / recipe.epochs,
            recipe.schedule_arguments,
        )


def make_optimizer(recipe: Recipe, updates: int, warmup: int) -> keras.optimizers.Optimizer:
    """The recipe's optimizer with its schedule, clipping, decay, accumulation and, in float16, loss scaling."""
    return optimizer_with(recipe, make_schedule(recipe, updates, warmup))


def optimizer_with(recipe: Recipe, schedule: Any) -> keras.optimizers.Optimizer:
    """The recipe's optimizer under another schedule."""
    with _as_recipe_error("`optimizer`: "):
        optimizer = optimizers.get(
            recipe.optimizer_name,
            learning_rate=schedule,
            weight_decay=recipe.weight_decay or None,
            weight_decay_exclude=NOT_DECAYED,
            global_clipnorm=recipe.global_clipnorm,
            gradient_accumulation_steps=recipe.accumulation,
            **recipe.optimizer_arguments,
        )
    return precision.LossScaleOptimizer(optimizer) if recipe.precision == "mixed_float16" else optimizer


def objective(task: str, soft: bool = False) -> dict[str, Any]:
    """The loss and the metrics of a task, as arguments of `compile`; `soft` if targets are rows of probabilities."""
    if task == "classification" and soft:
        return {
            "loss": keras.losses.CategoricalCrossentropy(from_logits=True),
            "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
        }
    if task == "classification":
        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        }
    return {"loss": keras.losses.MeanSquaredError(), "metrics": [keras.metrics.R2Score(name="r2")]}


@contextlib.contextmanager
def _as_recipe_error(prefix: str = "") -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(prefix + " ".join(str(error).split())) from error


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """The recipe's precision as Keras's policy for layers that are made inside."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision.policy(name))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
