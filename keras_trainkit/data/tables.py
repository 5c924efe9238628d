"""CSV tables: reads comma-separated text into typed columns, with the csv module and NumPy alone."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from keras_trainkit.core.checks import did_you_mean
from keras_trainkit.data.errors import DataError

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-nan", "+nan"})
DELIMITERS = ",;\t|"


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file as columns.

    Attributes:
        path: where it came from.
        columns: name to array: float64 with NaN for missing cells, or text (object) as written, spaces stripped.
        lines: line number in the file of each row, shape `(rows,)`, for messages.
        header: whether the file names its columns; if not they are `column_1`, `column_2` ...
        delimiter: the character between cells.
    """

    path: Path
    columns: dict[str, np.ndarray]
    lines: np.ndarray
    header: bool
    delimiter: str

    def __len__(self) -> int:
        return len(self.lines)


def read_table(path: Path, header: bool | None = None, text: Collection[str] = ()) -> Table:
    """Reads a `.csv` or `.csv.gz` file.

    A column is numeric if every cell that is not missing (empty, `?`, `NA`, `nan`, `null`) reads as a number. In a file
    separated by semicolons a decimal comma is read too.

    Args:
        path: the file. Delimiter (comma, semicolon, tab or bar) and header row are found by looking.
        header: whether the first row names the columns; None looks: it does not if its cells read as data.
        text: names of columns to keep as text although they look like numbers.

    Raises:
        DataError: empty, damaged or ragged file; a name used twice; a column of numbers with a few cells that are none.
    """
    content = read_text(path)
    delimiter = sniff_delimiter(content)
    rows, lines = read_rows(path, content, delimiter)
    if not rows:
        raise DataError(f"{path}: the file is empty.")
    width = len(rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise DataError(f"{path}: line {line} has {len(row)} cells where the first row has {width}.")
    if header is None:
        header = has_header(rows, delimiter)
    names = [name or f"column_{i + 1}" for i, name in enumerate(rows[0])] if header else []
    names = names or [f"column_{i + 1}" for i in range(width)]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: {names.count(name)} columns are named `{name}`; each needs a name of its own.")
    unknown = [name for name in text if name not in names]
    if unknown:
        raise DataError(unknown_column(path, unknown[0], names))
    rows, lines = rows[header:], lines[header:]
    if not rows:
        raise DataError(f"{path}: the file holds a header row and no data.")
    columns = {}
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        if name in text:
            columns[name] = np.array(cells, dtype=object)
        else:
            columns[name] = parse_column(path, name, cells, lines, delimiter)
    return Table(path, columns, np.array(lines), header, delimiter)


def read_text(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged or not gzipped ({error}).") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start} is {raw[error.start]:#04x}).") from error


def sniff_delimiter(content: str) -> str:
    """The delimiter that cuts the first lines into the most cells, the same number in each; a comma if none does."""
    sample = [line for line in content[:65536].splitlines() if line.strip()][:20]
    # The last line of the sample may be cut off; with one line only there is nothing else to look at.
    sample = sample[:-1] if len(sample) > 2 else sample
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            widths = {len(row) for row in csv.reader(sample, delimiter=delimiter, skipinitialspace=True)}
        except csv.Error:
            continue
        if len(widths) == 1 and max(widths) > most:
            best, most = delimiter, max(widths)
    return best


def read_rows(path: Path, content: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    rows, lines = [], []
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if len(cells) > 1 or (cells and cells[0]):
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV ({error}).") from error
    return rows, lines


def has_header(rows: Sequence[Sequence[str]], delimiter: str) -> bool:
    """Whether the first row names the columns, judged by the rows below it.

    It is data if each cell over a column of numbers is a number, and a cell over a column of text occurs in that column
    again (or, with numbers alone, the cells do not just count 0, 1, 2 ... or 1, 2, 3 ...).
    """
    first, below = rows[0], rows[1:2001]
    if not below:
        return True
    text_seen = text_again = False
    for cell, cells in zip(first, zip(*below, strict=True), strict=True):
        if to_numbers(cells, delimiter) is None:
            text_seen = True
            text_again = text_again or cell in cells
        elif cell.lower() not in MISSING and not is_number(cell, delimiter):
            return True
    if text_seen:
        return not text_again
    return list(first) in ([str(i) for i in range(len(first))], [str(i + 1) for i in range(len(first))])


def to_numbers(cells: Sequence[str], delimiter: str) -> np.ndarray | None:
    """Cells as float64 with NaN where missing, or None if one of them is no number."""
    values = np.array(["nan" if cell.lower() in MISSING else cell for cell in cells], dtype=str)
    try:
        return values.astype(np.float64)
    except ValueError:
        if delimiter != ";":
            return None
    try:
        return np.char.replace(values, ",", ".").astype(np.float64)
    except ValueError:
        return None


def is_number(cell: str, delimiter: str) -> bool:
    try:
        float(cell.replace(",", ".") if delimiter == ";" else cell)
    except ValueError:
        return False
    return True


def parse_column(path: Path, name: str, cells: Sequence[str], lines: Sequence[int], delimiter: str) -> np.ndarray:
    numbers = to_numbers(cells, delimiter)
    if numbers is not None:
        return numbers
    present = [i for i, cell in enumerate(cells) if cell.lower() not in MISSING]
    strange = [i for i in present if not is_number(cells[i], delimiter)]
    # Such a column would silently become thousands of rare words.
    if len(strange) * 20 < len(present):
        raise DataError(
            f"{path}: column `{name}` holds numbers but for {len(strange)} cell(s), first {cells[strange[0]]!r} "
            f"on line {lines[strange[0]]}; correct them, or name the column in `text` to keep it as text."
        )
    return np.array(cells, dtype=object)


def unknown_column(path: Path, name: str, names: Sequence[str]) -> str:
    return f"{path}: no column `{name}`; the columns are {', '.join(names)}{did_you_mean(name, names) or '.'}"
