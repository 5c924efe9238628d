"""A search in two processes that ends bad trials early, and a model that is better than the one it began with.

    python examples/24_search_with_pruning.py        # scikit-learn's digits, about a minute

Needs the extra `tuning`. Kill it and run it again with the same `--directory`: only what was running runs again.
"""

import argparse
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import recipes, tuning


def network(hp):
    """A perceptron; its width is searched together with its training."""
    layers = [
        keras.layers.Dense(hp.Choice("units", [32, 64, 128]), activation="relu"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential([keras.Input((64,)), *layers])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--directory", help="where the search is kept (default: a temporary folder)")
    arguments = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    rest, x_test, y_rest, y_test = train_test_split(x.astype("float32") / 16, y, test_size=0.3, random_state=0)
    x_train, x_valid, y_train, y_valid = train_test_split(rest, y_rest, test_size=0.25, random_state=0)

    # All of the training in one line; each optimizer has its own range of rates.
    space = tuning.TrainingSpace(
        optimizer=["adamw", "nadam", "lion"], learning_rate="auto", batch_size=[16, 32, 64], dropout=(0.0, 0.5)
    )
    base = recipes.Recipe(epochs=arguments.epochs)
    model = tuning.TrainingModel(
        network, space, loss="sparse_categorical_crossentropy", metrics=["accuracy"], recipe=base
    )
    tuner = tuning.TPESearch(
        model,
        "val_loss",
        max_trials=arguments.trials,
        pruner=tuning.halving(arguments.epochs, min_epochs=arguments.epochs // 3),
        seed=0,
        workers=2,
        directory=arguments.directory or tempfile.mkdtemp(prefix="search-"),
        project_name="digits",
    )
    tuner.enqueue(optimizer="adamw", learning_rate=1e-3, batch_size=32, units=64, dropout=0.1)  # where we stand
    tuner.search(x_train, y_train, validation_data=(x_valid, y_valid), verbose=0)

    trials = tuner.oracle.trials.values()
    pruned = [trial for trial in trials if (trial.message or "").startswith("pruned")]
    best = tuner.oracle.get_best_trials()[0]
    first = tuner.oracle.trials[tuner.oracle.start_order[0]]
    print(f"{len(trials)} trials, {len(pruned)} of them ended early")
    print(f"validation loss: {first.score:.4f} to begin with, {best.score:.4f} at best, with")
    for name, value in best.hyperparameters.values.items():
        print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
    found = tuner.get_best_models()[0]
    accuracy = np.mean(found.predict(x_test, verbose=0).argmax(axis=1) == y_test)
    print(f"test accuracy of its model: {accuracy:.4f}")
    assert best.score < first.score and pruned


if __name__ == "__main__":
    main()
