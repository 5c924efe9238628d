"""Recipe: everything that decides a training run, checked as soon as it is given; from options, JSON or YAML."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.recipes import catalog
from keras_trainkit.recipes.errors import RecipeError
from keras_trainkit.recipes.rates import SCHEDULES, plain_name

AUGMENTATIONS = ("mixup", "cutmix")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16", "bfloat16", "float64")

# Arguments of an optimizer that the recipe decides through keys of its own.
_OWN_OPTIMIZER_KEYS = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "global_clipnorm": "global_clipnorm",
    "gradient_accumulation_steps": "accumulation",
}
# YAML 1.1 readers take 1e-3 for text, because it has no dot.
_BARE_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Recipe:
    """What a run trains on, with which model, and how. Two runs of one recipe on one machine give the same model.

    Args:
        data: a file, `.npz` or CSV (see `keras_trainkit.data.load`); None is scikit-learn's digits.
        target: the column of a CSV file that is to be predicted.
        model: `module:function`, called as `function(input_shape, outputs)` (see `recipes.models.from_function`);
            None is a convolutional net for images and a multilayer perceptron for vectors.
        optimizer: a name (`keras-trainkit list optimizers`), or a mapping of `name` and further arguments of that
            optimizer, such as `{"name": "adam", "beta_2": 0.95}`.
        learning_rate: the highest rate of the schedule, above 0; None is 0.002 for AdamW, and for any other optimizer
            its own default.
        schedule: a name (see `recipes.rates.SCHEDULES`), or a mapping of `name` and further arguments of that schedule,
            such as `{"name": "wsd", "decay_steps": "0.3run"}`. It spans what the warm-up leaves of the run: `"cosine"`
            falls to 0 at the last update, `"constant"` stays. None is `"constant"` for optimizers that are made to go
            without one, and `"cosine"` for all others.
        warmup: how long the rate rises from 0 to `learning_rate`: below 1 a share of all updates, from 1 on a number
            of updates.
        weight_decay: decoupled, at least 0; biases and the scales of normalizations are left alone.
        global_clipnorm: largest norm of the gradient over all weights, above 0; None does not clip.
        precision: `"float32"`, `"mixed_float16"` (with dynamic loss scaling), `"mixed_bfloat16"`, `"bfloat16"` or
            `"float64"`; see `precision.policy`.
        replicas: devices that share each batch; logical CPUs where there is no GPU.
        batch_size: examples of one step over all replicas; a multiple of `replicas`.
        accumulation: steps whose gradients are averaged into one update.
        seed: of the split, the order, the initial weights and dropout.
        epochs: passes over the training data.
        dropout: the rate of all layers of dropout in the model, from 0 to below 1; None leaves each its own.
        initializer: what kernels begin with that the model leaves to Keras's default: the name of an initializer of the
            kit or of Keras, or a mapping of `name` and its arguments.
        regularizer: a penalty on every kernel that has none, as a name or a mapping, such as
            `{"name": "l2", "l2": 1e-4}`. It is part of the training loss, not of the validation loss.
        augmentation: `"mixup"` or `"cutmix"` (images), or a mapping of the name and its arguments, such as
            `{"name": "mixup", "alpha": 0.2}`.
        label_smoothing: how far targets of classes move towards all being alike, from 0 to below 1.

    Raises:
        RecipeError: an argument out of its range, or a name that is not known; the message offers near names.

    >>> Recipe(optimizer="radam", epochs=5).to_dict()["optimizer"]
    'radam'
    >>> Recipe(optimizer="lin")
    Traceback (most recent call last):
    ...
    keras_trainkit.recipes.errors.RecipeError: no optimizer is called 'lin'. Did you mean 'lion'?
    """

    data: str | None = None
    target: str | None = None
    model: str | None = None
    optimizer: str | dict[str, Any] = "adamw"
    learning_rate: float = None  # type: ignore[assignment]  # the check fills both in
    schedule: str | dict[str, Any] = None  # type: ignore[assignment]
    warmup: float = 0.1
    weight_decay: float = 0.01
    global_clipnorm: float | None = 1.0
    precision: str = "float32"
    replicas: int = 1
    batch_size: int = 32
    accumulation: int = 1
    seed: int = 0
    epochs: int = 20
    dropout: float | None = None
    initializer: str | dict[str, Any] | None = None
    regularizer: str | dict[str, Any] | None = None
    augmentation: str | dict[str, Any] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        try:
            for name, value in self._checked().items():
                object.__setattr__(self, name, value)
        except RecipeError:
            raise
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error)) from None

    def _checked(self) -> dict[str, Any]:
        if self.target is not None and self.data is None:
            raise RecipeError(
                f"`target` names a column of a CSV file, so it needs `data`. Received: target={self.target!r}"
            )
        clip, optimizer = self.global_clipnorm, _optimizer(self.optimizer)
        name = optimizer if isinstance(optimizer, str) else optimizer["name"]
        rate = _own_rate(name) if self.learning_rate is None else self.learning_rate
        schedule = catalog.own_schedule(name) if self.schedule is None else self.schedule
        values = {
            **{name: _optional_text(name, getattr(self, name)) for name in ("data", "target")},
            "model": _model(self.model),
            "optimizer": optimizer,
            "learning_rate": checks.number("learning_rate", rate, above=0),
            "schedule": _schedule(schedule),
            "warmup": checks.number("warmup", self.warmup, at_least=0),
            "weight_decay": checks.number("weight_decay", self.weight_decay, at_least=0),
            "global_clipnorm": None if clip is None else checks.number("global_clipnorm", clip, above=0),
            "precision": checks.one_of("precision", self.precision, PRECISIONS),
            "seed": checks.integer("seed", self.seed, at_least=0, at_most=2**32 - 1),
            "dropout": None if self.dropout is None else checks.number("dropout", self.dropout, at_least=0, below=1),
            "initializer": _named("initializer", self.initializer),
            "regularizer": _named("regularizer", self.regularizer),
            "augmentation": _augmentation(self.augmentation),
            "label_smoothing": checks.number("label_smoothing", self.label_smoothing, at_least=0, below=1),
        }
        for name in ("replicas", "batch_size", "accumulation", "epochs"):
            values[name] = checks.integer(name, getattr(self, name), at_least=1)
        if values["warmup"] > 1 and not values["warmup"].is_integer():
            raise RecipeError(f"`warmup` from 1 on is a whole number of updates. Received: warmup={self.warmup!r}")
        if values["batch_size"] % values["replicas"]:
            raise RecipeError(
                "`batch_size` must be a multiple of `replicas`, so that every replica gets as much. "
                f"Received: batch_size={self.batch_size!r}, replicas={self.replicas!r}"
            )
        return values

    @property
    def name(self) -> str:
        """A short name for the run: that of its data, without folder and endings."""
        return "digits" if self.data is None else Path(self.data).name.partition(".")[0] or "data"

    @property
    def optimizer_name(self) -> str:
        """The optimizer's name, however it was given."""
        return self.optimizer if isinstance(self.optimizer, str) else self.optimizer["name"]

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """The optimizer's arguments beyond the recipe's own keys."""
        if isinstance(self.optimizer, str):
            return {}
        return {key: value for key, value in self.optimizer.items() if key != "name"}

    @property
    def schedule_name(self) -> str:
        """The schedule's name, however it was given."""
        return self.schedule if isinstance(self.schedule, str) else self.schedule["name"]

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """The schedule's arguments beyond the recipe's own keys."""
        if isinstance(self.schedule, str):
            return {}
        return {key: value for key, value in self.schedule.items() if key != "name"}

    def warmup_updates(self, updates: int) -> int:
        """Updates of warm-up in a run of so many updates.

        >>> Recipe(warmup=0.1).warmup_updates(400), Recipe(warmup=25).warmup_updates(400)
        (40, 25)
        """
        return round(self.warmup * updates) if self.warmup < 1 else int(self.warmup)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, ready for JSON; `Recipe.from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe of the given keys; the others keep their defaults. An unknown key is an error with near names."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                hint = checks.did_you_mean(key, known) or f". The keys are {', '.join(known)}"
                raise RecipeError(f"a recipe has no key {key!r}{hint}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """The recipe in a file: see `read_file`."""
        return cls.from_dict(read_file(path))


def read_file(path: str | Path) -> dict[str, Any]:
    """The keys of a recipe file, unchecked: JSON, or YAML (`.yaml`, `.yml`; needs PyYAML, the extra `yaml`).

    The `recipe.json` of a run directory is such a file too: its `recipe` is taken. Paths inside are relative to the
    working directory, as they are on the command line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"no such recipe file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"the recipe file {path} cannot be read: {reason}") from None
    values = _from_yaml(path, text) if path.suffix in (".yaml", ".yml") else _from_json(path, text)
    if isinstance(values, dict) and isinstance(values.get("recipe"), dict):
        values = values["recipe"]
    if not isinstance(values, dict):
        raise RecipeError(
            f"the recipe file {path} must hold a mapping of keys to values, not a {type(values).__name__}"
        )
    return {str(key): value for key, value in values.items()}


def _from_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RecipeError(f"the recipe file {path} is not JSON: {error.msg} ({where})") from None


def _from_yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise RecipeError(
            f"reading {path} needs PyYAML: pip install 'keras-trainkit[yaml]', or write the recipe as JSON"
        ) from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise RecipeError(f"the recipe file {path} is not YAML: {getattr(error, 'problem', error)}{where}") from None
    return {} if values is None else _numbers(values)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _BARE_EXPONENT.fullmatch(value) else value


def _optional_text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    # A column of a CSV file without a header may be called by its number.
    text = str(value) if isinstance(value, Path) or (name == "target" and type(value) is int) else value
    if not isinstance(text, str) or not text:
        raise RecipeError(f"`{name}` must be a text that is not empty. Received: {name}={value!r}")
    return text


def _model(value: Any) -> str | None:
    if value is None:
        return None
    module, colon, function = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise RecipeError(
            f"`model` must look like module:function, for instance nets.small:build. Received: model={value!r}"
        )
    return value


def _own_rate(optimizer: str) -> float:
    # What suits the default models; AdamW's own 0.001 is half as fast on them.
    return 2e-3 if optimizer == "adamw" else catalog.own_rate(optimizer)


def _optimizer(value: Any) -> str | dict[str, Any]:
    if isinstance(value, Mapping):
        arguments = dict(value)
        if "name" not in arguments:
            raise RecipeError(f"`optimizer` as a mapping needs a `name`. Received: optimizer={arguments!r}")
        for key, own in _OWN_OPTIMIZER_KEYS.items():
            if key in arguments:
                raise RecipeError(f"give the optimizer's `{key}` as the recipe's own key `{own}`")
        return {**arguments, "name": _optimizer_name(arguments["name"])}
    return _optimizer_name(value)


def _schedule(value: Any) -> str | dict[str, Any]:
    if not isinstance(value, Mapping):
        name = plain_name(value) if isinstance(value, str) else value
        return name if name in SCHEDULES else checks.one_of("schedule", value, SCHEDULES)
    arguments = dict(value)
    if "name" not in arguments:
        raise RecipeError(f"`schedule` as a mapping needs a `name`. Received: schedule={arguments!r}")
    name = _schedule(arguments["name"])
    rate_argument = SCHEDULES[str(name)][0]
    if rate_argument in arguments:
        raise RecipeError(f"give the schedule's `{rate_argument}` as the recipe's own key `learning_rate`")
    return {**arguments, "name": name}


def _named(key: str, value: Any) -> str | dict[str, Any] | None:
    """A name, or a mapping with one; "none" is None. Whether there is such a part shows when Keras is there."""
    if value is None or value == "none":
        return None
    if isinstance(value, Mapping) and "name" not in value:
        raise RecipeError(f"`{key}` as a mapping needs a `name`. Received: {key}={dict(value)!r}")
    name = value["name"] if isinstance(value, Mapping) else value
    if not isinstance(name, str) or not name:
        raise RecipeError(f"`{key}` must be a name or a mapping with one. Received: {key}={value!r}")
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else name


def _augmentation(value: Any) -> str | dict[str, Any] | None:
    checked = _named("augmentation", value)
    if isinstance(checked, dict):
        return {**checked, "name": checks.one_of("augmentation", checked["name"].lower(), AUGMENTATIONS)}
    return None if checked is None else checks.one_of("augmentation", checked.lower(), AUGMENTATIONS)


def _optimizer_name(value: Any) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"`optimizer` must be a name or a mapping with one. Received: optimizer={value!r}")
    name, known = value.lower(), catalog.optimizer_names()
    if name not in known:
        hint = checks.did_you_mean(name, known) or f". There are {', '.join(known)}"
        raise RecipeError(f"no optimizer is called {value!r}{hint}")
    return name
