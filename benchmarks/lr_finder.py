"""How good is the learning rate that a range test suggests? Its regret against a grid, on real problems, by rule.

    python benchmarks/lr_finder.py --data-folder DIR         # six problems, two optimizers: half an hour of one core
    python benchmarks/lr_finder.py --problems digits --steps 60 --rates 4 --seeds 1   # a look

For each problem and optimizer a grid of rates, two to a decade, is trained with a warm-up and a cosine; so is what
each rule suggests. The regret is the validation loss at the suggestion, less the lowest there is, as a share of
what that gains over the loss before training: 0 is as good as the best, 1 as bad as no training at all. Suggestions
are made on the model before training; a rule that finds nothing counts as 1. "default" is what
one would take without looking: 1e-3 for AdamW, 1e-2 for SGD with momentum. The folder is that of
benchmarks/training.py and holds mnist.npz and letter-recognition.csv.gz, too; problems whose file is missing are left
out. Runs of one problem share a compiled model; they differ in first weights, order of data, and rates alone.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import gzip
import json
import re
import statistics
from pathlib import Path
from typing import Any

import in_turn
import keras
import numpy as np
import training_problems
from keras import layers
from training_problems import Arrays, Problem

from keras_trainkit import finders, schedules

DEFAULT = {"adamw": 1e-3, "sgd": 1e-2}  # the optimizers, and what one would take without looking
HIGHER = 10**0.5  # the middle of the grid, over that
STEPS = {"digits": 200, "letters": 250, "housing": 300, "mnist": 120, "reviews": 120, "shakespeare": 120}


def letters(folder: Path | None) -> Arrays:
    """Letters by 16 numbers that describe their shape; the last 4,000 are to validate on."""
    with gzip.open(folder / "letter-recognition.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    x = np.array([row[1:] for row in rows], "float32")
    y = np.array([ord(row[0]) - ord("A") for row in rows], "int32")
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x[:-4000], y[:-4000], x[-4000:], y[-4000:]


def deep() -> keras.Model:
    """Four layers of 64."""
    inner = [layers.Dense(64, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((16,)), *inner, layers.Dense(26, activation="softmax")])


def mnist(folder: Path | None) -> Arrays:
    """10,000 of MNIST's digits, and 2,000 to validate on."""
    with np.load(folder / "mnist.npz") as file:
        x, y = file["x_train"], file["y_train"].astype("int32")
    x = x.reshape(-1, 28, 28, 1).astype("float32") / 255
    return x[:10_000], y[:10_000], x[-2000:], y[-2000:]


