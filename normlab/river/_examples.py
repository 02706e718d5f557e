"""Convert river's examples, dicts and data frames, to arrays, and refuse values that are no numbers.

The code is plain Python: for the few numbers of an example, NumPy takes longer.
"""

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LARGEST = float(np.finfo(np.float32).max)
"""Largest float32: numbers beyond it are infinite to the network."""

REFUSE, SKIP = "refuse", "skip"

Example = dict[Hashable, float]


def read(x: Mapping[Hashable, object]) -> Example:
    """Return the features of an example as floats.

    Raises:
        TypeError: If a feature is no number.
    """
    return {name: value if type(value) is float else number(value, "feature", name) for name, value in x.items()}


def read_frame(frame: "pd.DataFrame") -> list[Example]:
    """Return the rows of a data frame as examples of floats.

    Raises:
        TypeError: If a feature is no number.
    """
    names = list(frame.columns)
    return [read(dict(zip(names, row, strict=True))) for row in frame.itertuples(index=False, name=None)]


def number(value: object, what: str, name: Hashable = None) -> float:
    """Return a number or a bool as a float; numbers that are too large become infinite.

    Raises:
        TypeError: If `value` is neither.
    """
    if not isinstance(value, numbers.Real | np.bool_):
        named = what if name is None else f"{what} {name!r}"
        text = "Encode text as numbers first, for example with river's `preprocessing.OneHotEncoder`."
        missing = "Leave it out if it is missing, or impute it."
        raise TypeError(
            f"Expected {named} to be a number in every example, got {value!r}. "
            f"{text if isinstance(value, str) else missing}"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_finite(value: float) -> bool:
    """Report whether a number is finite, also as float32."""
    return -LARGEST <= value <= LARGEST


def check_finite(example: Example) -> None:
    """Raise a `ValueError` that names the first feature that is not finite, if there is one."""
    for name, value in example.items():
        if not is_finite(value):
            raise not_finite(f"feature {name!r}", value)


def not_finite(what: str, value: float) -> ValueError:
    """Make the error for a number that is NaN or infinite."""
    return ValueError(
        f"Expected {what} to be finite (in float32), got {value}. Impute it, or pass `nonfinite={SKIP!r}` to skip such "
        "examples and count them."
    )


def check_weights(weights: Sequence[object], n: int) -> list[float]:
    """Return the weights of `n` examples as floats.

    Raises:
        TypeError: If a weight is no number.
        ValueError: If a weight is negative or not finite, or there are not `n` weights.
    """
    if len(weights) != n:
        raise ValueError(f"Expected one weight, or one for each of {n} examples, got {len(weights)}.")
    found = [number(weight, "the weight") for weight in weights]
    for weight in found:
        if not 0 <= weight <= LARGEST:
            raise ValueError(f"Expected weights to be finite (in float32) and not negative, got {weight}. Correct it.")
    return found


def rows(examples: Sequence[Example], places: Mapping[Hashable, int], width: int) -> np.ndarray:
    """Return an array (examples, width) with each feature in its place, and 0 for missing ones; omit unknown ones."""
    filled = []
    for example in examples:
        row = [0.0] * width
        for name, value in example.items():
            if (place := places.get(name)) is not None:
                row[place] = value
        filled.append(row)
    return np.array(filled, np.float32).reshape(len(filled), width)


def names_of(examples: Iterable[Example]) -> set[Hashable]:
    """Return the names of all features."""
    return set().union(*examples)
