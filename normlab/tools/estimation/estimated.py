"""Norms whose running statistics are moments of their input, and these moments."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from normlab._core.dtypes import float32_or_wider
from normlab._core.reduction import all_but, canonical_axes, expand_where, moments
from normlab.errors import BadInput
from normlab.tools.moments import Form
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites

__all__ = ["Part", "all_fixed", "chosen", "estimated", "form", "part"]

KINDS = ("batch", "batch_renorm", "continual", "mean_only_batch", "batch_channel", "switchable")
_KEPT = ("mean", "var", "std", "step")


class Part(NamedTuple):
    """Moments of one call of a norm, of each feature.

    Attributes:
        counted: Elements counted, or the sum of their weights.
        near: A number near the mean.
        rest: The mean minus this number: far from 0, one float32 has lost digits of the mean.
        var: Biased variance.
    """

    counted: ArrayLike
    near: ArrayLike
    rest: ArrayLike
    var: ArrayLike


def estimated(site: Site) -> bool:
    """Return whether a norm keeps running statistics that are moments of its input."""
    return site.kind in KINDS and "mean" in site.variables


def chosen(found: Sites, where: Where) -> tuple[Site, ...]:
    """Return the norms whose statistics are to be estimated; without `where`, those that learn them in training.

    Args:
        found: Norms of a model in training.
        where: Which of them; see `normlab.tools.select`.

    Raises:
        BadInput: If the model has no such norm, or `where` names a norm of another kind.
    """
    norms = [site for site in found if site.kind != "weight"]
    running = [site for site in norms if estimated(site)]
    if not norms:
        raise BadInput("Expected a model with running statistics, found no norms.")
    if not running:
        kinds = ", ".join(site.kind for site in norms)
        raise BadInput(f"Expected a model with running statistics, found none among its {len(norms)} norms ({kinds}).")
    if where is None:
        return tuple(site for site in running if not _is_fixed(site))
    for site in (meant := select(found, where)):
        if not estimated(site):
            raise BadInput(
                f"Expected norms with a running mean of their input in `where`, got `{site.path}` ({site.kind}). "
                f"Take norms such as `{running[0].path}`."
            )
    return meant


def all_fixed(found: Sites) -> BadInput:
    """Return the error for a model none of whose norms learns its statistics."""
    paths = [site.path for site in found if estimated(site)]
    return BadInput(
        f"Expected a norm that learns its statistics in training, got {len(paths)} with fixed ones, such as "
        f"`{paths[0]}`. Give `train={{...}}`, the keywords of a call in training, or name norms in `where=`."
    )


def _is_fixed(site: Site) -> bool:
    return bool(site.running or getattr(site.module, "frozen", False))


def form(site: Site) -> Form:
    """Return how a norm keeps its statistics."""
    return Form(
        {name: path for name, path in site.variables.items() if name in _KEPT},
        epsilon=float(site.module.epsilon) if "std" in site.variables else 0.0,
        unbiased=bool(getattr(site.module, "unbiased_running_var", False)),
    )


def part(site: Site, x: Array, mask: Array | None, weights: Array | None) -> Part:
    """Return the moments of what a norm normalizes, given this array.

    Args:
        site: The norm.
        x: The array whose statistics it takes.
        mask: True where an element counts.
        weights: Weight of each example, (batch,).

    Raises:
        BadInput: If the first axis of the input is not that of the examples.
    """
    features = canonical_axes(site.module.axis, x.ndim)
    over, mask, x = all_but(features, x.ndim), expand_where(mask, x.ndim), float32_or_wider(x)
    if weights is not None:
        return _weighted(x, over.axis, mask, _per_element(site, weights, x))
    found = moments(x, over, mask)
    assert found.near is not None
    rest = jnp.zeros_like(found.near) if found.rest is None else found.rest
    parts = (jnp.asarray(found.count, x.dtype), found.near, rest, found.var)
    shape = tuple(map(x.shape.__getitem__, features))
    return Part(*(jnp.broadcast_to(part, found.near.shape).reshape(shape) for part in parts))


def _per_element(site: Site, weights: Array, x: Array) -> Array:
    if weights.shape != x.shape[:1]:
        raise BadInput(
            f"Expected a weight for each of the {x.shape[0]} examples of `{site.path}`, got weights of shape "
            f"{weights.shape}. Return one number an example, or leave `weights` out."
        )
    return weights.reshape(-1, *[1] * (x.ndim - 1))


def _weighted(x: Array, axes: tuple[int, ...], mask: Array | None, weights: Array) -> Part:
    """Return weighted moments in two passes."""
    weights = jnp.broadcast_to(weights.astype(x.dtype), x.shape)
    if mask is not None:
        x, weights = jnp.where(mask, x, 0), jnp.where(mask, weights, 0)
    count = weights.sum(axes, keepdims=True)
    share = weights / jnp.where(count > 0, count, 1)
    near = (x * share).sum(axes, keepdims=True)
    rest = ((x - near) * share).sum(axes, keepdims=True)
    var = (lax.square((x - near) - rest) * share).sum(axes)
    return Part(count.squeeze(axes), near.squeeze(axes), rest.squeeze(axes), var)
