"""Problems for searches that need no training: known functions, a table of trainings, learning curves.

Each is a space, declared on anything that has KerasTuner's `Float`, `Int`, `Choice`, `Boolean` and `conditional_scope`,
and a function of the values. `regret` tells how far the best point found is from the best there is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import search_curves

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something to minimize.

    Attributes:
        name: of the problem.
        declare: the space, and the values at hand.
        observe: what a trial sees, given its values and a source of noise.
        regret: of the values that looked best.
    """

    name: str
    declare: Callable[[Any], None]
    observe: Callable[[Values, np.random.Generator], float]
    regret: Callable[[Values], float]


def branin(values: Values) -> float:
    """Branin's function; three minima of 0.397887."""
    x, y = values["x"], values["y"]
    bowl = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def _declare_branin(hp: Any) -> None:
    hp.Float("x", -5.0, 10.0)
    hp.Float("y", 0.0, 15.0)


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array([[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
                      [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]])  # fmt: skip


def hartmann6(values: Values) -> float:
    """Hartmann's function of six variables; its minimum is -3.32237."""
    x = np.array([values[f"x{number}"] for number in range(6)])
    return float(-_ALPHA @ np.exp(-np.sum(_A * (x - _P) ** 2, axis=1)))


def _declare_hartmann6(hp: Any) -> None:
    for number in range(6):
        hp.Float(f"x{number}", 0.0, 1.0)


_BEST_RATE = {"sgd": -1.0, "adam": -3.0, "lion": -4.0}
_OFFSET = {"sgd": 0.03, "adam": 0.0, "lion": 0.05}


def conditional(values: Values) -> float:
    """A made-up training of up to 15 hyperparameters, some of them only under others; its minimum is 0."""
    kind = values["optimizer"]
    loss = _OFFSET[kind] + 0.1 * (math.log10(values["rate"]) - _BEST_RATE[kind]) ** 2
    if kind == "sgd":
        loss += 2 * (values["momentum"] - 0.9) ** 2 + (0.0 if values["nesterov"] else 0.01)
    elif kind == "adam":
        loss += 2 * (values["beta_1"] - 0.9) ** 2 + 0.002 * (math.log10(values["epsilon"]) + 7) ** 2
    layers = values["layers"]
    loss += 0.02 * abs(layers - 3)
    for number in range(layers):
        loss += 0.02 * (math.log2(values[f"units_{number}"]) - 7 + number) ** 2 / layers
    loss += 0.4 * (values["dropout"] - 0.2) ** 2
    loss += 0.01 * abs(math.log2(values["batch_size"]) - 6)
    if values["augment"]:
        loss += 0.3 * (values["strength"] - 0.4) ** 2
    else:
        loss += 0.04
    return loss + 0.01 * (math.log10(values["decay"]) + 3) ** 2


def _declare_conditional(hp: Any) -> None:
    hp.Choice("optimizer", ["sgd", "adam", "lion"])
    hp.Float("rate", 1e-5, 1.0, sampling="log")
    with hp.conditional_scope("optimizer", ["sgd"]):
        hp.Float("momentum", 0.5, 0.99)
        hp.Boolean("nesterov")
    with hp.conditional_scope("optimizer", ["adam"]):
        hp.Float("beta_1", 0.5, 0.99)
        hp.Float("epsilon", 1e-9, 1e-3, sampling="log")
    hp.Choice("layers", [1, 2, 3, 4])
    for number in range(4):
        with hp.conditional_scope("layers", list(range(number + 1, 5))):
            hp.Choice(f"units_{number}", [16, 32, 64, 128, 256])
    hp.Float("dropout", 0.0, 0.7)
    hp.Choice("batch_size", [8, 16, 32, 64, 128, 256])
    hp.Boolean("augment")
    with hp.conditional_scope("augment", [True]):
        hp.Float("strength", 0.0, 1.0)
    hp.Float("decay", 1e-6, 1e-1, sampling="log")


# The axes of the table, in order: the last one of the array holds four trainings of each.
_TABLE: dict[str, list[Any]] = {
    "activation_fn_1": ["relu", "tanh"],
    "activation_fn_2": ["relu", "tanh"],
    "batch_size": [8, 16, 32, 64],
    "dropout_1": [0.0, 0.3, 0.6],
    "dropout_2": [0.0, 0.3, 0.6],
    "init_lr": [5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1],
    "lr_schedule": ["cosine", "const"],
    "n_units_1": [16, 32, 64, 128, 256, 512],
    "n_units_2": [16, 32, 64, 128, 256, 512],
}


def _declare_table(hp: Any) -> None:
    for name, values in _TABLE.items():
        hp.Choice(name, values)


def table(path: Path) -> list[Problem]:
    """One problem for each data set of fcnet.npz (Klein and Hutter 2019, arXiv:1905.04970).

    A trial sees one of four trainings; what counts is the mean of the four, over the best mean in the table.
    """

    def position(values: Values) -> tuple[int, ...]:
        return tuple(choices.index(values[name]) for name, choices in _TABLE.items())

    problems = []
    with np.load(path) as stored:
        for name in stored.files:
            losses = stored[name].astype(float)
            means = losses.mean(axis=-1)

            def observe(values: Values, rng: np.random.Generator, losses: Any = losses) -> float:
                return float(losses[position(values)][rng.integers(losses.shape[-1])])

            def regret(values: Values, means: Any = means) -> float:
                return float(means[position(values)] / means.min())

            problems.append(Problem(f"fcnet {name}", _declare_table, observe, regret))
    return problems


def functions() -> list[Problem]:
    """The known functions."""
    return [
        Problem("branin", _declare_branin, lambda v, rng: branin(v), lambda v: branin(v) - 0.39788736),
        Problem("hartmann6", _declare_hartmann6, lambda v, rng: hartmann6(v), lambda v: hartmann6(v) + 3.32236801),
        Problem("conditional", _declare_conditional, lambda v, rng: conditional(v), conditional),
    ]


class Curves:
    """The trainings of search_curves.json: what each point said after each epoch."""

    epochs = search_curves.EPOCHS

    def __init__(self) -> None:
        points, curves = search_curves.points(), search_curves.curves()
        self._curves = {tuple(point.values()): curve for point, curve in zip(points, curves, strict=True)}
        best = [min(curve) for curve in curves]
        self.best, self.middle = min(best), float(np.median(best))

    @staticmethod
    def declare(hp: Any) -> None:
        """The grid, as choices."""
        for name, values in search_curves.GRID.items():
            hp.Choice(name, values)

    def __call__(self, values: Values) -> Sequence[float]:
        """The curve of a point."""
        return self._curves[tuple(values[name] for name in search_curves.GRID)]

    def regret(self, loss: float) -> float:
        """0 for the best loss of all trainings, 1 for the median of their best losses."""
        return (loss - self.best) / (self.middle - self.best)
