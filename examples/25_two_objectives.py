"""Two objectives at once: a small loss and a small network. The search returns the front between them.

    python examples/25_two_objectives.py        # scikit-learn's digits, about half a minute

Needs the extra `tuning`.
"""

import argparse
import tempfile

import keras
import keras_tuner
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_trainkit import optimizers, schedules, tuning
from keras_trainkit.callbacks import ResolveSpans


class Sized(keras_tuner.HyperModel):
    """A perceptron that reports its number of weights together with its loss."""

    def build(self, hp):
        """One or two layers of some width."""
        hidden = [
            keras.layers.Dense(hp.Int("units", 4, 256, sampling="log"), activation="relu")
            for _ in range(hp.Int("layers", 1, 2))
        ]
        model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, activation="softmax")])
        rate = hp.Float("learning_rate", 1e-3, 3e-2, sampling="log")
        model.compile(optimizers.AdamW(schedules.Cosine(rate, "1run")), "sparse_categorical_crossentropy")
        return model

    def fit(self, hp, model, x, y, validation_data, callbacks, **kwargs):
        """Trains, and returns both objectives."""
        model.fit(x, y, epochs=10, batch_size=32, verbose=0, callbacks=[ResolveSpans()])
        return {"val_loss": model.evaluate(*validation_data, verbose=0), "weights": model.count_params()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    x, y = load_digits(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(x.astype("float32") / 16, y, test_size=0.3, random_state=0)

    objectives = [keras_tuner.Objective("val_loss", "min"), keras_tuner.Objective("weights", "min")]
    tuner = tuning.Search(
        Sized(), objectives, max_trials=arguments.trials, seed=0, directory=tempfile.mkdtemp(prefix="search-")
    )
    tuner.search(x_train, y_train, validation_data=(x_valid, y_valid), verbose=0)

    front = sorted(tuner.get_pareto_trials(), key=lambda trial: trial.metrics.get_best_value("weights"))
    print("no trial is better in both than one of these:")
    print("weights  loss    layers  units")
    for trial in front:
        loss, weights = (trial.metrics.get_best_value(name) for name in ("val_loss", "weights"))
        values = trial.hyperparameters.values
        print(f"{weights:7.0f}  {loss:.4f}  {values['layers']:6}  {values['units']:5}")
    losses = [trial.metrics.get_best_value("val_loss") for trial in front]
    assert len(front) > 2 and losses == sorted(losses, reverse=True)  # smaller costs loss, all along the front


if __name__ == "__main__":
    main()
