"""Compare the outputs of a model and of its fold, and find the norm whose fold is the cause of a difference."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

__all__ = ["Comparison", "compare", "default_tolerance", "first_bad"]

Item = TypeVar("Item")
_TOLERANCES = {2: 5e-2, 4: 1e-5, 8: 1e-12}
"""By the bytes of the least precise dtype."""


class Comparison:
    """Outputs of two models.

    Attributes:
        difference: Largest absolute difference.
        limit: Largest difference that is tolerated.
    """

    def __init__(self, difference: float, limit: float) -> None:
        """Keep the numbers."""
        self.difference, self.limit = difference, limit

    @property
    def close(self) -> bool:
        """Return whether the difference is tolerated; NaN is not."""
        return self.difference <= self.limit


def compare(expected: object, found: object, tolerance: float) -> Comparison:
    """Compare two trees of arrays.

    Args:
        expected: Outputs of the model.
        found: Outputs of its fold, in the same tree.
        tolerance: Largest difference, in units of the largest expected number or of 1.
    """
    pairs = list(zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True))
    numbers = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs if np.size(a)]
    differences = [float(np.max(np.abs(a - b))) for a, b in numbers]
    size = max([1.0, *(float(np.max(np.abs(a))) for a, _ in numbers)])
    return Comparison(float(np.max([0.0, *differences])), tolerance * size)


def default_tolerance(dtypes: Iterable[DTypeLike]) -> float:
    """Return the tolerance for the least precise of some dtypes; those that are no floating point count for nothing."""
    sizes = [jnp.dtype(one).itemsize for one in dtypes if jnp.issubdtype(one, jnp.floating)]
    return _TOLERANCES.get(min(sizes, default=4), 5e-2)


def first_bad(items: Sequence[Item], is_bad: Callable[[Sequence[Item]], bool]) -> Item | None:
    """Return the first item with which a sequence turns bad, by bisection; `None` where an empty one is bad already.

    Args:
        items: A sequence that is bad as a whole.
        is_bad: Whether the first few of the items are bad.
    """
    if is_bad([]):
        return None
    good, bad = 0, len(items)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if is_bad(items[:middle]) else (middle, bad)
    return items[bad - 1]
