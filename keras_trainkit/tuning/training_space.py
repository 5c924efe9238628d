"""`TrainingSpace`: what of a training is searched, in one line; and the recipe that a point of it stands for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras_tuner

from keras_trainkit.core import checks
from keras_trainkit.data import Dataset
from keras_trainkit.recipes import Recipe, catalog
from keras_trainkit.tuning import training_ranges as ranges
from keras_trainkit.tuning.training_ranges import KEYS, STRENGTH, Range, Values

_WHOLE = ("batch_size", "epochs", "accumulation")
# What a recipe's None stands for.
_WITHOUT = {"regularizer": "none", "augmentation": "none", "initializer": "glorot_uniform"}
_READY: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1, ("learning_rate",)),
    (10, ("weight_decay", "batch_size")),
    (25, ("optimizer", "schedule", "warmup")),
    (60, ("dropout", "label_smoothing", "augmentation", "arguments")),
    (150, ("regularizer", "initializer", "global_clipnorm", "accumulation")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpace:
    """What of a training is searched. All else is as in the recipe, or the model, that the search begins with.

    Each argument is `"auto"`, the kit's own range for it; a list of values; a pair (low, high), under which rates,
    decays and sizes are spaced by factors; a `Range`; or one value, which then is the same in all trials.

    Args:
        optimizer: names, see `optimizers.list()`. With `"auto"` for the keys below each has ranges of its own.
        learning_rate: the highest of the schedule. `"auto"` is from a tenth of the optimizer's own rate to thirty times
            of it.
        schedule: names, see `recipes.rates.SCHEDULES`.
        warmup: share of the run, from 0 to below 1.
        weight_decay, global_clipnorm: as in `Recipe`. `"auto"` gives optimizers of small rates a larger decay.
        batch_size, epochs, accumulation: whole numbers. `"auto"` for epochs is from half of them to twice as many.
        precision: names, as in `Recipe`.
        dropout: the rate of all layers of dropout in the model.
        initializer: names, for kernels that the model leaves to Keras's default.
        regularizer: names, and `"none"`; on kernels that have none.
        regularizer_strength: of each of them but `"none"`; from 1e-6 to 1e-2 if nothing is said.
        augmentation: `"none"`, `"mixup"`, `"cutmix"`.
        label_smoothing: from 0 to below 1.
        arguments: of the optimizer, a mapping of names to values such as `{"beta_2": [0.95, 0.99]}`; each is searched
            with the optimizers that take it. `"auto"` is the averages of each: `beta_1`, `beta_2`, `momentum`, `rho`.

    Raises:
        TypeError, ValueError: a name that is not known, or values out of their range.

    >>> space = TrainingSpace(optimizer=["adamw", "lion"], learning_rate="auto", batch_size=[32, 64])
    >>> space.searched
    ['optimizer', 'learning_rate', 'batch_size']
    """

    optimizer: Any = None
    learning_rate: Any = None
    schedule: Any = None
    warmup: Any = None
    weight_decay: Any = None
    global_clipnorm: Any = None
    batch_size: Any = None
    epochs: Any = None
    accumulation: Any = None
    precision: Any = None
    dropout: Any = None
    initializer: Any = None
    regularizer: Any = None
    regularizer_strength: Any = None
    augmentation: Any = None
    label_smoothing: Any = None
    arguments: Any = None

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            given = getattr(self, name)
            if given is not None:
                value = given if given == "auto" else ranges.values_of(name, given, key.sampling)
                object.__setattr__(self, name, self._checked(name, value))
        if self.regularizer_strength is not None:
            strength = ranges.values_of("regularizer_strength", self.regularizer_strength, "log")
            object.__setattr__(self, "regularizer_strength", strength)
            if self.regularizer is None:
                raise ValueError(
                    "`regularizer_strength` needs a `regularizer`. Received: regularizer=None, "
                    f"regularizer_strength={strength!r}"
                )
        if isinstance(self.arguments, Mapping):
            given = {name: ranges.values_of(name, values) for name, values in self.arguments.items()}
            object.__setattr__(self, "arguments", given)
        elif self.arguments not in (None, "auto"):
            raise TypeError(f"`arguments` must be a mapping or 'auto'. Received: arguments={self.arguments!r}")

    def _checked(self, name: str, value: Any) -> Any:
        if value == "auto":
            return value
        if isinstance(value, Range):
            if KEYS[name].names or name in ("optimizer", "initializer", "regularizer"):
                raise TypeError(f"`{name}` must be names. Received: {name}={value!r}")
            if name in _WHOLE and not value.whole:
                raise TypeError(f"`{name}` must be whole numbers. Received: {name}={value!r}")
            ends: tuple[Any, ...] = (value.low, value.high)
        else:
            ends = value
        if name == "optimizer":
            known = catalog.optimizer_names()
            return tuple(checks.one_of(name, str(each).lower(), known) for each in ends)
        for each in ends:
            # A recipe says what is wrong with a value, in its own words.
            Recipe(**{name: each, **({"optimizer": "adamw"} if name == "learning_rate" else {})})
        return value

    @classmethod
    def ready(cls, trials: int) -> TrainingSpace:
        """The space for a number of trials: under 10 the rate alone; from 10, 25, 60 and 150 on more and more.

        Few trials say little about many things; a rate that fits is worth more than all else.

        >>> TrainingSpace.ready(20).searched
        ['learning_rate', 'weight_decay', 'batch_size']
        """
        checks.integer("trials", trials, at_least=1)
        return cls(**{name: "auto" for least, names in _READY if trials >= least for name in names})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSpace:
        """The space of a JSON or YAML file: lists are choices, `{"low": ..., "high": ...}` are ranges."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                hint = checks.did_you_mean(key, known) or f". The keys are {', '.join(known)}"
                raise ValueError(f"a training space has no key {key!r}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The space as plain values, ready for JSON; `from_dict` reads it back."""

        def plain(value: Any) -> Any:
            if isinstance(value, Range):
                return dataclasses.asdict(value)
            return list(value) if isinstance(value, tuple) else value

        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.arguments, dict):
            found["arguments"] = {name: plain(values) for name, values in self.arguments.items()}
        return {name: plain(value) for name, value in found.items() if value is not None}

    @property
    def searched(self) -> list[str]:
        """The names of the keys that are searched, in the order in which they are drawn."""
        names = [*KEYS, "arguments"]
        return [name for name in names if getattr(self, name) is not None]

    # In a search

    def declare(
        self, hp: keras_tuner.HyperParameters, base: Recipe | None = None, dataset: Dataset | None = None
    ) -> None:
        """Registers everything that is searched, with the recipe's values as defaults.

        Args:
            hp: of the search, or of a trial.
            base: what holds where nothing is searched.
            dataset: what is trained on; of `"auto"` it leaves out what does not go with it: batches that leave less
                than 16 updates in an epoch, cutmix where there are no images.
        """
        base = base or Recipe()
        optimizers = self._optimizers(base)
        if self.optimizer is not None:
            _declare(hp, "optimizer", optimizers, base.optimizer_name)
        for name in KEYS:
            values = getattr(self, name)
            if name == "optimizer" or values is None:
                continue
            if values == "auto" and name in ("learning_rate", "weight_decay"):
                self._declare_for_each(hp, name, optimizers, base)
            else:
                _declare(hp, name, self._values(name, base, dataset), getattr(base, name))
            if name == "regularizer":
                self._declare_strength(hp, base, dataset)
        self._declare_arguments(hp, optimizers, base)

    def recipe(self, values: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
        """The recipe that the values of a trial stand for.

        Where another optimizer than the recipe's is taken, and its rate or schedule is not searched, it has its own.

        >>> TrainingSpace(optimizer=["adamw", "lion"]).recipe({"optimizer": "lion"}).learning_rate
        0.0001
        """
        base = base or Recipe()
        found = base.to_dict()
        name = values.get("optimizer", base.optimizer_name)
        arguments = base.optimizer_arguments if name == base.optimizer_name else {}
        if name != base.optimizer_name:
            found |= {"learning_rate": None, "schedule": None}
        found |= {key: values[key] for key in KEYS if key in values and key != "optimizer"}
        arguments |= {key: values[key] for key in self._argument_names() if key in values}
        found["optimizer"] = {"name": name, **arguments} if arguments else name
        regularizer = values.get("regularizer")
        if regularizer not in (None, "none") and "regularizer_strength" in values:
            from keras_trainkit.recipes import adjustments

            argument = adjustments.strength_argument(regularizer)
            found["regularizer"] = {"name": regularizer, argument: values["regularizer_strength"]}
        return Recipe.from_dict(found)

    def start_point(self, base: Recipe, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The recipe as a point of the space, as far as it lies inside; what is left open is sampled.

        Args:
            base: the recipe.
            hp: what `declare` has registered.
        """
        found: dict[str, Any] = {}
        for parameter in hp.space:
            active = all(condition.is_active(found) for condition in parameter.conditions)
            own = self._own_value(parameter.name, base)
            if active and own is not None and _takes(parameter, own):
                found[parameter.name] = own
        return found

    def _own_value(self, name: str, base: Recipe) -> Any:
        if name == "optimizer":
            return base.optimizer_name
        if name in _WITHOUT:
            return getattr(base, name) or _WITHOUT[name]
        if name == "schedule":
            return base.schedule_name
        if name in KEYS:
            return getattr(base, name)
        own = catalog.own_defaults(base.optimizer_name) | base.optimizer_arguments
        return own.get(name)

    def _optimizers(self, base: Recipe) -> tuple[str, ...]:
        if self.optimizer is None:
            return (base.optimizer_name,)
        found = KEYS["optimizer"].auto if self.optimizer == "auto" else self.optimizer
        assert isinstance(found, tuple)
        return found

    def _values(self, name: str, base: Recipe, dataset: Dataset | None) -> Values:
        values = getattr(self, name)
        if values == "auto" and name == "epochs":
            return Range(max(1, base.epochs // 2), max(2, base.epochs * 2), "log")
        if values != "auto":
            return values
        chosen = KEYS[name].auto
        assert chosen is not None
        if name == "batch_size" and isinstance(chosen, tuple):
            fitting = [size for size in chosen if size % base.replicas == 0]
            largest = math.inf if dataset is None else len(dataset.train[0]) / (16 * base.accumulation)
            return tuple(size for size in fitting if size <= largest) or (base.batch_size,)
        if name == "augmentation" and isinstance(chosen, tuple) and dataset and len(dataset.input_shape) != 3:
            return tuple(name for name in chosen if name != "cutmix")
        return chosen

    def _declare_for_each(
        self, hp: keras_tuner.HyperParameters, name: str, optimizers: tuple[str, ...], base: Recipe
    ) -> None:
        ranges_of = ranges.rates_of if name == "learning_rate" else ranges.decays_of
        for optimizer in optimizers:
            own = base if optimizer == base.optimizer_name else Recipe(optimizer=optimizer)
            with self._under(hp, [optimizer]):
                _declare(hp, name, ranges_of(optimizer), getattr(own, name))

    def _declare_strength(self, hp: keras_tuner.HyperParameters, base: Recipe, dataset: Dataset | None) -> None:
        values = self._values("regularizer", base, dataset)
        assert isinstance(values, tuple)
        real = [name for name in values if name != "none"]
        strength = STRENGTH if self.regularizer_strength is None else self.regularizer_strength
        with _scope(hp, "regularizer", real if len(values) > 1 else None):
            _declare(hp, "regularizer_strength", strength, None)

    def _declare_arguments(self, hp: keras_tuner.HyperParameters, optimizers: tuple[str, ...], base: Recipe) -> None:
        if self.arguments is None:
            return
        if self.arguments == "auto":
            for optimizer in optimizers:
                for name, values in ranges.arguments_of(optimizer).items():
                    with self._under(hp, [optimizer]):
                        _declare(hp, name, values, catalog.own_defaults(optimizer)[name])
            return
        for name, values in self.arguments.items():
            taking = [each for each in optimizers if name in catalog.own_defaults(each)]
            if not taking:
                raise ValueError(f"`arguments`: none of {', '.join(optimizers)} takes {name!r}")
            with self._under(hp, taking if len(taking) < len(optimizers) else None):
                _declare(hp, name, values, catalog.own_defaults(taking[0])[name])

    def _argument_names(self) -> list[str]:
        if isinstance(self.arguments, dict):
            return list(self.arguments)
        return [] if self.arguments is None else list(ranges.ARGUMENTS)

    @contextlib.contextmanager
    def _under(self, hp: keras_tuner.HyperParameters, optimizers: list[str] | None) -> Iterator[None]:
        several = self.optimizer is not None and len(self._optimizers(Recipe())) > 1
        with _scope(hp, "optimizer", optimizers if several else None):
            yield


@contextlib.contextmanager
def _scope(hp: keras_tuner.HyperParameters, parent: str, values: list[str] | None) -> Iterator[None]:
    if values is None:
        yield
        return
    with hp.conditional_scope(parent, values):
        yield


def _declare(hp: keras_tuner.HyperParameters, name: str, values: Values, default: Any) -> None:
    if isinstance(values, Range):
        inside = default if values.holds(default) else None
        make = hp.Int if values.whole else hp.Float
        make(name, values.low, values.high, step=values.step, sampling=values.sampling, default=inside)
    elif len(values) == 1:
        hp.Fixed(name, values[0])
    else:
        if any(isinstance(value, float) for value in values):
            values = tuple(float(value) for value in values)
        hp.Choice(name, list(values), default=default if default in values else values[0])


def _takes(parameter: Any, value: Any) -> bool:
    from keras_trainkit.tuning import spaces

    if spaces.distribution(parameter) is None:
        return False
    try:
        spaces.to_study(parameter, value)
    except (TypeError, ValueError):
        return False
    return True
