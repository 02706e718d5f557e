"""Moments: two-pass, masked, across devices; and the running averages of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab.functional._checks import AxisName, StatisticsError

Momentum = float | Callable[[Array], Array | float] | None
"""Weight of the OLD value; a function of the step; or `None` for the plain average of all batches so far."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Mean, biased variance, and the number of elements behind each.

    Attributes:
        mean: Means, or `None` where a norm does not centre.
        var: Biased variances (mean squares where `mean` is `None`).
        count: Elements per statistic: a number, or an array where a mask makes them differ.
    """

    mean: Array | None
    var: Array
    count: Array | float


class Over(NamedTuple):
    """What statistics are taken over; hashable, so that it can be a static argument.

    Attributes:
        axis: Reduced axes of the array, non-negative.
        inner: Those of them along which scale and bias do not vary.
        axis_name: Mapped axes the statistics extend over.
        groups: Sub-groups of devices along `axis_name`.
        pool: Neighbours on the last axis that share a statistic, which is repeated for each of them.
        center: Whether the mean is subtracted.
    """

    axis: tuple[int, ...]
    inner: tuple[int, ...] = ()
    axis_name: AxisName | None = None
    groups: tuple[tuple[int, ...], ...] | None = None
    pool: int = 1
    center: bool = True


def float32_or_wider(x: Array) -> Array:
    """Return `x` in float32, or unchanged where it is wider."""
    return lax.convert_element_type(x, wide_dtype(x.dtype))


def wide_dtype(dtype: Any) -> Any:
    """Return float32, or `dtype` where it is a wider float."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def output_dtype(x: Array) -> Any:
    """Return the dtype of a norm's output: that of `x`, or float32 where `x` is of whole numbers."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else wide_dtype(x.dtype)


def moments(x: Array, over: Over, where: Array | None = None, *, use_fast_variance: bool = False) -> Moments:
    """Mean and variance of `x` over `over`, reduced axes kept with size 1.

    Two passes: the mean first, then the mean square of what is left, so that an offset of the data costs no digits.
    `use_fast_variance` takes E[x^2] - E[x]^2 in one pass instead, as Flax does, and loses them. Across devices, counts,
    means and sums of squares are gathered by one collective and merged (Chan et al., 1979).

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
    mean = _sum(x, over, where) / _at_least_one(count)
    square = _sum(lax.square(x - mean), over, where)
    if over.axis_name is not None:
        count, mean, square = _merge(count, mean, square, over)
    return Moments(mean, square / _at_least_one(count), count)


def means(values: Sequence[Array], over: Over, where: Array | None, count: Array | float) -> list[Array]:
    """Means of several arrays over `over`, with one collective for all."""
    sums = [_sum(v, over, where) for v in values]
    if over.axis_name is not None:
        sums = list(vary(_psum(jnp.stack(sums), over), over.axis_name))
    return [s / _at_least_one(count) for s in sums]


def elements(shape: Sequence[int], over: Over) -> int:
    """Return how many elements, devices included, one statistic covers if all count."""
    return math.prod(shape[a] for a in over.axis) * over.pool * _devices(over)


def check_more_than_one(shape: Sequence[int], over: Over) -> None:
    """Raise a `StatisticsError` where batch statistics would be over a single element."""
    if elements(shape, over) == 1:
        raise StatisticsError(
            f"Expected batch statistics over more than one element, got one: `x` of shape {tuple(shape)} is reduced "
            f"over axes {over.axis}. Use a larger batch, `axis_name` for statistics across devices, running "
            "statistics, or a norm that needs no batch (layer, RMS, group)."
        )


def unbiased(m: Moments) -> Array:
    """Return the variance times n / (n - 1), unchanged where n is at most 1."""
    n = jnp.asarray(m.count, m.var.dtype)
    return m.var * jnp.where(n > 1, n / jnp.maximum(n - 1, 1), 1)


def running_average(old: Array, new: Array, momentum: Momentum, step: Array | None, count: Array | float) -> Array:
    """Move the running average `old` towards `new`; no gradient, and no change with fewer than two elements counted.

    `momentum * old + (1 - momentum) * new`; with `momentum=None` the plain average of all batches so far.

    Args:
        old: Running average.
        new: Statistics of this batch, of the same shape.
        momentum: Weight of the old value, or a function of the step, or `None`.
        step: Updates made so far, an integer scalar; needed unless `momentum` is a number.
        count: Elements behind `new`, broadcastable to it.

    Returns:
        The new running average, in the dtype of `old`.
    """
    if momentum is None:
        assert step is not None
        decay = step / (step + 1)
    else:
        decay = momentum(_needed(step)) if callable(momentum) else momentum
    if not isinstance(decay, int | float):  # a number is subtracted from 1 before it is rounded
        decay = jnp.asarray(decay, old.dtype)
    moved = decay * old + (1 - decay) * new.astype(old.dtype)
    if isinstance(count, Array) or count < 2:
        moved = jnp.where(jnp.asarray(count) > 1, moved, old)
    return lax.stop_gradient(moved)


def _needed(step: Array | None) -> Array:
    assert step is not None
    return step


