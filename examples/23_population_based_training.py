"""A population that trains together: weights of the best go on, and the learning rate moves while they do.

    python examples/23_population_based_training.py     # scikit-learn's digits, about a minute

Then trains from the start with the rates that were found, and with the best constant rate of the first generation, over
several seeds. Needs the extra `tuning`.
"""

import argparse
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import optimizers, tuning
from keras_trainkit.callbacks import ResolveSpans


def network(rate):
    """A perceptron, compiled."""
    hidden = keras.layers.Dense(64, activation="relu")
    model = keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10, activation="softmax")])
    model.compile(optimizers.AdamW(rate, weight_decay=0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build(hp):
    """The rate is a number, which the population moves."""
    return network(hp.Float("learning_rate", 3e-4, 1e-1, sampling="log"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", type=int, default=6)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    rest, x_test, y_rest, y_test = train_test_split(x.astype("float32") / 16, y, test_size=0.3, random_state=0)
    x_train, x_valid, y_train, y_valid = train_test_split(rest, y_rest, test_size=0.3, random_state=0)

    tuner = tuning.PopulationBasedTraining(
        build,
        "val_loss",
        population_size=arguments.population,
        generations=arguments.generations,
        max_epochs=arguments.epochs,
        quantile_fraction=0.34,
        perturbation_factors=(0.5, 2.0),
        resample_probability=0.0,
        seed=0,
        directory=tempfile.mkdtemp(prefix="search-"),
    )
    tuner.search(x_train, y_train, validation_data=(x_valid, y_valid), batch_size=32, verbose=0)

    print("the best member:")
    for step in tuner.get_lineage():
        rate = step["values"]["learning_rate"]
        print(f"  epochs {step['initial_epoch']:2} to {step['epochs']:2}: rate {rate:.5f}, loss {step['score']:.4f}")
    found = tuner.learning_rate_schedule()
    begun = min(tuner.oracle.members(0).values(), key=lambda trial: trial.score)
    constant = begun.hyperparameters.values["learning_rate"]

    def trained(rate, seed):
        keras.utils.set_random_seed(seed)
        model = network(rate)
        model.fit(x_train, y_train, epochs=arguments.epochs, batch_size=32, verbose=0, callbacks=[ResolveSpans()])
        return model.evaluate(x_test, y_test, verbose=0)[0]

    for name, rate in (("the rates that were found", found), (f"{constant:.5f} throughout", constant)):
        losses = [trained(rate, seed) for seed in range(arguments.seeds)]
        print(f"test loss from the start with {name}: {np.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})")
    best = tuner.get_best_models()[0].evaluate(x_test, y_test, verbose=0)
    print(f"the population's best model: test loss {best[0]:.4f}, accuracy {best[1]:.4f}")
    assert best[1] > 0.9


if __name__ == "__main__":
    main()
