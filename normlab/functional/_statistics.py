"""Moments: two-pass, masked, across devices; and the running averages of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab.functional._checks import AxisName, StatisticsError, one_element_allowed
from normlab.functional._devices import Devices, aligned, sharded_along

Momentum = float | Callable[[Array], Array | float] | None
"""Weight of the OLD value; a function of the step; or `None` for the plain average of all batches so far."""


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


class Over(NamedTuple):
    """What statistics are taken over; hashable, so that it can be a static argument.

    Attributes:
        axis: Reduced axes of the array, non-negative.
        inner: Those of them along which scale and bias do not vary.
        devices: Whose elements count, too; `None` for this device alone.
        pool: Neighbours on the last axis that share a statistic, which is repeated for each of them.
        center: Whether the mean is subtracted.
    """

    axis: tuple[int, ...]
    inner: tuple[int, ...] = ()
    devices: Devices | None = None
    pool: int = 1
    center: bool = True


def float32_or_wider(x: Array) -> Array:
    """Return `x` in float32, or unchanged where it is wider."""
    return lax.convert_element_type(x, wide_dtype(x.dtype))


def wide_dtype(dtype: Any) -> Any:
    """Return float32, or `dtype` where it is a wider float."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def whole(step: Array) -> Array:
    """Return a count of updates as the whole number it is, whatever it was cast to."""
    return step if jnp.issubdtype(step.dtype, jnp.integer) else lax.convert_element_type(step, jnp.int32)


def output_dtype(x: Array) -> Any:
    """Return the dtype of a norm's output: that of `x`, or float32 where `x` is of whole numbers."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else wide_dtype(x.dtype)


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
    """Whether statistics are of columns that lie side by side in memory, long or wide enough for `_from` to pay."""
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


def elements(shape: Sequence[int], over: Over) -> int:
    """Return how many elements, devices included, one statistic covers if all count."""
    return math.prod(shape[a] for a in over.axis) * over.pool * (over.devices.size if over.devices else 1)


def check_more_than_one(shape: Sequence[int], over: Over, remedy: str) -> None:
    """Raise a `StatisticsError` where statistics would be over a single element and `one_element` is not in force.

    Args:
        shape: Of `x`.
        over: What statistics are taken over.
        remedy: What else to do, a sentence without its end.
    """
    if elements(shape, over) == 1 and not one_element_allowed():
        groups = f" in groups of {over.pool} features" if over.pool > 1 else ""
        raise StatisticsError(
            f"Expected statistics over more than one element, got one: `x` of shape {tuple(shape)} is reduced over "
            f"axes {over.axis}{groups}. {remedy}; or say that it is meant: `with normlab.functional.one_element():`."
        )


def unbiased(m: Moments) -> Array:
    """Return the variance times n / (n - 1), unchanged where n is at most 1."""
    n = jnp.asarray(m.count, m.var.dtype)
    return m.var * jnp.where(n > 1, n / jnp.maximum(n - 1, 1), 1)


def running_average(old: Array, new: Array, momentum: Momentum, step: Array | None, count: Array | float) -> Array:
    """Move the running average `old` towards `new`; no gradient, and no change with fewer than two elements counted.

    `momentum * old + (1 - momentum) * new`; with `momentum=None` the plain average of all batches so far.

    Args:
        old: Running average, in float32 or wider: in half precision updates would round away.
        new: Statistics of this batch, of the same shape.
        momentum: Weight of the old value, or a function of the step, or `None`.
        step: Updates made so far, an integer scalar; needed unless `momentum` is a number.
        count: Elements behind `new`, broadcastable to it.

    Returns:
        The new running average, in the dtype of `old`.
    """
    decay = _decay(momentum, step, old.dtype)
    moved = decay * old + (1 - decay) * new.astype(old.dtype)
    if isinstance(count, Array) or count < 2:
        moved = where_counted(jnp.asarray(count) > 1, moved, old)
    return lax.stop_gradient(moved)


def merged_average(
    old: tuple[Array, Array], new: tuple[Array, Array], momentum: Momentum, step: Array | None, count: Array | float
) -> tuple[Array, Array]:
    """Move running mean and TOTAL variance towards those of a batch; no gradient, no change with nothing counted.

    `momentum * var + (1 - momentum) * (new_var + momentum * (new_mean - mean)^2)`: the spread between batches counts,
    too, so that one element is enough. With `momentum=None` these are mean and variance of all that came, every batch
    weighing the same (Chan et al., 1979).

    Args:
        old: Running mean and variance, in float32 or wider.
        new: Those of this batch.
        momentum: See `running_average`.
        step: See `running_average`.
        count: Elements behind `new`, broadcastable to it.

    Returns:
        The new running mean and variance, in the dtype of the old ones.
    """
    (mean, var), (new_mean, new_var) = old, (a.astype(b.dtype) for a, b in zip(new, old, strict=True))
    decay = _decay(momentum, step, mean.dtype)
    apart = new_mean - mean
    moved = mean + (1 - decay) * apart, decay * var + (1 - decay) * (new_var + decay * lax.square(apart))
    if isinstance(count, Array) or count < 1:
        moved = (where_counted(jnp.asarray(count) > 0, a, b) for a, b in zip(moved, old, strict=True))
    mean, var = map(lax.stop_gradient, moved)
    return mean, var


def where_counted(counted: Array, moved: Array, old: Array) -> Array:
    """Return the new running average where there is one, and the old one elsewhere."""
    return jnp.where(*(aligned(counted, moved, old) if counted.ndim else (counted, *aligned(moved, old))))


def _decay(momentum: Momentum, step: Array | None, dtype: Any) -> Any:
    """The weight of the old value, as a number where it is one, to be subtracted from 1 before it is rounded."""
    decay: Any = momentum
    if momentum is None or callable(momentum):
        assert step is not None
        decay = step / (step + 1) if momentum is None else momentum(step)
    return decay if isinstance(decay, int | float) else jnp.asarray(decay, dtype)


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


def over(
    axis: tuple[int, ...],
    *,
    affine: tuple[int, ...] = (),
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    pool: int = 1,
    center: bool = True,
) -> Over:
    """Describe a reduction over `axis` and `axis_name`; scale and bias vary along the axes in `affine`."""
    inner = tuple(a for a in axis if a not in affine)
    return Over(axis, inner if affine else (), Devices.of(axis_name, axis_index_groups), pool, center)
