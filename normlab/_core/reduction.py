"""Reductions: axes, the elements that share a statistic, and their moments: exact, masked, across devices."""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import AxisName, check_features, one_element_allowed
from normlab._core.collectives import Devices
from normlab._core.dtypes import float_limits
from normlab._core.platforms import on_accelerator
from normlab._core.sharding import sharded_along
from normlab.errors import StatisticsError

Axes = int | Sequence[int]
"""One axis or several; negative ones count from the end."""

Groups = Sequence[Sequence[int]]
"""Sub-groups of devices along a mapped axis."""


def canonical_axes(axes: Axes, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """Return `axes` as sorted non-negative integers.

    Args:
        axes: One axis or several.
        ndim: Rank of the array they belong to.
        name: The argument's name, for the message.

    Raises:
        ValueError: If an axis is out of range or named twice.
    """
    if type(axes) is int and -ndim <= axes < ndim:
        return (axes % ndim,)
    given = tuple(map(operator.index, axes)) if isinstance(axes, Iterable) else (operator.index(axes),)
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"Expected `{name}` to lie in [{-ndim}, {ndim}) for `x` of rank {ndim}, got {axes}.")
    canonical = tuple(sorted(a % ndim for a in given))
    if len(set(canonical)) < len(canonical):
        raise ValueError(f"Expected `{name}` to name each axis once, got {axes} for `x` of rank {ndim}.")
    return canonical


def other_axes(axes: Iterable[int], ndim: int) -> tuple[int, ...]:
    """Return the axes of an array of rank `ndim` that are not in `axes`, which are canonical."""
    return tuple(sorted({*range(ndim)}.difference(axes)))


def expand(name: str, array: Array | None, shape: tuple[int, ...], features: tuple[int, ...]) -> Array | None:
    """Check a per-feature array and give it the rank of `x`, with size 1 off the feature axes."""
    return expand_affine({name: array}, shape, features).get(name)


def expand_affine(
    parameters: Mapping[str, Array | None], shape: tuple[int, ...], features: tuple[int, ...]
) -> dict[str, Array]:
    """Check per-feature arrays by name and give them the rank of `x`; `None` is left out."""
    expected, kept = tuple(map(shape.__getitem__, features)), [1] * len(shape)
    for a in features:
        kept[a] = shape[a]
    expanded: dict[str, Array] = {}
    for name, array in parameters.items():
        if array is not None:
            if array.shape != expected:
                check_features(name, array, expected)
            expanded[name] = array.reshape(kept)
    return expanded


def expand_where(where: Array | None, ndim: int) -> Array | None:
    """Give a mask the rank of `x`."""
    return where if where is None else where.reshape((1,) * (ndim - where.ndim) + where.shape)


class Reduction(NamedTuple):
    """The elements that share a statistic. Hashable, so that it can be a static argument.

    Attributes:
        axis: Reduced axes of the array, non-negative.
        inner: Reduced axes along which scale and bias do not vary.
        devices: Whose elements count, too; `None` for this device alone.
        pool: Neighbours on the last axis that share a statistic, which is repeated for each of them.
        center: Whether the mean is subtracted.
        computed: Whether the array is an expression, and no argument, of the program: XLA:CPU would compute a member of
            each set of neighbours again for every element.
    """

    axis: tuple[int, ...]
    inner: tuple[int, ...] = ()
    devices: Devices | None = None
    pool: int = 1
    center: bool = True
    computed: bool = False


def reduction(
    axis: tuple[int, ...],
    *,
    affine: tuple[int, ...] = (),
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    pool: int = 1,
    center: bool = True,
) -> Reduction:
    """Describe a reduction over `axis` and `axis_name`; scale and bias vary along the axes in `affine`."""
    devices = None
    if axis_name is not None or axis_index_groups is not None:
        devices = Devices.of(axis_name, axis_index_groups)
    inner = tuple(sorted({*axis}.difference(affine))) if affine else ()
    return Reduction(axis, inner, devices, pool, center)


