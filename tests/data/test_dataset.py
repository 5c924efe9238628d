"""`data.load`: splits, encoding, the way back to raw values, on made-up files."""

import gzip
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_trainkit import data

TEXT_ON_TENSORFLOW = pytest.mark.tensorflow


@pytest.fixture
def table():
    """60 rows: numbers with holes, text with a rare word, a class and a number to predict."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(60):
        age = "" if i % 10 == 3 else str(20 + i % 7)
        town = "Elsewhere" if i == 5 else ["Rome", "New York", "Oslo"][i % 3]
        price = 1000 + 10 * (i % 7) + rng.normal()
        rows.append(f"{age}, {town}, {i * 0.25}, {'yes' if i % 2 else 'no'}, {price:.3f}")
    return "age, home town, score, answer, price\n" + "\n".join(rows) + "\n\n"


@pytest.fixture
def csv_file(tmp_path, table):
    path = tmp_path / "people.csv"
    path.write_text(table)
    return path


def small_model(dataset, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(dataset.input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(dataset.outputs, bias_initializer="random_normal"),
        ]
    )


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 4, 3), dtype=np.uint8),
        "y_train": np.arange(40, dtype=np.uint8) % 4,
        "x_test": rng.integers(0, 256, (12, 4, 3), dtype=np.uint8),
        "y_test": np.arange(12, dtype=np.uint8) % 4,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_digits_are_split_stratified_and_by_seed():
    one, same, other = data.load(seed=1), data.load(seed=1), data.load(seed=2)
    np.testing.assert_array_equal(one.train[0], same.train[0])
    assert not np.array_equal(one.train[0], other.train[0])
    assert one.input_shape == (8, 8, 1) and one.outputs == 10 and one.task == "classification"
    assert one.describe()["splits"] == {"train": 1259, "validation": 179, "test": 359}
    for x, y in (one.train, one.validation, one.test):
        assert x.dtype == np.float32 and x.min() == 0 and x.max() == 1
        shares = np.bincount(y) / len(y)
        assert shares.min() > 0.09 and shares.max() < 0.11
    rows = np.concatenate([part[0].reshape(len(part[0]), -1) for part in (one.train, one.validation, one.test)])
    assert len(np.unique(rows, axis=0)) == 1797


def test_csv_classification(csv_file):
    dataset = data.load(csv_file, "answer")
    assert dataset.task == "classification" and dataset.classes == ["no", "yes"] and dataset.outputs == 2
    assert dataset.describe()["columns"] == {"age": "number", "home town": "text", "score": "number", "price": "number"}
    assert dataset.describe()["imputed"] == {"age": 6}
    # age, score, price, the mark of age, and for the town: other + three words; "Elsewhere" is too rare
    assert dataset.encoder.features[:4] == ["age", "score", "price", "age missing"]
    assert sorted(dataset.encoder.features[4:]) == [f"home town={w}" for w in ["(other)", "New York", "Oslo", "Rome"]]
    assert dataset.input_shape == (8,)
    raw = dataset.raw("train")
    missing = np.isnan(raw["age"])
    assert missing.any()
    np.testing.assert_array_equal(dataset.train[0][:, 3], missing)
    median = np.median(raw["age"][~missing])
    filled = np.where(missing, median, raw["age"])
    np.testing.assert_allclose(dataset.train[0][:, 0], (filled - filled.mean()) / filled.std(), atol=1e-5)
    np.testing.assert_allclose(dataset.train[0][:, 1].mean(), 0, atol=1e-6)
    np.testing.assert_array_equal(dataset.train[0][:, 4:].sum(axis=1), 1)
    json.dumps(dataset.describe())


def test_statistics_come_from_the_training_rows_alone(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"{i},{i % 2}" for i in range(100)]
    path.write_text("x,y\n" + "\n".join(lines))
    first = data.load(path, "y")
    test_values = set(first.raw("test")["x"])
    path.write_text("x,y\n" + "\n".join(f"{i + 1e6 * (i in test_values)},{i % 2}" for i in range(100)))
    second = data.load(path, "y")
    np.testing.assert_array_equal(first.train[0], second.train[0])
    assert second.test[0].min() > 1e4


def test_one_class_stays_in_proportion_and_a_lone_row_is_trained_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "x,y\n" + "\n".join(f"{i},{'rare' if i == 7 else 'common' if i % 2 else 'usual'}" for i in range(50))
    )
    dataset = data.load(path, "y")
    rare = dataset.classes.index("rare")
    assert (dataset.train[1] == rare).sum() == 1
    assert (dataset.test[1] == rare).sum() == 0


def test_gzip_semicolons_decimal_commas_and_byte_order_mark(tmp_path):
    path = tmp_path / "werte.csv.gz"
    lines = [f"{i},5;{'ja' if i % 2 else 'nein'}" for i in range(30)]
    path.write_bytes(gzip.compress(("\ufeffwert;ziel\n" + "\n".join(lines)).encode()))
    dataset = data.load(path, "ziel")
    assert dataset.describe()["columns"] == {"wert": "number"}
    assert sorted(np.concatenate([dataset.raw(part)["wert"] for part in ("train", "validation", "test")])) == [
        i + 0.5 for i in range(30)
    ]


@pytest.mark.parametrize(
    ("content", "header", "names"),
    [
        ("a,b,y\n" + "1,2,u\n2,3,v\n" * 6, True, ["a", "b"]),
        ("1,2,u\n2,3,v\n" * 6, False, ["column_1", "column_2"]),
        ("Letter,1,2\n" + "u,2,3\nv,4,5\n" * 6, True, ["1", "2"]),
        ("1,2,3\n" + "0,2.5,9\n1,2,8\n" * 6, True, ["1", "2"]),
        ("4,2.5,9\n" + "0,2.5,9\n1,2,8\n" * 6, False, ["column_1", "column_2"]),
    ],
)
def test_header_row_is_found(tmp_path, content, header, names):
    path = tmp_path / "a.csv"
    path.write_text(content)
    target = {True: {"a": "y", "1": "Letter" if "Letter" in content else "3"}.get(names[0]), False: "column_3"}[header]
    dataset = data.load(path, target)
    assert dataset.describe()["header"] is header
    assert list(dataset.describe()["columns"]) == names


def test_few_rows_of_different_whole_numbers_are_no_classes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "\n".join(f"{i},{i % 6}" for i in range(24)))
    assert data.load(path, "y").task == "regression"
    path.write_text("x,y\n" + "\n".join(f"{i},{i % 6}" for i in range(30)))
    assert data.load(path, "y").task == "classification"


def test_task_rule_and_forcing_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,few,many,part\n" + "\n".join(f"{i % 9},{i % 3 + 4},{i},{i % 3 + 0.5}" for i in range(60)))
    few = data.load(path, "few")
    assert few.task == "classification" and few.classes == [4, 5, 6]
    assert data.load(path, "many").task == "regression"
    assert data.load(path, "part").task == "regression"
    assert data.load(path, "few", task="regression").classes is None
    assert data.load(path, "few", text=["x"]).describe()["columns"]["x"] == "text"
    with pytest.raises(data.DataError, match="not whole"):
        data.load(path, "part", task="classification")
    with pytest.raises(ValueError, match="`task` must be one of"):
        data.load(path, "few", task="ranking")


def test_regression_target_is_standardized_with_training_rows(csv_file):
    dataset = data.load(csv_file, "price")
    assert dataset.task == "regression" and dataset.classes is None and dataset.outputs == 1
    assert dataset.train[1].shape == (42, 1) and dataset.train[1].dtype == np.float32
    np.testing.assert_allclose([dataset.train[1].mean(), dataset.train[1].std()], [0, 1], atol=1e-5)
    assert 1000 < dataset.target_mean < 1060


def test_npz_images(tmp_path):
    arrays = write_npz(tmp_path / "a.npz")
    dataset = data.load(tmp_path / "a.npz")
    assert dataset.input_shape == (4, 3, 1) and dataset.classes == [0, 1, 2, 3]
    assert dataset.describe()["splits"] == {"train": 36, "validation": 4, "test": 12}
    assert sorted(dataset.validation[1]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(dataset.test[0][..., 0], arrays["x_test"].astype(np.float32) / 255)
    np.testing.assert_array_equal(dataset.raw("test"), arrays["x_test"])


def test_npz_vectors_labels_from_one_and_validation_arrays(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(50, 20, (40, 5))
    x[:, 2] = 0.1
    write_npz(
        tmp_path / "a.npz",
        x_train=x,
        y_train=np.arange(40)[:, None] % 4 + 1.0,
        x_test=x[:12],
        y_test=np.arange(12) % 4 + 1,
        x_val=x[:8],
        y_val=np.arange(8) % 4 + 1,
    )
    dataset = data.load(tmp_path / "a.npz")
    assert dataset.classes == [1, 2, 3, 4] and dataset.describe()["splits"]["validation"] == 8
    assert set(dataset.train[1]) == {0, 1, 2, 3}
    np.testing.assert_allclose(dataset.train[0].std(axis=0), [1, 1, 0, 1, 1], atol=1e-5)
    assert np.abs(dataset.train[0][:, 2]).max() < 1e-5
    # a value that training never saw must not come out as a million
    assert np.abs(dataset.encoder.encode(np.full((1, 5), 0.6))[:, 2]).max() < 1


def test_npz_regression(tmp_path):
    write_npz(tmp_path / "a.npz", y_train=np.linspace(5, 9, 40), y_test=np.linspace(5, 9, 12))
    dataset = data.load(tmp_path / "a.npz")
    assert dataset.task == "regression" and dataset.outputs == 1
    core = small_model(dataset)
    raw = dataset.attach(core).predict(dataset.raw("test"), verbose=0)
    encoded = core.predict(dataset.test[0], verbose=0)
    np.testing.assert_allclose(raw, encoded * dataset.target_deviation + dataset.target_mean, rtol=1e-5)


@TEXT_ON_TENSORFLOW
@pytest.mark.parametrize("target", ["answer", "price"])
def test_attached_model_predicts_the_same_from_raw_columns(csv_file, tmp_path, target):
    import tensorflow as tf

    dataset = data.load(csv_file, target)
    core = small_model(dataset)
    attached = dataset.attach(core)
    attached.save(tmp_path / "m.keras")
    flat, columns = (keras.models.load_model(tmp_path / "m.keras") for _ in range(2))
    for part in ("train", "validation", "test"):
        expected = core.predict(getattr(dataset, part)[0], verbose=0)
        expected = expected * dataset.target_deviation + dataset.target_mean
        raw = dataset.raw(part)
        np.testing.assert_allclose(flat.predict(raw, verbose=0), expected, rtol=1e-5, atol=1e-5)
        raw = {name: tf.constant(values.tolist())[:, None] for name, values in raw.items()}
        np.testing.assert_allclose(columns.predict(raw, verbose=0), expected, rtol=1e-5, atol=1e-5)


@TEXT_ON_TENSORFLOW
def test_unseen_words_and_missing_numbers_at_prediction(csv_file):
    dataset = data.load(csv_file, "answer")
    model = dataset.attach(small_model(dataset))
    row = {"age": np.array([np.nan]), "score": np.array([np.nan]), "price": np.array([1010.0])}
    towns = [np.array([town], dtype=object) for town in ("Atlantis", "Elsewhere", "Oslo")]
    predictions = [model.predict(row | {"home town": town}, verbose=0) for town in towns]
    assert np.isfinite(predictions[0]).all()
    np.testing.assert_array_equal(predictions[0], predictions[1])
    assert not np.allclose(predictions[0], predictions[2])


def test_softmax_gives_probabilities():
    dataset = data.load()
    core = small_model(dataset)
    images = dataset.raw("test")[:5]
    probabilities = dataset.attach(core, softmax=True).predict(images, verbose=0)
    logits = core.predict(dataset.test[0][:5], verbose=0)
    np.testing.assert_allclose(probabilities, keras.ops.softmax(logits), rtol=1e-5)
    np.testing.assert_allclose(dataset.attach(core).predict(images, verbose=0), logits, rtol=1e-5)


def test_images_without_channel_axis_predict(tmp_path):
    arrays = write_npz(tmp_path / "a.npz")
    dataset = data.load(tmp_path / "a.npz")
    core = small_model(dataset)
    expected = core.predict(dataset.test[0], verbose=0)
    for raw in (arrays["x_test"], arrays["x_test"][..., None]):
        np.testing.assert_allclose(dataset.attach(core).predict(raw, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_column_names_that_keras_would_trip_over(tmp_path):
    names = ["cast", "isnan", "where", "a/b", "encode_all", "Two Words", "get_item_1", "concatenate"]
    path = tmp_path / "a.csv"
    rows = [",".join(str((i * (j + 2)) % 11) if i % 5 or j else "" for j in range(len(names))) for i in range(40)]
    path.write_text(",".join([*names, "y"]) + "\n" + "\n".join(f"{row},{i % 2}" for i, row in enumerate(rows)))
    dataset = data.load(path, "y")
    core = small_model(dataset)
    attached = dataset.attach(core)
    attached.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    expected = core.predict(dataset.test[0], verbose=0)
    np.testing.assert_allclose(loaded.predict(dataset.raw(), verbose=0), expected, rtol=1e-5, atol=1e-6)


@TEXT_ON_TENSORFLOW
def test_under_mixed_precision_only_the_core_computes_in_half(csv_file):
    keras.config.set_dtype_policy("mixed_float16")
    dataset = data.load(csv_file, "price")
    core = small_model(dataset)
    predicted = dataset.attach(core).predict(dataset.raw("test"), verbose=0)
    expected = core.predict(dataset.test[0], verbose=0).astype(np.float64)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected * dataset.target_deviation + dataset.target_mean, rtol=1e-5)


@TEXT_ON_TENSORFLOW
def test_core_built_under_a_strategy(csv_file, two_replicas, tmp_path):
    dataset = data.load(csv_file, "answer")
    with two_replicas.scope():
        core = small_model(dataset)
    expected = dataset.test[0] @ core.get_weights()[0] + core.get_weights()[1]
    attached = dataset.attach(core)
    np.testing.assert_allclose(attached.predict(dataset.raw(), verbose=0), expected, rtol=1e-5, atol=1e-5)
    attached.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(dataset.raw(), verbose=0), expected, rtol=1e-5, atol=1e-5)


@TEXT_ON_TENSORFLOW
@pytest.mark.slow
def test_saved_file_predicts_in_a_process_without_the_kit(csv_file, tmp_path):
    dataset = data.load(csv_file, "price")
    core = small_model(dataset)
    dataset.attach(core).save(tmp_path / "m.keras")
    script = (
        "import sys, json, keras, numpy as np\n"
        f"model = keras.models.load_model({str(tmp_path / 'm.keras')!r})\n"
        "row = {'age': [float('nan'), 23.0], 'score': [1.0, 2.0]}\n"
        "row = {name: np.array(values) for name, values in row.items()}\n"
        "row['home town'] = np.array(['Oslo', 'Mars'], dtype=object)\n"
        "row['answer'] = np.array(['yes', 'no'], dtype=object)\n"
        "out = model.predict(row, verbose=0)\n"
        "assert not any(name.startswith('keras_trainkit') for name in sys.modules)\n"
        "print(json.dumps(out.tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    columns = {
        "age": np.array([np.nan, 23.0]),
        "home town": np.array(["Oslo", "Mars"], dtype=object),
        "score": np.array([1.0, 2.0]),
        "answer": np.array(["yes", "no"], dtype=object),
    }
    encoded = dataset.encoder.encode(columns)
    expected = core.predict(encoded, verbose=0) * dataset.target_deviation + dataset.target_mean
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="on TensorFlow text columns work")
def test_text_columns_off_tensorflow_train_but_cannot_be_attached(csv_file):
    dataset = data.load(csv_file, "answer")
    assert np.isfinite(small_model(dataset).predict(dataset.test[0], verbose=0)).all()
    with pytest.raises(data.DataError, match=r"takes text \(`home town`\) needs Keras on TensorFlow"):
        dataset.attach(small_model(dataset))
