"""Axes, and arrays of the rank of the input."""

import operator
from collections.abc import Iterable, Sequence

from jax import Array

from normlab._core.checks import check_features

Axes = int | Sequence[int]
"""One axis or several; negative ones count from the end."""


def canonical_axes(axes: Axes, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """Return `axes` as sorted non-negative integers.

    Args:
        axes: One axis or several.
        ndim: Rank of the array they belong to.
        name: The argument's name, for the message.

    Raises:
        ValueError: If an axis is out of range or named twice.
    """
    given = tuple(operator.index(a) for a in axes) if isinstance(axes, Iterable) else (operator.index(axes),)
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"Expected `{name}` to lie in [{-ndim}, {ndim}) for `x` of rank {ndim}, got {axes}.")
    canonical = tuple(sorted(a % ndim for a in given))
    if len(set(canonical)) < len(canonical):
        raise ValueError(f"Expected `{name}` to name each axis once, got {axes} for `x` of rank {ndim}.")
    return canonical


def expand(name: str, array: Array | None, shape: tuple[int, ...], features: tuple[int, ...]) -> Array | None:
    """Check a per-feature array and give it the rank of `x`, with size 1 off the feature axes."""
    check_features(name, array, tuple(shape[a] for a in features))
    if array is None:
        return None
    return array.reshape([shape[a] if a in features else 1 for a in range(len(shape))])


def expand_where(where: Array | None, ndim: int) -> Array | None:
    """Give a mask the rank of `x`."""
    return where if where is None else where.reshape((1,) * (ndim - where.ndim) + where.shape)
