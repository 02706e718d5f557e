"""Moments of sets from those of their parts: of a batch from those of its examples, exact at any offset."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.collectives import Devices
from normlab._core.reduction import Moments, Reduction, moments
from normlab._core.standardize import variance

__all__ = ["Parts", "joined", "of_examples", "of_union"]


class Parts(NamedTuple):
    """Moments of sets, all arrays of one shape.

    Attributes:
        near: A number near the mean.
        rest: The mean minus that number.
        within: The variance within parts of the set, averaged.
        between: The variance of the parts' means.
        counts: Elements.
    """

    near: Array
    rest: Array
    within: Array
    between: Array
    counts: Array

    @property
    def var(self) -> Array:
        """Biased variances."""
        return self.within + self.between

    @property
    def unbiased_var(self) -> Array:
        """Variances times n / (n - 1)."""
        return self.var * jnp.where(self.counts > 1, self.counts / jnp.maximum(self.counts - 1, 1), 1)

    def mean_minus(self, other: Array) -> Array:
        """Return the mean minus `other`, to the digits of the difference."""
        return (self.near - other) + self.rest

    def moments(self) -> Moments:
        """Return mean, variance and count."""
        return Moments(self.near, self.rest, self.var, self.counts)


def of_examples(x: Array, features: tuple[int, ...], where: Array | None, *, use_fast_variance: bool = False) -> Parts:
    """Return the moments of each feature of each example, axes kept; without positions each element is its own mean.

    Args:
        x: In float32 or wider, `[batch, *positions, features]`.
        features: Feature axes, canonical.
        where: True where an element counts, of the rank of `x`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.

    Raises:
        ValueError: If the batch is a feature axis.
    """
    if 0 in features:
        raise ValueError(f"Expected `axis` without the first axis, the batch, got {features}. Put the batch first.")
    positions = Reduction(tuple(a for a in range(1, x.ndim) if a not in features))
    if not positions.axis:
        near, none = x if where is None else jnp.where(where, x, 0), jnp.zeros_like(x)
        counts = jnp.ones_like(x) if where is None else jnp.broadcast_to(where, x.shape).astype(x.dtype)
        return Parts(near, none, none, none, counts)
    m = moments(x, positions, where, use_fast_variance=use_fast_variance)
    assert m.near is not None
    rest = jnp.zeros_like(m.near) if m.rest is None else m.rest
    count = jnp.broadcast_to(jnp.asarray(m.count, m.var.dtype), m.var.shape)
    return Parts(m.near, rest, variance(positions, x, m, where), jnp.zeros_like(m.var), count)


def of_union(x: Array, parts: Parts, axis: Sequence[int], where: Array | None, devices: Devices | None = None) -> Parts:
    """Return the moments of the union of parts along axes, and of all devices.

    Where each part is a single element they are moments of `x` itself, without a pass over arrays of its size more.

    Args:
        x: In float32 or wider; finite, also where the mask hides it.
        parts: Moments of parts of `x`, axes kept.
        axis: Axes along which parts are joined.
        where: True where an element counts, of the rank of `x`.
        devices: Whose elements count, too.
    """
    if parts.near.shape != x.shape:
        return joined(parts, axis, devices)
    over = Reduction(tuple(axis), devices=devices)
    m = moments(x, over, where)
    assert m.near is not None and m.rest is not None
    count = jnp.broadcast_to(jnp.asarray(m.count, m.var.dtype), m.var.shape)
    return Parts(m.near, m.rest, jnp.zeros_like(m.var), variance(over, x, m, where), count)


def joined(parts: Parts, axis: Sequence[int], devices: Devices | None = None) -> Parts:
    """Join sets along axes, which are kept with size 1, and those of all devices (Chan et al., 1979).

    Differences of means are about one of these means: `E[x^2] - E[x]^2` would lose the digits of the spread.
    """
    whole = _joined(parts, axis)
    if devices is None:
        return whole
    everywhere = jnp.moveaxis(devices.gather(jnp.stack(whole)), 1, 0)
    return Parts(*(a.squeeze(0) for a in _joined(Parts(*everywhere), (0,))))


def _joined(parts: Parts, axis: Sequence[int]) -> Parts:
    n, counted, axis = parts.counts, parts.counts > 0, tuple(axis)
    total = n.sum(axis, keepdims=True)
    near = lax.stop_gradient(jnp.where(counted, parts.near, -jnp.inf).max(axis, keepdims=True, initial=-jnp.inf))
    near = jnp.where(total > 0, near, 0)
    apart = jnp.where(counted, parts.mean_minus(near), 0)

    def mean(a: Array) -> Array:
        return (n * a).sum(axis, keepdims=True) / jnp.maximum(total, 1)

    def averaged(a: Array) -> Array:
        about = mean(a)  # the sum of many numbers of one sign has lost digits, which their differences have
        return about + mean(jnp.where(counted, a - about, 0))

    rest = averaged(apart)
    between = averaged(parts.between) + averaged(lax.square(apart - rest))
    return Parts(near, rest, averaged(parts.within), between, total)
