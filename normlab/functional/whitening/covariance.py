"""Covariances of neighbouring features or groups: two passes, masked, across devices; and the map that undoes them."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from normlab._core.checks import one_element_allowed
from normlab._core.collectives import Devices
from normlab._core.hidden import without_hidden
from normlab._core.reduction import Reduction, elements, moments, other_axes
from normlab._core.sharding import is_explicit
from normlab.errors import StatisticsError

__all__ = ["Spread", "check_enough", "gram", "mapped", "spread"]


@dataclass(frozen=True)
class Spread:
    """Elements without their mean, and the covariance of the rows they are in.

    An array has two axes that are not reduced: that of the sets, each with a covariance of its own, and that of the
    `k` rows of a set, which are whitened.

    Attributes:
        centered: `x - mean`, 0 where it is hidden and not finite.
        mean: `[sets, k]`.
        covariance: `[sets, k, k]`.
        count: Elements behind each mean, a number or `[sets, k]`.
    """

    centered: Array
    mean: Array
    covariance: Array
    count: Array | float


def spread(x: Array, over: Reduction, where: Array | None, epsilon: float) -> Spread:
    """Return `x` without its mean, and its covariance plus `epsilon` times the identity.

    Under a mask that varies along the rows the covariance of two is over the elements that count in both, divided by
    the geometric mean of their counts: it has no negative eigenvalue, as one over counts of pairs can have.

    Args:
        x: In float32 or wider; two axes are not reduced, those of the sets and of the rows of a set.
        over: The reduction.
        where: True where an element counts, of the rank of `x`.
        epsilon: Added to the diagonal.
    """
    devices, kept = over.devices, other_axes(over.axis, x.ndim)
    apart = where is not None and where.shape[kept[1]] != 1
    m = moments(x, over if apart else over._replace(devices=None), where)
    assert m.near is not None and m.rest is not None
    near, rest = (a.squeeze(over.axis) for a in (m.near, m.rest))
    count = m.count.squeeze(over.axis) if isinstance(m.count, Array) else m.count
    centered = (x - m.near) - m.rest
    counted = centered if where is None else jnp.where(where, centered, 0)
    scatter = gram(counted, kept)
    if devices is not None and apart:
        scatter = devices.sum(scatter)
    elif devices is not None:
        near, rest, scatter, count = _joined(devices, near, rest, scatter, count)
        by_axis = [x.shape[a] if a in kept else 1 for a in range(x.ndim)]
        centered = (x - near.reshape(by_axis)) - rest.reshape(by_axis)
    if where is not None:  # hidden rows are part of the outputs of others
        centered = counted if apart else without_hidden(centered, where)
    diagonal = epsilon * jnp.eye(scatter.shape[-1], dtype=x.dtype)
    return Spread(centered, near + rest, scatter / _of_pairs(count) + diagonal[None], count)


def mapped(matrix: Array, z: Array, kept: tuple[int, ...]) -> Array:
    """Return `y[set, i] = sum_j matrix[set, i, j] z[set, j]`.

    Args:
        matrix: `[sets, k, k]`.
        z: An array with sets and rows along the axes `kept`.
        kept: These axes.
    """
    axes = list(range(z.ndim))
    out = [z.ndim if a == kept[1] else a for a in axes]
    return jnp.einsum(z, axes, matrix, [kept[0], z.ndim, kept[1]], out, precision=lax.Precision.HIGHEST)


def check_enough(shape: tuple[int, ...], over: Reduction, rows: str, remedy: str, allow: bool) -> None:
    """Raise a `StatisticsError` where a covariance has no more elements than rows, unless this is meant.

    Args:
        shape: Shape of what is reduced.
        over: The reduction.
        rows: Names the rows, for the message.
        remedy: Advice for it, a sentence without its end.
        allow: Whether it is meant.
    """
    n, k = elements(shape, over), shape[other_axes(over.axis, len(shape))[1]]
    if isinstance(n, int) and 0 < n <= k and not (allow or one_element_allowed()):
        raise StatisticsError(
            f"Expected more than {k} elements to whiten {k} {rows}, got {n}: beyond them a covariance is `epsilon`. "
            f"{remedy}; or say that it is meant: `allow=True`."
        )


def gram(z: Array, kept: tuple[int, ...]) -> Array:
    """Return the sums of products of any two rows of a set, `[sets, k, k]`.

    Args:
        z: An array with sets and rows along the axes `kept`.
        kept: These axes.
    """
    first, chains = next(a for a in range(z.ndim) if a not in kept), _chains(z, kept)
    if chains > 1:  # every so many elements are a chain of their own, so that a device's share of them is not cut
        z = z.reshape(*z.shape[:first], z.shape[first] // chains, chains, *z.shape[first + 1 :])
        sets, rows = (a + (a > first) for a in kept)
        axes = list(range(z.ndim))
        other = [z.ndim if a == rows else a for a in axes]
        out = [first + 1, sets, rows, z.ndim]
        return jnp.einsum(z, axes, z, other, out, precision=lax.Precision.HIGHEST).sum(0)
    axes, sharding = list(range(z.ndim)), jax.typeof(z).sharding
    other = [z.ndim if a == kept[1] else a for a in axes]
    of_sets = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[kept[0]], None, None))
    return jnp.einsum(
        z, axes, z, other, [*kept, z.ndim],
        precision=lax.Precision.HIGHEST,
        out_sharding=of_sets if is_explicit(sharding.mesh) else None,
    )  # fmt: skip


_LONG, _CHAINS, _SMALLER = 2**14, 256, 16
"""Elements of a sum beyond which float32 loses digits if they are added up one after the other; the most parts of it;
and how much smaller than what is summed all parts are at least."""


def _chains(z: Array, kept: tuple[int, ...]) -> int:
    """Return the number of parts in which sums over all axes but `kept` are to be taken."""
    sizes = [z.shape[a] for a in range(z.ndim) if a not in kept]
    known = all(isinstance(n, int) for n in sizes) and not is_explicit(jax.typeof(z).sharding.mesh)
    if not known or math.prod(sizes) <= _LONG:
        return 1
    most = min(_CHAINS, math.prod(sizes) // (_SMALLER * z.shape[kept[1]]))
    return max((n for n in range(1, most + 1) if sizes[0] % n == 0), default=1)


def _of_pairs(count: Array | float) -> Array | float:
    """Return the number of elements, at least 1, to divide the scatter of each pair of rows by."""
    if not isinstance(count, Array):
        return max(count, 1.0)
    root = jnp.sqrt(jnp.maximum(lax.stop_gradient(count), 1))
    return root[..., :, None] * root[..., None, :]


def _joined(
    devices: Devices, near: Array, rest: Array, scatter: Array, count: Array | float
) -> tuple[Array, Array, Array, Array]:
    """Merge means and scatters of all devices about the mean of all (Chan et al., 1979), by one collective."""
    n = jnp.broadcast_to(jnp.asarray(count, near.dtype), near.shape)
    parts = devices.gather(jnp.concatenate([jnp.stack([near, rest, n], -1), scatter], -1))
    nears, rests, counts, scatters = parts[..., 0], parts[..., 1], lax.stop_gradient(parts[..., 2]), parts[..., 3:]
    total = counts.sum(0)
    near = jnp.where(total > 0, lax.stop_gradient(jnp.where(counts > 0, nears, -jnp.inf).max(0)), 0)
    apart = jnp.where(counts > 0, (nears - near[None]) + rests, 0)
    rest = (counts * apart).sum(0) / jnp.maximum(total, 1)
    between = jnp.sqrt(counts) * (apart - rest[None])
    return near, rest, scatters.sum(0) + gram(between, (1, 2)), total
