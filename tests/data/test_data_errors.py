"""Every fault in a data file is one clear line that says what, where and how often."""

import gzip

import numpy as np
import pytest

from keras_trainkit import data

GOOD = [f"{i},{'a' if i % 2 else 'b'},{i * 0.5}" for i in range(20)]


def table(*rows):
    return "\n".join(["x,y,z", *rows])


def changed(line, row):
    """Good rows with the row of this file line (the header is line 1) replaced."""
    rows = list(GOOD)
    rows[line - 2] = row
    return table(*rows)


CSV_FAULTS = {
    "empty": ("", "y", "the file is empty"),
    "only blank lines": ("\n\n \n", "y", "the file is empty"),
    "only a header": ("x,y,z\n", "y", "holds a header row and no data"),
    "unknown target": (table(*GOOD), "Y2", r"no column `Y2`; the columns are x, y, z\. Did you mean 'y'\?"),
    "no target": (table(*GOOD), None, r"name the column to predict \(`target`\); the columns are x, y, z"),
    "ragged": (changed(7, "1,a"), "y", "line 7 has 2 cells where the first row has 3"),
    "target missing": (changed(9, "1,,2"), "y", r"target `y` holds 1 missing or NaN value\(s\), first on line 9"),
    "target nan": (changed(9, "1,a,nan"), "z", "target `z` holds 1 missing or NaN value.*first on line 9"),
    "target infinite": (changed(4, "1,a,inf"), "z", "target `z` holds 1 infinite value.*first on line 4"),
    "column infinite": (changed(4, "-inf,a,1"), "y", "column `x` holds 1 infinite value.*first on line 4"),
    "too few rows": (table(*GOOD[:5]), "y", "too few rows: 5, at least 10 needed"),
    "one class": (table(*[row.replace("b", "a") for row in GOOD]), "y", r"only one class \(a\)"),
    "a class per row": (table(*[f"{i},name{i},1" for i in range(20)]), "y", "20 classes in 20 rows"),
    "constant target": (table(*[f"{i},a,0.5" for i in range(20)]), "z", "the target is 0.5 in every training row"),
    "same name twice": ("x,y,x\n" + "\n".join(GOOD), "y", "2 columns are named `x`"),
    "only column": ("y\n" + "a\nb\n" * 10, "y", "`y` is the only column"),
    "typing error": (
        table(*[f"{i},a,1" for i in range(30)], "3O,b,1"),
        "y",
        r"column `x` holds numbers but for 1 cell\(s\), first '3O' on line 32",
    ),
    "no values": (table(*[f",{'ab'[i % 2]},?" for i in range(20)]), "y", "no column besides `y` holds a value"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_csv(tmp_path, fault):
    content, target, message = CSV_FAULTS[fault]
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(path, target)
    assert "\n" not in str(caught.value) and "bad.csv" in str(caught.value)


def test_text_target_for_regression(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(table(*GOOD))
    with pytest.raises(data.DataError, match=r"target `y` is text; regression needs numbers"):
        data.load(path, "y", task="regression")


def test_headerless_file_says_that_columns_are_numbered(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(GOOD))
    with pytest.raises(data.DataError, match=r"the columns are column_1, column_2, column_3.*no header row"):
        data.load(path, "y")


def test_damaged_gzip_and_wrong_encoding(tmp_path):
    whole = gzip.compress(table(*GOOD).encode())
    path = tmp_path / "bad.csv.gz"
    path.write_bytes(whole[:-20])
    with pytest.raises(data.DataError, match=r"damaged or not gzipped"):
        data.load(path, "y")
    path.write_bytes(table(*GOOD).encode())
    with pytest.raises(data.DataError, match=r"damaged or not gzipped"):
        data.load(path, "y")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("stadt,y\nKöln,1\n".encode("latin-1"))
    with pytest.raises(data.DataError, match=r"not UTF-8 text \(byte 9 is 0xf6\)"):
        data.load(latin, "y")


def good_arrays():
    return {
        "x_train": np.arange(40 * 6, dtype=np.float32).reshape(40, 6),
        "y_train": np.arange(40) % 4,
        "x_test": np.ones((12, 6), np.float32),
        "y_test": np.arange(12) % 4,
    }


def put(name, index, value, dtype=None):
    def change(arrays):
        arrays[name] = arrays[name].astype(dtype or arrays[name].dtype)
        arrays[name][index] = value

    return change


NPZ_FAULTS = {
    "missing array": (lambda a: a.pop("x_test"), "missing x_test; .* the file holds x_train, y_train, y_test"),
    "nan": (put("x_train", (7, 2), np.nan), r"array `x_train` holds 1 NaN value, first at index \(7, 2\)"),
    "nan and infinity": (
        put("x_test", ([3, 5, 6], [1, 0, 0]), [-np.inf, np.nan, np.nan]),
        r"array `x_test` holds 2 NaN and 1 infinite values, first at index \(3, 1\)",
    ),
    "nan in target": (put("y_train", 11, np.nan, float), "array `y_train` holds 1 NaN value, first at index 11"),
    "negative": (put("y_train", [4, 9], -1), r"`y_train` holds 2 negative label\(s\), first -1 at row 4"),
    "gap": (
        put("y_train", 13, 99),
        r"out of range: `y_train` must hold class ids 0 to 4 \(it has 5 different labels\).*first 99 at row 13",
    ),
    "unknown in test": (put("y_test", 5, 4), r"out of range: `y_test` must hold class ids 0 to 3.*first 4 at row 5"),
    "negative in test": (put("y_test", 5, -2), "out of range: `y_test`.*first -2 at row 5"),
    "lengths": (
        lambda a: a.update(y_train=a["y_train"][:-1]),
        "lengths differ: `x_train` has 40 rows, `y_train` has 39",
    ),
    "shapes": (
        lambda a: a.update(x_test=np.ones((12, 7))),
        r"rows of `x_test` have shape \(7,\), rows of `x_train` \(6,\)",
    ),
    "one-hot": (lambda a: a.update(y_train=np.eye(40)), r"`y_train` must have shape \(n,\).*argmax.*\(40, 40\)"),
    "flat x": (lambda a: a.update(x_train=np.ones(40)), r"`x_train` must be images.*Received: shape=\(40,\)"),
    "empty rows": (
        lambda a: a.update(x_train=np.ones((40, 0)), x_test=np.ones((12, 0))),
        r"`x_train` has empty rows. Received: shape=\(40, 0\)",
    ),
    "text": (lambda a: a.update(y_train=np.array(["a"] * 40)), "`y_train` must hold numbers. Received: dtype=<U1"),
    "objects": (lambda a: a.update(y_train=np.array([None] * 40)), "`y_train` cannot be read as numbers"),
    "scalar": (lambda a: a.update(y_train=np.array(3)), "`y_train` is a single number"),
    "one class": (lambda a: a.update(y_train=np.zeros(40, int)), r"`y_train` holds only one class \(0\)"),
    "too few": (
        lambda a: a.update(x_train=a["x_train"][:4], y_train=a["y_train"][:4]),
        "too few rows: `x_train` has 4, at least 10 needed",
    ),
    "no test rows": (
        lambda a: a.update(x_test=a["x_test"][:0], y_test=a["y_test"][:0]),
        "too few rows: `x_test` has 0, at least 1 needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_npz(tmp_path, fault):
    change, message = NPZ_FAULTS[fault]
    arrays = good_arrays()
    change(arrays)
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(path)
    assert "\n" not in str(caught.value) and "bad.npz" in str(caught.value)


def test_parts_of_labels_when_classification_is_asked_for(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **good_arrays() | {"y_train": np.linspace(0, 3, 40)})
    with pytest.raises(data.DataError, match=r"`y_train` must hold whole class ids; 36 are not, first 0.07.* at row 1"):
        data.load(path, task="classification")


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **good_arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match=r"not an .npz file, or a damaged one"):
        data.load(path)
    path.write_bytes(b"x,y\n1,2\n")
    with pytest.raises(data.DataError, match=r"not an .npz file"):
        data.load(path)
    middle = bytearray(whole)
    middle[200:260] = bytes(60)
    path.write_bytes(bytes(middle))
    with pytest.raises(data.DataError, match=r"damaged .npz file"):
        data.load(path)
    path.write_bytes(b"")
    with pytest.raises(data.DataError, match=r"the file is empty"):
        data.load(path)


def test_paths(tmp_path):
    with pytest.raises(data.DataError, match=r"absent.csv: no such file"):
        data.load(tmp_path / "absent.csv", "y")
    with pytest.raises(data.DataError, match=r"a directory, not a file"):
        data.load(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"1")
    with pytest.raises(data.DataError, match=r"unknown kind of file; expected \.npz, \.csv or \.csv\.gz"):
        data.load(tmp_path / "a.parquet", "y")
    np.savez(tmp_path / "a.npz", **good_arrays())
    with pytest.raises(data.DataError, match=r"an .npz file has no columns"):
        data.load(tmp_path / "a.npz", "y")
    with pytest.raises(data.DataError, match=r"digits have no columns"):
        data.load(target="y")
    with pytest.raises(TypeError, match=r"`seed` must be an integer"):
        data.load(seed=0.5)
    with pytest.raises(ValueError, match=r"`part` must be one of"):
        data.load().raw("rest")