def normalized() -> keras.Model:
    """Two convolutions with BatchNormalization."""
    found = [keras.Input((28, 28, 1))]
    for width in (8, 16):
        found += [layers.Conv2D(width, 3, strides=2, use_bias=False), layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential([*found, layers.Flatten(), layers.Dense(10, activation="softmax")])


CROSS_ENTROPY = "sparse_categorical_crossentropy"
PROBLEMS = training_problems.PROBLEMS | {
    "letters": Problem(letters, deep, CROSS_ENTROPY, 400, 64, 0.5, "Letters, perceptron", "letter-recognition.csv.gz"),
    "mnist": Problem(
        mnist, normalized, CROSS_ENTROPY, 200, 32, 0.2, "MNIST, normalized convolutional net", "mnist.npz"
    ),
}


class Trainer:
    """Runs of one problem with one optimizer, by a model that is compiled once.

    Args:
        problem: what to train.
        optimizer: by name.
        folder: of the data.
    """

    def __init__(self, problem: Problem, optimizer: str, folder: Path | None) -> None:
        self.problem, self.data = problem, problem.load(folder)
        keras.utils.clear_session()
        self.model = self._built(0)
        kind, arguments = training_problems._kind(optimizer), training_problems.arguments(optimizer, problem.steps)
        self.model.compile(kind(DEFAULT[optimizer], **arguments), problem.loss)
        self.model.optimizer.build(self.model.trainable_variables)
        self._fresh = [keras.ops.convert_to_numpy(v) for v in self.model.optimizer.variables]
        self.untrained = self._evaluated()

    def suggestions(self, sweeps: int, steps: int) -> dict[str, Any]:
        """What the range test says of the model before training."""
        found = finders.learning_rate(
            self.model, *self.data[:2], batch_size=self.problem.batch, seeds=sweeps, minimum=1e-6, steps=steps
        )
        return found.to_dict()

    def run(self, rate: float, seed: int) -> float:
        """The validation loss after training; that before it where it is not finite."""
        steps, batch = self.problem.steps, self.problem.batch
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self._built(seed).get_weights())
        for variable, value in zip(self.model.optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        x, y = self.data[:2]
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(x)) for _ in range(-(-steps * batch // len(x)))])[: steps * batch]
        self.model.fit(x[order], y[order], batch, shuffle=False, verbose=0, callbacks=[Rates(rate, steps)])
        loss = self._evaluated()
        return loss if np.isfinite(loss) else self.untrained

    def _built(self, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return self.problem.build()

    def _evaluated(self) -> float:
        return float(self.model.evaluate(*self.data[2:], batch_size=512, verbose=0))


@functools.cache
def shares(steps: int) -> list[float]:
    """Of the highest rate, at each step: a warm-up over a tenth of them and a cosine."""
    warm_up = max(1, round(training_problems.WARM_UP * steps))
    schedule = schedules.Warmup(schedules.Cosine(1.0, decay_steps=max(1, steps - warm_up)), steps=warm_up)
    return [float(schedule(step)) for step in range(steps)]


class Rates(keras.callbacks.Callback):
    """Assigns the rates of a schedule as numbers, so that the step need not be traced anew."""

    def __init__(self, rate: float, steps: int) -> None:
        super().__init__()
        self._rates = [rate * share for share in shares(steps)]

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = self._rates[batch]


def regrets(untrained: float, losses: dict[float, float], suggestions: dict[str, float | None]) -> dict[str, float]:
    """The regret of each rule, between 0 and 1; losses by rate hold the grid and the suggestions.

    >>> regrets(2.0, {0.1: 1.0, 1.0: 0.5, 0.3: 0.65}, {"a": 1.0, "b": 0.3, "c": None})
    {'a': 0.0, 'b': 0.1, 'c': 1.0}
    """
    best = min(losses.values())
    gain = untrained - best
    return {
        name: 1.0 if rate is None or gain <= 0 else round(float(np.clip((losses[rate] - best) / gain, 0, 1)), 6)
        for name, rate in suggestions.items()
    }


def measure(name: str, optimizer: str, options: argparse.Namespace) -> dict[str, Any]:
    """One problem with one optimizer."""
    problem = dataclasses.replace(PROBLEMS[name], steps=options.steps or STEPS[name])
    trainer = Trainer(problem, optimizer, options.data_folder)
    found = trainer.suggestions(options.sweeps, options.sweep_steps)
    suggestions = {rule: one["rate"] for rule, one in found["suggestions"].items()}
    suggestions["default"] = DEFAULT[optimizer]
    exponents = np.arange(options.rates) - options.rates // 2
    grid = [float(f"{HIGHER * DEFAULT[optimizer] * 10 ** (e / options.per_decade):.3g}") for e in exponents]
    losses = {
        rate: statistics.mean(trainer.run(rate, seed) for seed in range(options.seeds))
        for rate in sorted({*grid, *(rate for rate in suggestions.values() if rate is not None)})
    }
    curves = [
        {"seed": one["seed"], "ended": one["ended"], "learning_rates": _short(one["learning_rates"]),
         "losses": _short(one["losses"])}
        for one in found["sweeps"]
    ]  # fmt: skip
    return {
        "problem": name,
        "optimizer": optimizer,
        "steps": problem.steps,
        "untrained": round(trainer.untrained, 5),
        "suggestions": found["suggestions"],
        "best_of_grid": min(grid, key=lambda rate: losses[rate]),
        "losses": [[rate, round(loss, 5)] for rate, loss in losses.items()],
        "regrets": regrets(trainer.untrained, losses, suggestions),
        "sweeps": curves,
    }


def _short(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def averages(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each rule the mean regret, by optimizer and in all, and the largest.

    >>> averages([{"optimizer": "a", "regrets": {"x": 0.1}}, {"optimizer": "b", "regrets": {"x": 0.3}}])
    {'x': {'a': 0.1, 'b': 0.3, 'all': 0.2, 'largest': 0.3}}
    """
    found: dict[str, dict[str, float]] = {}
    for rule in rows[0]["regrets"]:
        of = {optimizer: [row["regrets"][rule] for row in rows if row["optimizer"] == optimizer]
              for optimizer in dict.fromkeys(row["optimizer"] for row in rows)}  # fmt: skip
        of["all"] = [row["regrets"][rule] for row in rows]
        found[rule] = {name: round(statistics.mean(each), 4) for name, each in of.items()}
        found[rule]["largest"] = max(of["all"])
    return found


def _text(found: dict[str, Any]) -> str:
    """JSON with lists of numbers on one line each."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(STEPS))
    parser.add_argument("--optimizers", nargs="+", choices=list(DEFAULT), default=list(DEFAULT))
    parser.add_argument("--steps", type=int, help="of a run; each problem has its own number")
    parser.add_argument("--sweep-steps", type=int, default=100)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--rates", type=int, default=7, help="of the grid (default 7)")
    parser.add_argument("--per-decade", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2, help="runs for each rate (default 2)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lr_finder.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.problems:
        file = PROBLEMS[name].file
        if file is not None and (options.data_folder is None or not (options.data_folder / file).exists()):
            print(f"{name}: left out, there is no {file}")
            continue
        for optimizer in options.optimizers:
            rows.append(measure(name, optimizer, options))
            shown = ", ".join(f"{rule} {regret:.3f}" for rule, regret in rows[-1]["regrets"].items())
            print(f"{name}, {optimizer}: {shown}", flush=True)
            around = in_turn.circumstances(["keras", "tensorflow", "numpy"])
            settings = {key: value for key, value in vars(options).items() if key not in ("output", "data_folder")}
            found = {**around, "settings": settings, "regret": averages(rows), "rows": rows}
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(_text(found) + "\n", "utf-8")
    if rows:
        print("mean regret: " + ", ".join(f"{rule} {found['all']:.3f}" for rule, found in averages(rows).items()))


if __name__ == "__main__":
    main()
