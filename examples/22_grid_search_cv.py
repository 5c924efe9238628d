"""Scikit-learn's GridSearchCV over learning rate and batch size of a Keras model, on digits, in less than a minute.

    python examples/22_grid_search_cv.py
    python examples/22_grid_search_cv.py --jobs 2    # in two processes

The model is a step of a pipeline, after a scaler. The grid names parameters of optimizer and training as they are.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from keras_trainkit import tuning


def build(meta: tuning.Meta, units: int = 32) -> keras.Model:
    """One hidden layer; the estimator tells the shape of an example and how the last layer must look."""
    return keras.Sequential(
        [
            keras.Input(meta.input_shape),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dense(meta.units, activation=meta.activation),
        ]
    )


def search(jobs: int | None, epochs: int) -> GridSearchCV:
    classifier = tuning.KerasClassifier(build, units=48, optimizer="adam", epochs=epochs, random_state=0)
    grid = {
        "classifier__optimizer__learning_rate": [3e-4, 3e-3, 3e-2],
        "classifier__batch_size": [32, 128],
    }
    pipeline = Pipeline([("scaler", MinMaxScaler()), ("classifier", classifier)])
    return GridSearchCV(pipeline, grid, cv=3, n_jobs=jobs, error_score="raise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=None, help="processes; each loads TensorFlow")
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    found = search(arguments.jobs, arguments.epochs).fit(x_train, y_train)

    results = found.cv_results_
    columns = zip(results["params"], results["mean_test_score"], results["std_test_score"], strict=True)
    for parameters, mean, deviation in sorted(columns, key=lambda row: -row[1]):
        rate, size = parameters["classifier__optimizer__learning_rate"], parameters["classifier__batch_size"]
        print(f"learning rate {rate:<7g} batch size {size:<4d} accuracy {mean:.3f} +- {deviation:.3f}")
    accuracy = found.score(x_test, y_test)
    print(f"accuracy of the best on digits that nobody has seen: {accuracy:.3f}")
    if accuracy < 0.9:
        raise SystemExit("the best of the grid should read more than nine digits of ten")


if __name__ == "__main__":
    main()
