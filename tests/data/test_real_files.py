"""The four real files that the kit is tried on, where they are present beside the repository."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_trainkit import data

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(name):
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is missing in {FOLDER}")
    return path


def check_attached(dataset, rows=200):
    core = keras.Sequential(
        [keras.Input(dataset.input_shape), keras.layers.Flatten(), keras.layers.Dense(dataset.outputs)]
    )
    raw = dataset.raw("test")
    raw = {name: column[:rows] for name, column in raw.items()} if isinstance(raw, dict) else raw[:rows]
    expected = core.predict(dataset.test[0][:rows], verbose=0) * dataset.target_deviation + dataset.target_mean
    np.testing.assert_allclose(dataset.attach(core).predict(raw, verbose=0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_mnist():
    dataset = data.load(real("mnist.npz"))
    assert dataset.describe()["splits"] == {"train": 54001, "validation": 5999, "test": 10000}
    assert dataset.input_shape == (28, 28, 1) and dataset.classes == list(range(10))
    assert dataset.test[1][:5].tolist() == [7, 2, 1, 0, 4]
    check_attached(dataset)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_california_housing():
    dataset = data.load(real("california_housing.csv.gz"), "median_house_value")
    facts = dataset.describe()
    assert facts["rows"] == 20640 and facts["task"] == "regression"
    assert facts["imputed"] == {"total_bedrooms": 207} and facts["columns"]["ocean_proximity"] == "text"
    # eight numbers, one mark, four frequent places and one position for the five houses on an island
    assert dataset.input_shape == (14,)
    check_attached(dataset)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_adult_has_no_header():
    dataset = data.load(real("adult_train.csv.gz"), "column_15")
    facts = dataset.describe()
    assert facts["rows"] == 32561 and facts["header"] is False
    assert facts["classes"] == ["<=50K", ">50K"] and facts["class_counts"] == [24720, 7841]
    assert list(facts["columns"].values()).count("text") == 8
    check_attached(dataset)


@pytest.mark.slow
def test_letters():
    dataset = data.load(real("letter-recognition.csv.gz"), "Letter")
    assert dataset.describe()["rows"] == 20000 and len(dataset.classes) == 26 and dataset.input_shape == (16,)
    check_attached(dataset)
