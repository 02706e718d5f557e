"""Changes of what norms are given and return at some places: at valid positions by noise in padded ones, and others."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from normlab.doctor.calling import by_run
from normlab.doctor.skip import Skip
from normlab.errors import BadInput
from normlab.tools.batches import Arguments

__all__ = ["SAME", "AtPlaces", "at_valid", "changes", "noisy", "of_first", "relative_change"]

SAME = 1e-5
"""Change of a value that is only rounding, relative to its scale."""


class AtPlaces(NamedTuple):
    """Input and output of a norm at some places."""

    given: ArrayLike
    made: ArrayLike


Captures: TypeAlias = Mapping[str, tuple[tuple[AtPlaces, ...], ...]]
"""For each norm, for each of its calls, for each run of this call."""


def noisy(call: Arguments, padding: Array, seed: int) -> Arguments:
    """Return a call with noise in padded positions of its floating arrays, of the deviation of each array.

    Args:
        call: Arguments of a call.
        padding: True where a position is padding, such as (batch, positions).
        seed: Seed of the noise.

    Raises:
        BadInput: If `padding` has no axis of positions.
        Skip: If no floating array has these axes in front.
    """
    if padding.ndim < 2:
        raise BadInput(
            f"Expected `padding(batch)` of shape (batch, positions), got {padding.shape}. Return True where a position "
            "is padding."
        )
    found, key = False, jax.random.key(seed)

    def with_noise(leaf: object) -> object:
        nonlocal found
        if not isinstance(leaf, Array | np.ndarray) or leaf.shape[: padding.ndim] != padding.shape:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        found = True
        x = jnp.asarray(leaf)
        deviation = jnp.where(jnp.isfinite(x), x, 0).std() + 1e-3
        noise = deviation * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(padding.reshape(*padding.shape, *[1] * (x.ndim - padding.ndim)), noise, x)

    changed = jax.tree.map(with_noise, call)
    if not found:
        raise Skip(f"no floating array of the call has the axes of the padding, {padding.shape}, in front")
    return changed


def at_valid(padding: Array, path: str, number: int, x: Array, mask: Array | None, y: object) -> AtPlaces:
    """Return what a norm was given and returned, 0 at padded positions; nothing where it has no such positions."""

    def valid(one: object) -> Array:
        if not isinstance(one, Array) or one.shape[: padding.ndim] != padding.shape:
            return jnp.zeros(0)
        return jnp.where(padding.reshape(*padding.shape, *[1] * (one.ndim - padding.ndim)), 0, one)

    return AtPlaces(valid(x), valid(y))


def of_first(path: str, number: int, x: Array, mask: Array | None, y: object) -> AtPlaces:
    """Return the first row of what a norm was given and returned."""
    return AtPlaces(x[:1], y[:1] if isinstance(y, Array) and y.ndim else jnp.zeros(0))


def changes(before: Captures, after: Captures) -> dict[str, tuple[float, float]]:
    """Return how far input and output of the first call of each norm, and of each run of it, differ between two calls.

    Args:
        before: What `at_valid` or `of_first` returned.
        after: The same of another call.
    """
    later = by_run(after)
    found: dict[str, tuple[float, float]] = {}
    for path, calls in by_run(before).items():
        given, made = (relative_change(one, other) for one, other in zip(calls[0], later[path][0], strict=True))
        found[path] = given, made
    return found


def relative_change(before: ArrayLike, after: ArrayLike) -> float:
    """Return the largest difference, relative to the largest magnitude; NaN where both are infinite."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    scale = np.abs(before).max(initial=0)
    with np.errstate(invalid="ignore"):
        return float(np.abs(before - after).max(initial=0) / scale) if scale else 0.0
