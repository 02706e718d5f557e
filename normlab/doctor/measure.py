"""Numbers of one call of a norm: moments of its input, the spread of examples, and its output at some places."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from normlab._core.dtypes import float32_or_wider
from normlab._core.reduction import Moments, Reduction, all_but, expand_where, moments, other_axes
from normlab.doctor.checks.kinds import group_size
from normlab.doctor.thresholds import Thresholds
from normlab.tools import Site

__all__ = ["CallNumbers", "measured", "own_axes"]

_PLACES = 4096


class CallNumbers(NamedTuple):
    """Numbers of one call of a norm.

    Attributes:
        examples: Examples that count.
        elements: Elements that count, for each feature.
        mean: Mean of each feature of the input.
        var: Its biased variance.
        between: Sum of squares of the examples' means about the mean, for each feature.
        largest: Largest magnitude of the input.
        broken: Elements of the input, and of the output, that are not finite.
        statistics: Statistics that the norm takes: one for each feature, or for each row or group.
        lossy: How many of them lose digits in one pass.
        small: How many of their variances are about as small as epsilon.
        places: Output at fixed places.
    """

    examples: Array
    elements: Array
    mean: Array
    var: Array
    between: Array
    largest: Array
    broken: Array
    statistics: Array
    lossy: Array
    small: Array
    places: Array


def measured(
    site: Site, thresholds: Thresholds, x: Array, mask: Array | None, y: object, examples: int | None = None
) -> CallNumbers:
    """Measure one call of a norm.

    Args:
        site: The norm.
        thresholds: The bounds that count as lossy and small.
        x: The array whose statistics the norm takes.
        mask: True where an element counts.
        y: The norm's output.
        examples: Examples of the batch, whose parts the rows of the input are where there are several times as many;
            `None` takes each row for an example.
    """
    wide, where = float32_or_wider(x), expand_where(mask, x.ndim)
    where = None if where is None else jnp.broadcast_to(where, x.shape)
    known = wide if where is None else jnp.where(where, wide, 0)
    features = site.features
    rows = _rows(known, features, examples)
    counted = None if where is None else _rows(where, features, examples)
    mean, var, elements, of_rows, between = _moments(rows, counted)
    own_mean, own_var = _own(site, known) or (mean, var)
    broken = jnp.stack([_broken(known), _broken(y) if where is None else 0])
    second = (lax.square(own_mean) + own_var) / jnp.where(own_var > 0, own_var, jnp.inf)
    relative = jnp.finfo(wide.dtype).eps / 2 * second
    epsilon = getattr(site.module, "epsilon", 0.0)
    small = (own_var > 0) & (own_var < thresholds.small_variance * epsilon)
    return CallNumbers(
        examples=jnp.asarray(of_rows),
        elements=jnp.asarray(elements),
        mean=mean,
        var=var,
        between=between,
        largest=jnp.max(jnp.abs(known), initial=0),
        broken=broken,
        statistics=jnp.asarray(own_var.size),
        lossy=jnp.sum(relative > thresholds.digits),
        small=jnp.sum(small),
        places=_at_places(site.path, y, where),
    )


def own_axes(site: Site) -> tuple[int, ...] | None:
    """Return the axes over which each statistic of a norm of single examples is taken; `None` for other norms."""
    axes = range(len(site.shape))
    if site.kind == "instance":
        return other_axes({0, *site.features}, len(axes))
    if site.kind == "layer":
        reduced = getattr(site.module, "reduction_axes", None) or site.features
        return tuple(sorted(axis % len(axes) for axis in ([reduced] if isinstance(reduced, int) else reduced)))
    return None


def _own(site: Site, x: Array) -> tuple[Array, Array] | None:
    """Return mean and variance of each statistic of a norm of single examples."""
    if size := group_size(site):
        return _of_groups(x, size) if site.features == (x.ndim - 1,) else None
    axes = own_axes(site)
    if axes is None or x.ndim != len(site.shape):
        return None
    return _flat(moments(x, Reduction(axes, axes)))


def _of_groups(x: Array, size: int) -> tuple[Array, Array]:
    """Return mean and variance of each group of features of each example."""
    groups = x.reshape(x.shape[0], -1, x.shape[-1] // size, size)
    return _flat(moments(groups, Reduction((1, 3), (1, 3))))


def _flat(found: Moments) -> tuple[Array, Array]:
    return found.mean.ravel(), found.var.ravel()


def _rows(x: Array, features: Sequence[int], examples: int | None) -> Array:
    """Return an array as (examples, positions, features); rows that are parts of examples, as positions of them."""
    others = other_axes(features, x.ndim)
    moved = x.transpose(*others, *features)
    first = moved.shape[0] if others else 1
    first = examples if examples and first % examples == 0 else first
    wide = int(np.prod([x.shape[axis] for axis in features], dtype=int))
    return moved.reshape(first, -1, wide)


def _moments(rows: Array, where: Array | None) -> tuple[Array, Array, ArrayLike, ArrayLike, Array]:
    """Return mean, variance, elements, examples, and the squares between examples, in passes that lose no digits."""
    found = moments(rows, all_but((2,), 3), where)
    assert found.near is not None
    apart = rows - found.near if found.rest is None else rows - found.near - found.rest
    examples: ArrayLike = len(rows)
    if where is None:
        of_example = apart.mean(1)
    else:
        of_example = jnp.where(where, apart, 0).sum(1) / jnp.maximum(where.sum(1), 1)
        examples = where.any((1, 2)).sum()
    elements = found.count.ravel() if isinstance(found.count, Array) else found.count
    return *_flat(found), elements, examples, lax.square(of_example).sum(0)


def _broken(x: object) -> ArrayLike:
    if not isinstance(x, Array) or not jnp.issubdtype(x.dtype, jnp.floating):
        return 0
    return jnp.sum(~jnp.isfinite(x))


def _at_places(path: str, y: object, where: Array | None) -> Array:
    """Return an output at the same places each time, 0 where it does not count."""
    if not isinstance(y, Array) or not jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.zeros(0)
    if where is not None and where.shape == y.shape:
        y = jnp.where(where, y, 0)
    places = np.random.default_rng(list(path.encode())).choice(y.size, min(y.size, _PLACES), replace=y.size > 2**20)
    return y.ravel()[np.sort(places)].astype(jnp.float32)
