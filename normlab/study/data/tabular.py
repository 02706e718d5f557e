"""Labelled rows of a user's file, `.csv` or `.npz`; errors name the place in the file."""

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normlab.errors import BadInput, nearest, one_line
from normlab.study.data import npz

_LARGEST_CLASS = 2**31 - 2
"""JAX counts classes in 32 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The content of a file, in its order.

    Attributes:
        path: Path of the file.
        inputs: Shape (n, ...), float64; NaN for a missing value.
        labels: Labels as text; empty for a missing label.
        places: Place of each row in the file, for messages.
        columns: Names of the features; empty if they have none.
    """

    path: str
    inputs: np.ndarray
    labels: list[str]
    places: list[str]
    columns: list[str]

    def whole(self, *, skip: bool = False) -> np.ndarray:
        """Find the rows with finite values only, shape (n,).

        Args:
            skip: Whether other rows are allowed.

        Raises:
            BadInput: If there are other rows although they are not allowed, or no finite ones.
        """
        if not self.labels:
            raise BadInput(f"Expected examples in `{self.path}`, got none.")
        with np.errstate(over="ignore"):  # to infinity, which is found here
            finite = np.isfinite(self.inputs.astype(np.float32))
        whole = finite.all(axis=tuple(range(1, finite.ndim))) & ~self._unlabelled()
        if not (skip or whole.all()):
            raise BadInput(
                f"Expected finite numbers in `{self.path}`, got {self._wrong(finite)}, the first of {np.sum(~whole)} "
                f"such examples. Fix them, or pass `skip_nonfinite=True` to leave them out."
            )
        if not whole.any():
            raise BadInput(
                f"Expected examples with finite numbers in `{self.path}`, got none: {self._wrong(finite)}, ..."
            )
        return whole

    def classes(self, declared: Sequence[str] | None, numbers: bool, stays: np.ndarray) -> tuple[np.ndarray, int]:
        """Convert the labels of some rows to numbers, and count the classes; 0 if labels are targets.

        Args:
            declared: All possible classes. Unless given: integers are classes, counted from 0; other numbers are
                targets; text is a class, numbered by first appearance.
            numbers: Whether labels are targets although all of them are integers.
            stays: Mask of the rows, shape (n,).

        Raises:
            BadInput: If a label is invalid.
        """
        where = np.flatnonzero(stays)
        labels = [self.labels[row].strip() for row in where]
        numeric = [_is_number(label) for label in labels]
        if declared is None and len(set(numeric)) > 1:
            odd = numeric.index(not numeric[0])
            raise BadInput(
                f"Expected labels in `{self.path}` that are all numbers or all text, got `{labels[odd]}` in "
                f"{self.places[where[odd]]} after `{labels[0]}`. Pass `classes` to declare all that there can be."
            )
        if declared is None and numeric[0]:
            return self._numbers(np.array(labels, np.float64), numbers or not all(map(_is_integer, labels)), where)
        index = {name: place for place, name in enumerate(declared or dict.fromkeys(labels))}
        unknown = next((row for row, label in enumerate(labels) if label not in index), None)
        if unknown is not None:
            raise BadInput(
                f"Expected labels in `{self.path}` to be of the declared classes, got `{labels[unknown]}` in "
                f"{self.places[where[unknown]]}. {nearest(labels[unknown], index)}"
            )
        return np.array([index[label] for label in labels]), len(index)

    def _numbers(self, labels: np.ndarray, targets: bool, where: np.ndarray) -> tuple[np.ndarray, int]:
        if targets:
            return labels, 0
        wrong = (labels < 0) | (labels > _LARGEST_CLASS)
        if wrong.any():
            row = int(wrong.argmax())
            raise BadInput(
                f"Expected classes counted from 0 in `{self.path}`, got {labels[row]:g} in {self.places[where[row]]}. "
                f"Pass `classes` to declare all that there can be, or `numbers=True` if labels are targets."
            )
        return labels.astype(np.int64), int(labels.max()) + 1

    def _unlabelled(self) -> np.ndarray:
        return np.array([_is_missing(label) for label in self.labels])

    def _wrong(self, finite: np.ndarray) -> str:
        """Describe the first value that is missing or not finite, and its place."""
        row = int((self._unlabelled() | ~finite.all(axis=tuple(range(1, finite.ndim)))).argmax())
        if finite[row].all():
            return f"`{self.labels[row]}` for the label in {self.places[row]}"
        place = tuple(np.argwhere(~finite[row])[0].tolist())
        name = f"column `{self.columns[place[0]]}`" if self.columns else f"feature {', '.join(map(str, place))}"
        return f"{self.inputs[row][place]} for {name} in {self.places[row]}"