def _one_pass(x: Array, over: Over, where: Array | None, count: Array | float) -> Moments:
    values = [x, lax.square(x)] if over.center else [lax.square(x)]
    if over.axis_name is not None:
        if where is None:
            count = count * _devices(over)
        else:
            count = _psum(jnp.asarray(count, x.dtype), over)
    *first, second = means(values, over, where, count)
    if not over.center:
        return Moments(None, second, count)
    return Moments(first[0], jnp.maximum(second - lax.square(first[0]), 0), count)


def _count(x: Array, over: Over, where: Array | None) -> Array | float:
    if where is None:
        return float(math.prod(x.shape[a] for a in over.axis) * over.pool)
    return _pool(jnp.broadcast_to(where, x.shape).sum(over.axis, keepdims=True, dtype=x.dtype), over)


def _at_least_one(count: Array | float) -> Array | float:
    return jnp.maximum(count, 1) if isinstance(count, Array) else max(count, 1.0)


def _sum(x: Array, over: Over, where: Array | None) -> Array:
    if where is not None:
        x = jnp.where(where, x, 0)
    return _pool(x.sum(over.axis, keepdims=True), over)


def _pool(x: Array, over: Over) -> Array:
    """Add up neighbours on the last axis, and give each of them the sum."""
    if over.pool == 1:
        return x
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // over.pool, over.pool)
    return jnp.broadcast_to(groups.sum(-1, keepdims=True), groups.shape).reshape(x.shape)


def _merge(count: Array | float, mean: Array, square: Array, over: Over) -> tuple[Array | float, Array, Array]:
    """Merge counts, means and sums of squared deviations of all devices, by one collective, without cancellation."""
    if isinstance(count, Array):
        counts, means_, squares = _gather(jnp.stack([count, mean, square]), over).swapaxes(0, 1)
    else:
        means_, squares = _gather(jnp.stack([mean, square]), over).swapaxes(0, 1)
        counts = jnp.full_like(means_, count)
    total = counts.sum(0)
    merged = (counts * means_).sum(0) / jnp.maximum(total, 1)
    spread = (counts * lax.square(means_ - merged[None])).sum(0)
    count = total if isinstance(count, Array) else count * _devices(over)
    return count, merged, squares.sum(0) + spread


def _gather(x: Array, over: Over) -> Array:
    """Stack `x` of all devices, as an all-reduce: its result is known to be the same everywhere."""
    index = lax.axis_index(over.axis_name)
    if over.groups is not None:
        members = [device for group in over.groups for device in group]
        places = {device: place for group in over.groups for place, device in enumerate(group)}
        index = jnp.asarray([places[device] for device in sorted(members)])[index]
    slots = jnp.arange(_devices(over)).reshape((-1,) + (1,) * x.ndim)
    return _psum(jnp.where(slots == index, x[None], 0), over)


def _psum(x: Array, over: Over) -> Array:
    try:
        return lax.psum(x, over.axis_name, axis_index_groups=over.groups)
    except NotImplementedError as error:
        raise ValueError(
            "Expected `axis_index_groups` under `jax.pmap` only: `jax.shard_map` and `jax.vmap` cannot reduce over "
            f"groups, got {over.groups} along {over.axis_name!r}. Split the mesh axis in two and name the inner one, "
            "such as a mesh of (outer, inner) with axis_name='inner'."
        ) from error


def vary(x: Array, axis_name: AxisName) -> Array:
    """Mark `x` as varying over `axis_name` where `jax.shard_map` tracks that: its gradient is then one collective."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    tracked = getattr(jax.typeof(lax.axis_index(axis_name)), "vma", frozenset())
    missing = tuple(n for n in names if n in tracked and n not in jax.typeof(x).vma)
    return lax.pcast(x, missing, to="varying") if missing else x


def _devices(over: Over) -> int:
    if over.axis_name is None:
        return 1
    if over.groups is not None:
        return len(over.groups[0])
    return axis_size(over.axis_name)


def _check_groups(groups: tuple[tuple[int, ...], ...]) -> None:
    if len({len(group) for group in groups}) != 1:
        raise ValueError(f"Expected groups of equal size in `axis_index_groups`, got {groups}.")


def axis_size(axis_name: AxisName) -> int:
    """Return the number of devices along `axis_name`, or say how to bind it."""
    try:
        return lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            f"Expected `axis_name` {axis_name!r} to be an axis of an enclosing `jax.shard_map`, `jax.pmap` or "
            "`jax.vmap`, but it is not bound here. On a single device, and under `jit` with a sharded batch, leave "
            "`axis_name=None`."
        ) from error


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
    groups = None
    if axis_name is not None:
        axis_size(axis_name)
        if axis_index_groups is not None:
            groups = tuple(tuple(group) for group in axis_index_groups)
            _check_groups(groups)
    elif axis_index_groups is not None:
        raise ValueError(
            "Expected `axis_name` beside `axis_index_groups`, got None. Name the axis the groups belong to."
        )
    inner = tuple(a for a in axis if a not in affine)
    return Over(axis, inner if affine else (), axis_name, groups, pool, center)
