"""Examples as river has them, dicts and data frames, as arrays; what cannot be one is refused.

In plain Python: for the few numbers of an example NumPy takes longer.
"""

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond it are infinite to the network."""

REFUSE, SKIP = "refuse", "skip"

Example = dict[Hashable, float]


def read(x: Mapping[Hashable, Any]) -> Example:
    """Return the features of an example as floats.

    Raises:
        TypeError: If one is no number.
    """
    return {name: value if type(value) is float else number(value, "feature", name) for name, value in x.items()}


def read_frame(frame: Any) -> list[Example]:
    """Return the rows of a pandas data frame, likewise.

    Raises:
        TypeError: If a feature is no number.
    """
    names = list(frame.columns)
    return [read(dict(zip(names, row, strict=True))) for row in frame.itertuples(index=False, name=None)]


def number(value: Any, what: str, name: Hashable = None) -> float:
    """Return a number or a bool as a float, infinite where it is too large for one.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, numbers.Real | np.bool_):
        named = what if name is None else f"{what} {name!r}"
        text = "Encode text as numbers before, for example by river's `preprocessing.OneHotEncoder`."
        missing = "Leave it out where it is missing, or impute it."
        raise TypeError(
            f"Expected {named} to be a number in every example, got {value!r}. "
            f"{text if isinstance(value, str) else missing}"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_finite(value: float) -> bool:
    """Tell whether a number is finite, also as float32."""
    return -LARGEST <= value <= LARGEST


def check_finite(example: Example) -> None:
    """Raise a `ValueError` that names the first feature that is not finite."""
    for name, value in example.items():
        if not is_finite(value):
            raise not_finite(f"feature {name!r}", value)


def not_finite(what: str, value: float) -> ValueError:
    """Return the error for a number that is NaN or infinite."""
    return ValueError(
        f"Expected {what} to be finite (in float32), got {value}. Impute it, or pass `nonfinite={SKIP!r}` to skip such "
        "examples and count them."
    )


def check_weights(weights: Sequence[Any], n: int) -> list[float]:
    """Return the weights of some examples as floats.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is negative or not finite, or there is not one for each example.
    """
    if len(weights) != n:
        raise ValueError(f"Expected one weight, or one for each of {n} examples, got {len(weights)}.")
    found = [number(weight, "the weight") for weight in weights]
    for weight in found:
        if not 0 <= weight <= LARGEST:
            raise ValueError(f"Expected weights to be finite (in float32) and not negative, got {weight}. Correct it.")
    return found


def rows(examples: Sequence[Example], places: Mapping[Hashable, int], width: int) -> np.ndarray:
    """Put each feature in its place: shape (examples, width), 0 where there is none; unknown ones are left out."""
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
