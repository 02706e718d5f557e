"""Labelled rows of a user's file, `.csv` or `.npz`: every mistake in them is told with the place where it is."""

import csv
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from normlab.study.errors import BadInput, nearest, one_line


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What a file holds, in its order.

    Attributes:
        path: Of the file.
        inputs: Shape (n, ...), float64; NaN where there is nothing.
        labels: As text; empty where there is nothing.
        places: Where each row is, in words.
        columns: Names of the features; empty where they have none.
    """

    path: str
    inputs: np.ndarray
    labels: list[str]
    places: list[str]
    columns: list[str]

    def whole(self, *, skip: bool = False) -> np.ndarray:
        """Tell which rows have finite values only, shape (n,).

        Args:
            skip: Whether there may be others.

        Raises:
            BadInput: If there are others that may not be, or no other.
        """
        if not self.labels:
            raise BadInput(f"Expected examples in `{self.path}`, got none.")
        with np.errstate(over="ignore"):  # to infinity, which is found here
            finite = np.isfinite(self.inputs.astype(np.float32))
        whole = finite.all(axis=tuple(range(1, finite.ndim))) & ~self._unlabelled()
        if not (skip or whole.all()):
            raise BadInput(
                f"Expected finite numbers in `{self.path}`, got {self._wrong(finite)}, the first of {np.sum(~whole)} "
                f"such examples. Mend them, or pass `skip_nonfinite=True` to leave them out."
            )
        if not whole.any():
            raise BadInput(
                f"Expected examples with finite numbers in `{self.path}`, got none: {self._wrong(finite)}, ..."
            )
        return whole

    def classes(self, declared: Sequence[str] | None, numbers: bool, stays: np.ndarray) -> tuple[np.ndarray, int]:
        """Give labels of some rows as numbers, and how many classes there are, 0 where labels are targets.

        Args:
            declared: All classes that there can be. Unless given: integers are classes themselves, counted from 0;
                other numbers are targets; text is a class, counted as it first appears.
            numbers: Whether labels are targets though all of them are integers.
            stays: Which rows, shape (n,).

        Raises:
            BadInput: If a label is not what can be.
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
        if labels.min() < 0:
            row = int(labels.argmin())
            raise BadInput(
                f"Expected classes counted from 0 in `{self.path}`, got {labels[row]:g} in {self.places[where[row]]}. "
                f"Pass `classes` to declare all that there can be, or `numbers=True` if labels are targets."
            )
        return labels.astype(np.int64), int(labels.max()) + 1

    def _unlabelled(self) -> np.ndarray:
        return np.array([_is_missing(label) for label in self.labels])

    def _wrong(self, finite: np.ndarray) -> str:
        """The first value that is missing or not finite, and where it is."""
        row = int((self._unlabelled() | ~finite.all(axis=tuple(range(1, finite.ndim)))).argmax())
        if finite[row].all():
            return f"`{self.labels[row]}` for the label in {self.places[row]}"
        place = tuple(np.argwhere(~finite[row])[0].tolist())
        name = f"column `{self.columns[place[0]]}`" if self.columns else f"feature {', '.join(map(str, place))}"
        return f"{self.inputs[row][place]} for {name} in {self.places[row]}"


def read_csv(path: str, label: str | None = None) -> Rows:
    """Read a `.csv` file in UTF-8: names of columns in the first line, numbers below; empty cells are NaN.

    Args:
        path: Of the file.
        label: The column of labels, which may be text; the last one unless given.

    Raises:
        BadInput: If there is something else in it.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"Expected a .csv file in UTF-8, got `{path}`: {one_line(error)}.") from error
    column = _label_column(path, header, label)
    for line, row in rows:
        if len(row) != len(header):
            raise BadInput(
                f"Expected {len(header)} values in line {line} of `{path}`, as in its first, got {len(row)}."
            )
    labels = [row.pop(column) for _, row in rows]
    columns = header[:column] + header[column + 1 :]
    inputs = [[_number(*cell, path, line, rows[0][0]) for cell in zip(row, columns, strict=True)] for line, row in rows]
    return Rows(
        path=path,
        inputs=np.array(inputs).reshape(-1, len(columns)),
        labels=labels,
        places=[f"line {line}" for line, _ in rows],
        columns=columns,
    )


def read_npz(path: str) -> Rows:
    """Read an `.npz` file with numbers `inputs`, shape (n, ...), and `labels`, shape (n,).

    Raises:
        BadInput: If there is something else in it.
    """
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            inputs, labels = file["inputs"], file["labels"]
    except (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise BadInput(f"Expected an .npz file with `inputs` and `labels`, got `{path}`: {one_line(error)}.") from error
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2 or 0 in inputs.shape[1:] or labels.shape != inputs.shape[:1]:
        raise BadInput(
            f"Expected `inputs` in `{path}` to be numbers of shape (n, features) and `labels` of shape (n,), got "
            f"{inputs.dtype} of shape {inputs.shape} and labels of shape {labels.shape}."
        )
    return numbered(path, inputs, labels)


def numbered(path: str, inputs: np.ndarray, labels: np.ndarray) -> Rows:
    """Give rows that are known by their index."""
    return Rows(
        path=path,
        inputs=inputs.astype(np.float64),
        labels=(labels.astype(np.int64) if labels.dtype == bool else labels).astype(str).tolist(),
        places=[f"example {index}" for index in range(len(labels))],
        columns=[],
    )


def _label_column(path: str, header: Sequence[str], label: str | None) -> int:
    """Which column holds the labels."""
    if len(header) < 2:
        raise BadInput(
            f"Expected names of features and of the label in the first line of `{path}`, got {list(header)}."
        )
    if all(map(_is_number, header)):
        raise BadInput(f"Expected names of columns in the first line of `{path}`, got numbers. Put names above them.")
    if label is not None and label not in header:
        raise BadInput(f"Expected a column `{label}` of labels in `{path}`, got none. {nearest(label, header)}")
    return len(header) - 1 if label is None else header.index(label)


def _number(cell: str, column: str, path: str, line: int, first: int) -> float:
    """A cell as a number; NaN where it is empty."""
    try:
        return float(cell) if cell.strip() else np.nan
    except ValueError:
        before = " after numbers" if line > first else ""
        raise BadInput(
            f"Expected numbers in column `{column}` of `{path}`, got `{cell}` in line {line}{before}. Write it as a "
            f"number, or leave the column out."
        ) from None


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _is_integer(text: str) -> bool:
    return float(text).is_integer()


def _is_missing(label: str) -> bool:
    return not label.strip() or (_is_number(label) and not np.isfinite(float(label)))