DELIMITERS = {",": ",", ";": ";", "|": "|", "tab": "\t"}
"""Delimiters of the values of a `.csv` file, by name."""


def read_csv(
    path: str,
    label: str | None = None,
    *,
    drop: Sequence[str] = (),
    header: bool | None = None,
    delimiter: str = ",",
) -> Table:
    """Read a `.csv` file in UTF-8: names of columns in the first line, numbers below; empty cells are NaN.

    Args:
        path: Path of the file.
        label: The column of labels, which may be text; the last one unless given.
        drop: Columns that are left out, whatever they contain.
        header: Whether the first line contains names; without names, columns are counted from 1. Unless given, it does,
            and a line that looks like an example is refused.
        delimiter: Delimiter of values; see `DELIMITERS`.

    Raises:
        BadInput: If the content is invalid; the message names the line.
    """
    lines = _lines(path, delimiter)
    if not lines:
        raise BadInput(f"Expected names of features and of the label in the first line of `{path}`, got [].")
    _check_delimiter(path, *lines[0], delimiter)
    width = len(lines[0][1])
    columns = [f"{i + 1}" for i in range(width)] if header is False else [name.strip() for name in lines.pop(0)[1]]
    column = _label_column(path, columns, label, sure=header is not None)
    features = _features(path, columns, column, drop)
    for line, row in lines:
        if len(row) != width:
            raise BadInput(f"Expected {width} values in line {line} of `{path}`, as in its first, got {len(row)}.")
    first = lines[0][0] if lines else 0
    inputs = [[_number(row[i], columns[i], path, line, first) for i in features] for line, row in lines]
    return Table(
        path=path,
        inputs=np.array(inputs, np.float64).reshape(-1, len(features)),
        labels=[row[column].strip() for _, row in lines],
        places=[f"line {line}" for line, _ in lines],
        columns=[columns[i] for i in features],
    )


def _lines(path: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Split each line that is not empty into values, with the number of the line.

    Raises:
        BadInput: If a line is invalid, in particular if an open quote would swallow the next lines.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=DELIMITERS[delimiter], strict=True)
    found, before = [], 0
    try:
        for row in reader:
            if reader.line_num > before + 1:
                raise csv.Error(f"a quote that is closed only in line {reader.line_num}")
            before = reader.line_num
            if len(row) > 1 or "".join(row).strip():
                found.append((before, row))
    except csv.Error as error:
        raise BadInput(
            f"Expected values between `{delimiter}` in line {before + 1} of `{path}`, got {error}. Close quotes on "
            "their line, and write a quote within a value twice."
        ) from error
    return found


def _text(path: str) -> str:
    """Read a file in UTF-8, with or without a byte order mark."""
    content = Path(path).read_bytes()
    wrong = content.find(0)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text, wrong = "", error.start if wrong < 0 else min(wrong, error.start)
    if wrong >= 0:
        line = content.count(b"\n", 0, wrong) + 1
        raise BadInput(
            f"Expected a .csv file in UTF-8, got `{path}` with the byte {content[wrong]:#04x} in line {line}. Save it "
            "as UTF-8."
        )
    return text


def _check_delimiter(path: str, line: int, row: Sequence[str], delimiter: str) -> None:
    """Refuse a first line that seems to have another delimiter."""
    others = [name for name, character in DELIMITERS.items() if name != delimiter and character in row[0]]
    if len(row) == 1 and others:
        raise BadInput(
            f"Expected values between `{delimiter}` in line {line} of `{path}`, got one value with `{others[0]}` in "
            f"it. Pass `delimiter={others[0]!r}` (`--delimiter '{others[0]}'`)."
        )


