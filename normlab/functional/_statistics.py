"""Moments: two-pass, masked, across devices; and the running averages of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab.functional._checks import AxisName, StatisticsError
from normlab.functional._devices import Devices, aligned

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
        rest: What rounding left of the mean, where it is known: `mean + rest` is the mean to twice the digits.
    """

    mean: Array | None
    var: Array
    count: Array | float
    rest: Array | None = None


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

    Two passes: the mean first, then the mean square of what is left, so that an offset of the data costs no digits.
    `use_fast_variance` takes E[x^2] - E[x]^2 in one pass instead, as Flax does, and loses them. Across devices, counts,
    means, and the sums and squares of what is left are gathered by one collective and merged (Chan et al., 1979).

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
    centered = x - mean
    square = _sum(lax.square(centered), over, where)
    if over.devices is not None:
        return _merged(over.devices, count, mean, _sum(centered, over, where), square)
    return Moments(mean, square / _at_least_one(count), count)


def rest_of_mean(centered: Array, over: Over, where: Array | None, count: Array | float) -> Array:
    """What rounding left of this device's mean; a constant to autodiff."""
    return lax.stop_gradient(_sum(centered, over, where) / _at_least_one(count))


def means(values: Sequence[Array], over: Over, where: Array | None, count: Array | float) -> list[Array]:
    """Means of several arrays over `over`, with one collective for all."""
    sums = [_sum(v, over, where) for v in values]
    if over.devices is not None:
        sums = list(over.devices.sum(jnp.stack(sums)))
    return [s / _at_least_one(count) for s in sums]


def elements(shape: Sequence[int], over: Over) -> int:
    """Return how many elements, devices included, one statistic covers if all count."""
    return math.prod(shape[a] for a in over.axis) * over.pool * (over.devices.size if over.devices else 1)


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


def _merged(devices: Devices, count: Array | float, mean: Array, rest: Array, square: Array) -> Moments:
    """Merge counts, means, and sums of deviations and of their squares of all devices, without cancellation.

    Deviations from a mean that was rounded do not add up to zero; at an offset of 1e4 that is worth 4e-4 of the
    variance. Sums come last in `near` and `shift`: XLA computes `merged` wherever it is used, and after a product the
    addition may be part of a multiply-add there, with a rounding that is not that of `rest`.
    """
    parts = [mean, rest, square, *([count] if isinstance(count, Array) else [])]
    means_, rests, squares, *counts = jnp.moveaxis(devices.gather(jnp.stack(parts)), 1, 0)
    n = counts[0] if counts else jnp.full_like(means_, count)
    total = jnp.maximum(n.sum(0), 1)
    near = (n / total[None] * means_).sum(0)
    apart = means_ - near[None]
    shift = ((rests + n * apart) / total[None]).sum(0)
    var = (squares + apart * (2 * rests + n * apart)).sum(0) / total - lax.square(shift)
    merged = near + shift
    count = n.sum(0) if counts else count * devices.size
    return Moments(merged, jnp.maximum(var, 0), count, lax.stop_gradient((near - merged) + shift))


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