def all_but(
    features: tuple[int, ...],
    ndim: int,
    *,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Reduction:
    """Describe a reduction over all axes but `features`, along which scale and bias vary."""
    axis = tuple(sorted({*range(ndim)}.difference(features)))
    devices = None
    if axis_name is not None or axis_index_groups is not None:
        devices = Devices.of(axis_name, axis_index_groups)
    return Reduction(axis, axis, devices)


def elements(shape: Sequence[int], over: Reduction) -> int:
    """Return how many elements, devices included, one statistic covers if all count."""
    return math.prod(map(shape.__getitem__, over.axis)) * over.pool * (over.devices.size if over.devices else 1)


def check_more_than_one(shape: Sequence[int], over: Reduction, remedy: str) -> None:
    """Raise a `StatisticsError` where statistics would be over a single element and `one_element` is not in force.

    Args:
        shape: Shape of `x`.
        over: The elements that share a statistic.
        remedy: Advice for the error message, a sentence without its end.
    """
    if elements(shape, over) == 1 and not one_element_allowed():
        groups = f" in groups of {over.pool} features" if over.pool > 1 else ""
        raise StatisticsError(
            f"Expected statistics over more than one element, got one: `x` of shape {tuple(shape)} is reduced over "
            f"axes {over.axis}{groups}. {remedy}; or say that it is meant: `with normlab.functional.one_element():`."
        )


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
        assert self.near is not None
        return self.near if self.rest is None else self.near + self.rest

    def mean_minus(self, other: Array) -> Array:
        """Return the mean minus `other`, to the digits of the difference."""
        assert self.near is not None
        near = self.near - other
        return near if self.rest is None else near + self.rest


def moments(
    x: Array,
    over: Reduction,
    where: Array | None = None,
    *,
    use_fast_variance: bool = False,
    remedy: str | None = None,
) -> Moments:
    """Mean and variance of `x` over `over`, reduced axes kept with size 1.

    Two passes: the mean first, about one member of each set, then the mean square of what is left. Next to an offset of
    1e6 the sum of a set, and even its rounded mean, have lost the digits of its spread; differences of members have
    them all, and those of a constant are exactly 0. `use_fast_variance` takes E[x^2] - E[x]^2 in one pass
    instead, as Flax does, and loses them. Across devices counts, means, what rounding left of them, and sums of squares
    are gathered by one collective and merged (Chan et al., 1979). On accelerators one pass takes both sums, about the
    mean of a part of each set, with the same digits; see `_in_one_pass`.

    Args:
        x: Values in float32 or wider.
        over: Axes and mapped axes.
        where: True where an element counts; of the rank of `x`, broadcastable to its shape.
        use_fast_variance: Whether to take the one-pass formula.
        remedy: Advice for the error message; with it, statistics over a single element are an error.

    Returns:
        The moments; nothing counted gives mean 0, variance 0, count 0.

    Raises:
        StatisticsError: If a statistic would be over one element, with a `remedy`.
    """
    n = math.prod(map(x.shape.__getitem__, over.axis)) * over.pool
    if remedy and n == 1:
        check_more_than_one(x.shape, over, remedy)
    count = float(n) if where is None and isinstance(n, int) else _counted(x, over, where, n)
    if where is not None:  # whatever is hidden must not reach derivatives of any order, where 0 * NaN is NaN
        x = jnp.where(where, x, 0)
    if not over.center or use_fast_variance:
        return _one_pass(x, over, where, count)
    total = functools.partial(_sum, over=over, where=where)
    if where is None and over.pool == 1:
        total = functools.partial(jnp.sum, axis=over.axis, keepdims=True)
    near = _member(x, over, where, count)
    at_least_one = jnp.maximum(count, 1) if isinstance(count, Array) else max(count, 1.0)
    by = _by_columns if _side_by_side(x, over) else _by_rows
    if where is None and (over.pool == 1 or over.computed) and not on_accelerator() and _is_large(x):
        near = _in_memory(near)
    part = _part(x, over) if where is None and on_accelerator() else None
    if part is not None:
        near, by = _average(near, part, over), _in_one_pass
    near, rest, square = by(x, near, at_least_one, total)
    if over.devices is not None:
        return _merged(over.devices, count, near, rest, square)
    return Moments(near, rest, square / at_least_one, count)


_Parts = tuple[Array, Array, Array]
"""A number near the mean, the mean minus that number, and the sum of squared differences from the mean."""

_Total = Callable[[Array], Array]
"""Sums over the elements that share a statistic."""


def _side_by_side(x: Array, over: Reduction) -> bool:
    """Check whether the elements of a set are in columns that lie side by side in memory, and are long or wide."""
    last = x.shape[-1]
    return over.axis == (*range(len(over.axis)),) or (
        isinstance(last, int) and last >= 128 and x.ndim - 1 not in over.axis
    )


def _by_columns(x: Array, near: Array, count: Array | float, total: _Total) -> _Parts:
    """Take two passes along columns, for each operation of which on an element XLA:CPU pays.

    The second pass has one subtraction, of the rounded mean, and `rest`, what rounding left of it, is taken off
    afterwards.
    """
    # XLA computes `near` wherever it is used, and the quotient as a product with the reciprocal of a constant. A
    # product that were not rounded on its own could be part of a multiply-add in one place and not in another.
    rest = total(x - near) / count
    near, rest = _about(near + _coarser(rest, bits=1), near, rest)
    square = total(lax.square(x - near)) - count * lax.square(rest)
    # Counted from the same number `x - near` would be one array, which XLA:CPU would write to memory for all passes
    # that follow, where each is computed faster from `x`.
    return (*_about(_coarser(near, bits=2), near, rest), square)


def _by_rows(x: Array, near: Array, count: Array | float, total: _Total) -> _Parts:
    """Take two passes along rows, which are cached: the second has two subtractions."""
    rest = total(x - near) / count
    return near, rest, total(lax.square((x - near) - rest))


def _in_one_pass(x: Array, near: Array, count: Array | float, total: _Total) -> _Parts:
    """Take both sums in one pass about the mean of a part of each set, which costs accelerators least.

    With the mean of one element of `_SHARE`, the mean of all is less than the root of `_SHARE` standard deviations
    away, whatever the elements are: the square of this distance, which is taken off, is less than `_SHARE` variances.
    """
    rest = total(x - near) / count
    return near, rest, jnp.maximum(total(lax.square(x - near)) - count * lax.square(rest), 0)


_SHARE = 16
"""Elements of a set for each one in the part whose mean the others are compared with."""


def _part(x: Array, over: Reduction) -> Array | None:
    """Return the leading elements of each set, at least one of `_SHARE`; a constant to autodiff.

    `None` where this would divide the first axis, which may be spread over devices, or an axis that is.
    """
    if _shared(x, over):
        return None
    kept, share = list(x.shape), float(_SHARE)
    for a in over.axis:
        size = kept[a]
        if not isinstance(size, int) or not size:
            return None
        if a > 0 and share > 2:
            kept[a] = math.ceil(size / share)
            share *= kept[a] / size
    return lax.stop_gradient(lax.slice(x, (0,) * x.ndim, kept)) if share < _SHARE else None


def _average(member: Array, part: Array, over: Reduction) -> Array:
    """Return the mean of a part of each set, exact where all elements are that member."""
    apart = (part - member).mean(over.axis, keepdims=True)
    return member + _pool(apart, over, lambda groups: groups.mean(-1, keepdims=True))


def _coarser(x: Array, bits: int) -> Array:
    """Round away the last bits of a mantissa; a constant to autodiff."""
    limits = float_limits(x.dtype)
    return lax.reduce_precision(lax.stop_gradient(x), limits.exponent_bits, limits.mantissa_bits - bits)


def _about(nearer: Array, near: Array, rest: Array) -> tuple[Array, Array]:
    """Return the mean `near + rest` as another number, a constant to autodiff, and the rest beside it."""
    nearer = lax.stop_gradient(nearer)
    return nearer, (near - nearer) + rest


def _member(x: Array, over: Reduction, where: Array | None, count: Array | float) -> Array:
    """One counted element of each set, 0 where there is none; a constant to autodiff.

    The first, which costs nothing to find. Under a mask, and where devices share an explicit axis, the largest.
    """
    x = lax.stop_gradient(x)
    kept = list(x.shape)
    for a in over.axis:
        kept[a] = 1
    if 0 in map(x.shape.__getitem__, over.axis):
        return jnp.zeros(kept, x.dtype)
    if where is None and not _shared(x, over):
        first = lax.slice(x, (0,) * x.ndim, kept)
        if 0 in over.axis:
            # Where `jit` shards the batch, else all that is made of `first` stays on one device and is sent each time.
            first = lax.expand_dims(lax.optimization_barrier(lax.squeeze(first, over.axis)), over.axis)
        return first if over.pool == 1 else _pool(first, over, lambda groups: groups[..., :1])
    largest = x.max(over.axis, keepdims=True, initial=-jnp.inf, where=where)
    largest = _pool(largest, over, lambda groups: groups.max(-1, keepdims=True))
    return jnp.where(jnp.asarray(count) > 0, largest, 0)


_LARGE = 2**16
"""Elements from which `_in_memory` pays."""


def _is_large(x: Array) -> bool:
    return isinstance(x.size, int) and x.size >= _LARGE


def _in_memory(x: Array) -> Array:
    """Return `x` by a reduction, which XLA:CPU writes to memory; a slice it would read again wherever it is needed.

    Inside of loops an output would replace its input but for such slices of the input, with which the compiler copies
    all of it in each step.
    """
    return jnp.pad(x[None], [(0, 1), *[(0, 0)] * x.ndim], constant_values=-jnp.inf).max(0)


def _shared(x: Array, over: Reduction) -> bool:
    """Check whether devices of an explicit mesh share a reduced axis."""
    return bool(jax.typeof(x).sharding.mesh.axis_types) and sharded_along(x, over.axis)


def means(values: Sequence[Array], over: Reduction, where: Array | None, count: Array | float) -> list[Array]:
    """Means of several arrays over `over`, with one collective for all."""
    sums = [_sum(v, over, where) for v in values]
    if over.devices is not None:
        sums = list(over.devices.sum(jnp.stack(sums)))
    return [s / (jnp.maximum(count, 1) if isinstance(count, Array) else max(count, 1.0)) for s in sums]


def _one_pass(x: Array, over: Reduction, where: Array | None, count: Array | float) -> Moments:
    values = [x, lax.square(x)] if over.center else [lax.square(x)]
    if over.devices is not None:
        count = over.devices.sum(count) if isinstance(count, Array) else count * over.devices.size
    *first, second = means(values, over, where, count)
    if not over.center:
        return Moments(None, None, second, count)
    return Moments(first[0], None, jnp.maximum(second - lax.square(first[0]), 0), count)


def _counted(x: Array, over: Reduction, where: Array | None, n: int) -> Array:
    """Elements per statistic under a mask, or in a symbolic shape of `n`."""
    if where is None:
        return jnp.broadcast_to(jnp.asarray(n, x.dtype), [1 if a in over.axis else m for a, m in enumerate(x.shape)])
    return _pool(jnp.broadcast_to(where, x.shape).sum(over.axis, keepdims=True, dtype=x.dtype), over)


def _sum(x: Array, over: Reduction, where: Array | None) -> Array:
    if where is not None:
        x = jnp.where(where, x, 0)
    sums = x.sum(over.axis, keepdims=True)
    return sums if over.pool == 1 else _pool(sums, over)


def _pool(
    x: Array, over: Reduction, reduce: Callable[[Array], Array] = lambda groups: groups.sum(-1, keepdims=True)
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
    near, rest, square, total = (a[0] for a in _union(nears, rests, squares, n))
    return Moments(near, rest, square / jnp.maximum(total, 1), total if counts else count * devices.size)


def moments_of_union(m: Moments, size: int, devices: Devices | None) -> Moments:
    """Merge the moments of sets along the first axis, which stays with size 1, and those of devices.

    Args:
        m: Moments of each set, with a mean.
        size: How many sets there are, which may be symbolic.
        devices: Whose sets belong to the union, too; `None` for this device alone.
    """
    assert m.near is not None
    n = jnp.broadcast_to(jnp.asarray(m.count, m.var.dtype), m.var.shape)
    rests = jnp.zeros_like(m.near) if m.rest is None else m.rest
    near, rest, square, total = _union(m.near, rests, n * m.var, n)
    count = total if isinstance(m.count, Array) or not isinstance(size, int) else m.count * size
    if devices is not None:
        return _merged(devices, count, near, rest, square)
    return Moments(near, rest, square / jnp.maximum(total, 1), count)


def _union(nears: Array, rests: Array, squares: Array, n: Array) -> tuple[Array, Array, Array, Array]:
    """Merge sets along the first axis; return a number near the mean, the rest, the sum of squares and the count."""
    total = n.sum(0, keepdims=True)
    near = lax.stop_gradient(jnp.where(n > 0, nears, -jnp.inf).max(0, keepdims=True, initial=-jnp.inf))
    near = jnp.where(total > 0, near, 0)
    apart = jnp.where(n > 0, (nears - near) + rests, 0)
    rest = (n * apart).sum(0, keepdims=True) / jnp.maximum(total, 1)
    return near, rest, (squares + n * lax.square(apart - rest)).sum(0, keepdims=True), total
