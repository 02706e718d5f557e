"""Moments of what one call of a norm is given, reduced on the device, in the norm's own terms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from normlab._core.dtypes import float32_or_wider
from normlab._core.reduction import all_but, canonical_axes, expand_where, moments
from normlab.errors import BadInput
from normlab.functional.combined.domain_batch import DomainBatchNormLayer
from normlab.functional.moving.power_norm import PowerNormLayer
from normlab.functional.whitening.covariance import gram
from normlab.functional.whitening.whiten import WhitenLayer
from normlab.introspect.calls import Call
from normlab.tools.sites import Site

__all__ = ["Part", "part"]


class Part(NamedTuple):
    """Moments of one call of a norm, of each feature.

    Attributes:
        counted: Elements counted, or the sum of their weights.
        near: A number near the mean.
        rest: The mean minus this number: far from 0, one float32 has lost digits of the mean.
        var: Biased variance.
        covariance: Of a whitening norm: biased covariances of the features of each group, `[groups, size, size]`.
        matrix: Of a whitening norm: the matrix of this batch that its running average averages, of the same shape.
    """

    counted: ArrayLike
    near: ArrayLike
    rest: ArrayLike
    var: ArrayLike
    covariance: ArrayLike | None = None
    matrix: ArrayLike | None = None


def part(
    site: Site, x: Array, mask: Array | None, weights: Array | None, call: Call | None = None, *, train: bool = True
) -> Part:
    """Return the moments of what a norm normalizes, given this array.

    A norm that does not centre has mean squares in place of means, and variances of 0.

    Args:
        site: The norm.
        x: The array whose statistics it takes.
        mask: True where an element counts.
        weights: Weight of each example, (batch,).
        call: The call, which says of which domain each example is.
        train: Whether the call is one in training.

    Raises:
        BadInput: If the first axis of the input is not that of the examples, or the mask of a whitening norm differs
            between features.
    """
    features, layer = canonical_axes(site.module.axis, x.ndim), _layer(site)
    x, mask = float32_or_wider(x), expand_where(mask, x.ndim)
    if weights is not None:
        weights = _per_element(site, weights, x)
    if isinstance(layer, DomainBatchNormLayer):
        return _of_domains(_domains(layer, x, call, train), layer.domains, x, mask, weights, features)
    if isinstance(layer, WhitenLayer):
        return _of_groups(site, layer, x, mask, weights, features)
    if isinstance(layer, PowerNormLayer):
        x = layer.scaled(x, features, mask)
    if site.kind in ("power", "mabn"):
        return _squares(x, mask, weights, features)
    return _moments(x, mask, weights, features)


def _layer(site: Site) -> object:
    """Return the options of a norm that has a class of its own; `None` for other norms and those of other packages."""
    return site.module.layer() if site.kind in ("domain_batch", "whiten", "power") else None


def _per_element(site: Site, weights: Array, x: Array) -> Array:
    if weights.shape != x.shape[:1]:
        raise BadInput(
            f"Expected a weight for each of the {x.shape[0]} examples of `{site.path}`, got weights of shape "
            f"{weights.shape}. Return one number an example, or leave `weights` out."
        )
    return weights.reshape(-1, *[1] * (x.ndim - 1))


def _moments(x: Array, mask: Array | None, weights: Array | None, features: tuple[int, ...]) -> Part:
    over = all_but(features, x.ndim)
    if weights is not None:
        return _weighted(x, over.axis, mask, weights)
    found = moments(x, over, mask)
    assert found.near is not None
    rest = jnp.zeros_like(found.near) if found.rest is None else found.rest
    parts = (jnp.asarray(found.count, x.dtype), found.near, rest, found.var)
    shape = tuple(map(x.shape.__getitem__, features))
    return Part(*(jnp.broadcast_to(part, found.near.shape).reshape(shape) for part in parts))


def _weighted(x: Array, axes: tuple[int, ...], mask: Array | None, weights: Array) -> Part:
    """Return weighted moments in two passes."""
    x, weights = _shown(x, mask, weights)
    count = weights.sum(axes, keepdims=True)
    share = weights / jnp.where(count > 0, count, 1)
    near = (x * share).sum(axes, keepdims=True)
    rest = ((x - near) * share).sum(axes, keepdims=True)
    var = (lax.square((x - near) - rest) * share).sum(axes)
    return Part(count.squeeze(axes), near.squeeze(axes), rest.squeeze(axes), var)


def _shown(x: Array, mask: Array | None, weights: Array | None) -> tuple[Array, Array]:
    """Return an array and the weight of each of its elements, both 0 where it is hidden."""
    weights = jnp.broadcast_to(jnp.ones((), x.dtype) if weights is None else weights.astype(x.dtype), x.shape)
    return (x, weights) if mask is None else (jnp.where(mask, x, 0), jnp.where(mask, weights, 0))


def _squares(x: Array, mask: Array | None, weights: Array | None, features: tuple[int, ...]) -> Part:
    """Return mean squares in place of means."""
    over = all_but(features, x.ndim)._replace(center=False)
    if weights is None:
        found = moments(x, over, mask)
        count, square = jnp.asarray(found.count, x.dtype), found.var
    else:
        x, weights = _shown(x, mask, weights)
        count = weights.sum(over.axis, keepdims=True)
        square = (lax.square(x) * (weights / jnp.where(count > 0, count, 1))).sum(over.axis, keepdims=True)
    square = square.reshape(tuple(map(x.shape.__getitem__, features)))
    count = jnp.broadcast_to(count, [x.shape[a] if a in features else 1 for a in range(x.ndim)]).reshape(square.shape)
    return Part(count, square, jnp.zeros_like(square), jnp.zeros_like(square))


def _domains(layer: DomainBatchNormLayer, x: Array, call: Call | None, train: bool) -> Array:
    """Return the domain of each example, `[batch]`."""
    domain = None if call is None else call.kwargs.get("domain")
    return layer.domain_of(x, None if domain is None else jnp.asarray(domain), train)


def _of_domains(
    domain: Array, number: int, x: Array, mask: Array | None, weights: Array | None, features: tuple[int, ...]
) -> Part:
    """Return the moments of the examples of each domain, with a first axis of domains."""
    domain = domain.reshape(-1, *[1] * (x.ndim - 1))
    members = [domain == d if mask is None else (domain == d) & mask for d in range(number)]
    return jax.tree.map(lambda *each: jnp.stack(each), *(_moments(x, own, weights, features) for own in members))


def _of_groups(
    site: Site, layer: WhitenLayer, x: Array, mask: Array | None, weights: Array | None, features: tuple[int, ...]
) -> Part:
    """Return the moments of each feature, and the covariances of those of one group."""
    (axis,) = features
    if mask is not None and mask.shape[axis] != 1:
        raise BadInput(
            f"Expected a mask of whole positions for `{site.path}` (whiten), whose covariances of two batches cannot "
            f"be merged otherwise, got one that differs between the {x.shape[axis]} features. Give it a size of 1 "
            "along the features."
        )
    found = _moments(x, mask, weights, features)
    kept = [size if a == axis else 1 for a, size in enumerate(x.shape)]
    count, near, rest = (jnp.reshape(part, kept) for part in found[:3])
    centred, weight = _shown((x - near) - rest, mask, weights)
    z = centred * jnp.sqrt(weight / jnp.where(count > 0, count, 1))
    groups = (x.shape[axis] // layer.group_size, layer.group_size)
    covariance = gram(z.reshape(*x.shape[:axis], *groups, *x.shape[axis + 1 :]), (axis, axis + 1))
    return found._replace(covariance=covariance, matrix=layer.averaged(covariance))
