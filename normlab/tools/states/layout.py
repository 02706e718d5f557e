"""Where another library keeps each array of a Flax module, and in which order of axes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["SAME", "Layout", "Place", "Places", "permuted", "reshaped", "taken"]


@dataclass(frozen=True)
class Layout:
    """Order of the numbers of an array in another library; only permutations, so that both directions are exact.

    Attributes:
        read: Maps the other library's array to Flax's; raises `ValueError` for another number of axes.
        write: Undoes `read`.
    """

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]

    def then(self, other: "Layout") -> "Layout":
        """Return the layout that reads by this one first, and by the other one after it."""
        return Layout(lambda array: other.read(self.read(array)), lambda array: self.write(other.write(array)))


class Place(NamedTuple):
    """Key of an array within a layer of another library, and the layout of the array there."""

    key: str
    layout: Layout


Places = Mapping[str, Place]
"""Places of a module's arrays, by the names of the arrays in the module."""

SAME = Layout(lambda array: array, lambda array: array)


def permuted(axes: Sequence[int], reversed_axes: tuple[int, ...] = ()) -> Layout:
    """Return the layout of an array with permuted axes.

    Args:
        axes: The other library's axis for each axis of Flax.
        reversed_axes: Axes of Flax along which the other library counts backwards.

    Example:
        >>> permuted((2, 3, 1, 0)).read(np.zeros((8, 3, 5, 5))).shape
        (5, 5, 3, 8)
    """
    back = np.argsort(axes)
    return Layout(
        lambda array: np.flip(np.transpose(array, axes), reversed_axes),
        lambda array: np.transpose(np.flip(array, reversed_axes), back),
    )


def taken(order: np.ndarray) -> Layout:
    """Return the layout of an array whose first axis is in another order.

    Args:
        order: The other library's index for each index of Flax.
    """
    back = np.argsort(order)
    return Layout(lambda array: _take(array, order), lambda array: _take(array, back))


def _take(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    if len(array) != len(order):
        raise ValueError(array.shape)
    return array[order]


def reshaped(theirs: Sequence[int], ours: Sequence[int]) -> Layout:
    """Return the layout of an array that has other axes and the same order of its numbers."""
    return Layout(lambda array: _reshape(array, theirs, ours), lambda array: _reshape(array, ours, theirs))


def _reshape(array: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    if array.shape != tuple(old):
        raise ValueError(array.shape)
    return array.reshape(new)
