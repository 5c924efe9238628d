"""How good is the learning rate that a range test suggests? Its regret against a grid, on real problems, by rule.

    python benchmarks/lr_finder.py --data-folder DIR                     # six problems, two optimizers: an hour or two
    python benchmarks/lr_finder.py --problems digits --steps 60 --rates 4 --seeds 1   # a look

For each problem and optimizer a grid of rates, three to a decade, is trained with a warm-up and a cosine; so is what
each rule suggests. The regret is the validation loss at the suggestion, less the lowest there is, as a share of
what that gains over the loss before training: 0 is as good as the best, 1 as bad as no training at all. Suggestions
are made on the model before training; a rule that finds nothing counts as 1. The folder is that of
benchmarks/training.py and holds mnist.npz and letter-recognition.csv.gz, too; problems whose file is missing are left
out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import in_turn
import keras
import numpy as np
import training_problems
from keras import layers
from training_problems import Arrays, Problem

from keras_trainkit import finders

ONE_ROUND = {"adamw": 1e-3, "sgd": 1e-2}  # the optimizers, and the middle of their grids


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


def suggested(problem: Problem, optimizer: str, data: Arrays, seeds: int, sweep: dict[str, Any]) -> dict[str, Any]:
    """What the rules say of the model before training, the curves, and its validation loss."""
    keras.utils.set_random_seed(0)
    model = problem.build()
    model.compile(training_problems.make(optimizer, ONE_ROUND[optimizer], problem.steps), problem.loss)
    found = finders.learning_rate(model, data[0], data[1], batch_size=problem.batch, seeds=seeds, **sweep)
    return {"found": found.to_dict(), "untrained": model.evaluate(*data[2:], batch_size=512, verbose=0)}


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
    problem = PROBLEMS[name]
    steps = options.steps or problem.steps
    data = problem.load(options.data_folder)
    told = suggested(problem, optimizer, data, options.sweeps, {"minimum": 1e-6, "steps": options.sweep_steps})
    suggestions = {rule: one["rate"] for rule, one in told["found"]["suggestions"].items()}
    exponents = np.arange(options.rates) - options.rates // 2
    grid = [float(f"{ONE_ROUND[optimizer] * 10 ** (e / options.per_decade):.3g}") for e in exponents]
    wanted = sorted({*grid, *(rate for rate in suggestions.values() if rate is not None)})
    losses: dict[float, float] = {}
    for rate in wanted:
        runs = [training_problems.run(name, optimizer, rate, seed, steps, options.data_folder)["losses"][-1]
                for seed in range(options.seeds)]  # fmt: skip
        losses[rate] = statistics.mean(told["untrained"] if loss is None else loss for loss in runs)
    return {
        "problem": name,
        "optimizer": optimizer,
        "steps": steps,
        "untrained": told["untrained"],
        "suggestions": told["found"]["suggestions"],
        "best_of_grid": min(grid, key=lambda rate: losses[rate]),
        "losses": [[rate, round(loss, 5)] for rate, loss in losses.items()],
        "regrets": regrets(told["untrained"], losses, suggestions),
        "sweeps": told["found"]["sweeps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--optimizers", nargs="+", choices=list(ONE_ROUND), default=list(ONE_ROUND))
    parser.add_argument("--steps", type=int, help="of a run; each problem has its own")
    parser.add_argument("--sweep-steps", type=int, default=100)
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--rates", type=int, default=13, help="of the grid (default 13)")
    parser.add_argument("--per-decade", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2, help="runs for each rate (default 2)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lr_finder.json")
    options = parser.parse_args()
    training_problems.PROBLEMS = PROBLEMS
    rows = []
    for name in options.problems:
        file = PROBLEMS[name].file
        if file is not None and (options.data_folder is None or not (options.data_folder / file).exists()):
            print(f"{name}: left out, there is no {file}")
            continue
        for optimizer in options.optimizers:
            rows.append(measure(name, optimizer, options))
            shown = ", ".join(f"{rule} {regret:.3f}" for rule, regret in rows[-1]["regrets"].items())
            print(f"{name}, {optimizer}: {shown}", flush=True)
            mean = {rule: statistics.mean(row["regrets"][rule] for row in rows) for rule in rows[0]["regrets"]}
            around = in_turn.circumstances(["keras", "tensorflow", "numpy"])
            settings = {key: value for key, value in vars(options).items() if key not in ("output", "data_folder")}
            found = {**around, "settings": settings, "mean_regret": mean, "rows": rows}
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if rows:
        print("mean regret: " + ", ".join(f"{rule} {regret:.3f}" for rule, regret in mean.items()))


if __name__ == "__main__":
    main()
