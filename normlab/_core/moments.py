"""Moments: two-pass, masked, across devices."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.collectives import Devices
from normlab._core.reduction import Over
from normlab._core.sharding import sharded_along


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Mean, biased variance, and the number of elements behind each.

    Attributes:
        near: A number near the mean, such as a member of the set; `None` where a norm does not centre.
        rest: The mean minus that number. Far from 0 a rounded mean has lost the digits of the spread around it;
            `near + rest` has them all, and `(x - near) - rest` is exact to the digits of `x`.
        var: Biased variances (mean squares where `near` is `None`).
        count: Elements per statistic: a number, or an array where a mask or a symbolic shape makes it one.
    """

    near: Array | None
    rest: Array | None
    var: Array
    count: Array | float

    @property
    def mean(self) -> Array:
        """Means, rounded."""
        return self.mean_minus(None)

    def mean_minus(self, other: Array | None) -> Array:
        """Return the mean minus `other`, to the digits of the difference; `None` is 0."""
        assert self.near is not None
        near = self.near if other is None else self.near - other
        return near if self.rest is None else near + self.rest


def moments(x: Array, over: Over, where: Array | None = None, *, use_fast_variance: bool = False) -> Moments:
    """Mean and variance of `x` over `over`, reduced axes kept with size 1.

    Two passes: the mean first, then the mean square of what is left, both about one member of each set. Next to an
    offset of 1e6 the sum of a set, and even its rounded mean, have lost the digits of its spread; differences of
    members have them all, and those of a constant are exactly 0. `use_fast_variance` takes E[x^2] - E[x]^2 in one pass
    instead, as Flax does, and loses them. Across devices counts, means, what rounding left of them, and sums of squares
    are gathered by one collective and merged (Chan et al., 1979).

    Args:
        x: Values in float32 or wider.
        over: Axes and mapped axes.
        where: True where an element counts; of the rank of `x`, broadcastable to its shape.
        use_fast_variance: Whether to take the one-pass formula.

    Returns:
        The moments; nothing counted gives mean 0, variance 0, count 0.
    """
    count = _count(x, over, where)
    if where is not None:  # whatever is hidden must not reach derivatives of any order, where 0 * NaN is NaN
        x = jnp.where(where, x, 0)
    if not over.center or use_fast_variance:
        return _one_pass(x, over, where, count)
    near = _member(x, over, where, count)
    columns = _columns(x.shape, over)
    if columns:
        # XLA computes `near + rest` wherever it is used; after a division it may be part of a multiply-add in one place
        # and not in another, and rounded differently. So the sum comes last.
        rest = _sum((x - near) / _at_least_one(count), over, where)
        near, rest = _from(near + rest, near, rest)
    else:
        rest = _sum(x - near, over, where) / _at_least_one(count)
    square = _sum(lax.square((x - near) - rest), over, where)
    if over.devices is not None:
        return _merged(over.devices, count, near, rest, square)
    if columns:
        near, rest = _from(_coarser(near), near, rest)
    return Moments(near, rest, square / _at_least_one(count), count)


def _columns(shape: Sequence[int], over: Over) -> bool:
    """Check for columns that lie side by side in memory, long or wide enough for `_from` to pay."""
    wide = isinstance(shape[-1], int) and shape[-1] >= 128
    return over.axis == tuple(range(len(over.axis))) or (wide and len(shape) - 1 not in over.axis)


def _from(nearer: Array, near: Array, rest: Array) -> tuple[Array, Array]:
    """Count a mean from another number: each pass over columns counts from one of its own.

    Counted from the same number `x - near` would be one array, and XLA:CPU would write it to memory for all passes,
    where each is computed faster from `x`. Along rows it is faster so.
    """
    nearer = lax.stop_gradient(nearer)
    return nearer, (near - nearer) + rest


def _coarser(x: Array) -> Array:
    """Drop the last two bits."""
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, kind.nexp, kind.nmant - 2)