def read_npz(path: str) -> Table:
    """Read an `.npz` file with numbers `inputs`, shape (n, ...), and `labels`, shape (n,).

    Raises:
        BadInput: If the content is invalid.
    """
    try:
        inputs, labels = npz.read(path, ("inputs", "labels"), copied=lambda dtype: 8 * (dtype != np.float64))
    except ValueError as error:
        raise BadInput(f"Expected an .npz file with `inputs` and `labels`, got `{path}`: {one_line(error)}.") from error
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2 or 0 in inputs.shape[1:] or labels.shape != inputs.shape[:1]:
        raise BadInput(
            f"Expected `inputs` in `{path}` to be numbers of shape (n, features) and `labels` of shape (n,), got "
            f"{inputs.dtype} of shape {inputs.shape} and labels of shape {labels.shape}."
        )
    return numbered(path, inputs, labels)


def numbered(path: str, inputs: np.ndarray, labels: np.ndarray) -> Table:
    """Make rows that are known by their index."""
    return Table(
        path=path,
        inputs=inputs.astype(np.float64),
        labels=(labels.astype(np.int64) if labels.dtype == bool else labels).astype(str).tolist(),
        places=[f"example {index}" for index in range(len(labels))],
        columns=[],
    )


def _label_column(path: str, columns: Sequence[str], label: str | None, *, sure: bool) -> int:
    """Find the column of labels.

    Raises:
        BadInput: If there is none, or names of columns are invalid or, unless `sure`, look like values.
    """
    if len(columns) < 2:
        raise BadInput(
            f"Expected names of features and of the label in the first line of `{path}`, got {list(columns)}."
        )
    named = label in columns
    if not (sure or named) and _look_like_values(columns):
        raise BadInput(
            f"Expected names of columns in the first line of `{path}`, got numbers. Pass `header=False` "
            "(`--no-header`) if it is an example, and `header=True` (`--header`) if these are the names."
        )
    for i, name in enumerate(columns):
        if not name:
            raise BadInput(f"Expected a name for every column in the first line of `{path}`, got none for {i + 1}.")
        if name in columns[:i]:
            raise BadInput(
                f"Expected every name once in the first line of `{path}`, got `{name}` for columns "
                f"{columns.index(name) + 1} and {i + 1}. Rename one."
            )
    if label is not None and not named:
        raise BadInput(f"Expected a column `{label}` of labels in `{path}`, got none. {nearest(label, columns)}")
    return len(columns) - 1 if label is None else columns.index(label)


def _look_like_values(names: Sequence[str]) -> bool:
    """Check for names that look like an example: all but the last are numbers or empty, or one is no whole number."""
    return all(not name or _is_number(name) for name in names[:-1]) or any(
        _is_number(name) and not name.isdecimal() for name in names
    )


def _features(path: str, columns: Sequence[str], label: int, drop: Sequence[str]) -> list[int]:
    """Find the columns of features.

    Raises:
        BadInput: If a column in `drop` does not exist or is the label, or no column is left.
    """
    for name in drop:
        if name not in columns:
            raise BadInput(f"Expected columns of `{path}` in `drop`, got `{name}`. {nearest(name, columns)}")
        if name == columns[label]:
            raise BadInput(f"Expected features of `{path}` in `drop`, got the label `{name}`. Pass another `label`.")
    found = [i for i, name in enumerate(columns) if i != label and name not in drop]
    if not found:
        raise BadInput(f"Expected features of `{path}` besides those in `drop`, got none. Drop fewer.")
    return found


def _number(cell: str, column: str, path: str, line: int, first: int) -> float:
    """Convert a cell to a number; NaN if it is empty."""
    try:
        return _parsed(cell) if cell.strip() else np.nan
    except ValueError:
        before = " after numbers" if line > first else ""
        raise BadInput(
            f"Expected numbers in column `{column}` of `{path}`, got `{cell}` in line {line}{before}. Write it as a "
            f"number, or leave the column out by `drop=({column!r},)` (`--drop {column}`)."
        ) from None


def _parsed(text: str) -> float:
    """Convert text to a number, without the underscores of Python.

    Raises:
        ValueError: If it is no number.
    """
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        _parsed(text)
        return True
    return False


def _is_integer(text: str) -> bool:
    return float(text).is_integer()


def _is_missing(label: str) -> bool:
    return not label.strip() or (_is_number(label) and not np.isfinite(float(label)))