def _member(x: Array, over: Over, where: Array | None, count: Array | float) -> Array:
    """One counted element of each set, 0 where there is none; a constant to autodiff.

    The first, which costs nothing to find. Under a mask, and where devices share an explicit axis, the largest.
    """
    x = lax.stop_gradient(x)
    kept = _kept(x.shape, over)
    if any(x.shape[a] == 0 for a in over.axis):
        return jnp.zeros(kept, x.dtype)
    if where is None and not sharded_along(x, over.axis):
        first = lax.slice(x, (0,) * x.ndim, kept)
        if 0 in over.axis:
            # Where `jit` shards the batch, else all that is made of `first` stays on one device and is sent each time.
            first = lax.expand_dims(lax.optimization_barrier(lax.squeeze(first, over.axis)), over.axis)
        return _pool(first, over, lambda groups: groups[..., :1])
    largest = x.max(over.axis, keepdims=True, initial=-jnp.inf, where=where)
    largest = _pool(largest, over, lambda groups: groups.max(-1, keepdims=True))
    return jnp.where(jnp.asarray(count) > 0, largest, 0)


def means(values: Sequence[Array], over: Over, where: Array | None, count: Array | float) -> list[Array]:
    """Means of several arrays over `over`, with one collective for all."""
    sums = [_sum(v, over, where) for v in values]
    if over.devices is not None:
        sums = list(over.devices.sum(jnp.stack(sums)))
    return [s / _at_least_one(count) for s in sums]


def unbiased(m: Moments) -> Array:
    """Return the variance times n / (n - 1), unchanged where n is at most 1."""
    n = jnp.asarray(m.count, m.var.dtype)
    return m.var * jnp.where(n > 1, n / jnp.maximum(n - 1, 1), 1)


def _one_pass(x: Array, over: Over, where: Array | None, count: Array | float) -> Moments:
    values = [x, lax.square(x)] if over.center else [lax.square(x)]
    if over.devices is not None:
        count = over.devices.sum(count) if isinstance(count, Array) else count * over.devices.size
    *first, second = means(values, over, where, count)
    if not over.center:
        return Moments(None, None, second, count)
    return Moments(first[0], None, jnp.maximum(second - lax.square(first[0]), 0), count)


def _count(x: Array, over: Over, where: Array | None) -> Array | float:
    if where is None:
        n = math.prod(x.shape[a] for a in over.axis) * over.pool
        return float(n) if isinstance(n, int) else jnp.broadcast_to(jnp.asarray(n, x.dtype), _kept(x.shape, over))
    return _pool(jnp.broadcast_to(where, x.shape).sum(over.axis, keepdims=True, dtype=x.dtype), over)


def _kept(shape: Sequence[int], over: Over) -> tuple[int, ...]:
    """The shape of statistics: reduced axes have size 1."""
    return tuple(1 if a in over.axis else n for a, n in enumerate(shape))


def _at_least_one(count: Array | float) -> Array | float:
    return jnp.maximum(count, 1) if isinstance(count, Array) else max(count, 1.0)


def _sum(x: Array, over: Over, where: Array | None) -> Array:
    if where is not None:
        x = jnp.where(where, x, 0)
    return _pool(x.sum(over.axis, keepdims=True), over)


def _pool(
    x: Array, over: Over, reduce: Callable[[Array], Array] = lambda groups: groups.sum(-1, keepdims=True)
) -> Array:
    """Reduce neighbours on the last axis, and give each of them the result."""
    if over.pool == 1:
        return x
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // over.pool, over.pool)
    return jnp.broadcast_to(reduce(groups), groups.shape).reshape(x.shape)


def _merged(devices: Devices, count: Array | float, near: Array, rest: Array, square: Array) -> Moments:
    """Merge counts, means and sums of squares of all devices, without cancellation: about a number of one of them."""
    parts = [near, rest, square, *([count] if isinstance(count, Array) else [])]
    nears, rests, squares, *counts = jnp.moveaxis(devices.gather(jnp.stack(parts)), 1, 0)
    n = counts[0] if counts else jnp.full_like(nears, count)
    total = jnp.maximum(n.sum(0), 1)
    near = lax.stop_gradient(jnp.where(n > 0, nears, -jnp.inf).max(0))
    near = jnp.where(n.sum(0) > 0, near, 0)
    apart = jnp.where(n > 0, (nears - near[None]) + rests, 0)
    rest = (n * apart).sum(0) / total
    var = (squares + n * lax.square(apart - rest[None])).sum(0) / total
    return Moments(near, rest, var, n.sum(0) if counts else count * devices.size)
