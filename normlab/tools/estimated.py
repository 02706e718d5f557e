"""Norms whose running statistics are moments of their input, and these moments."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import normlab.linen
import normlab.nnx
from normlab._core.reduction import canonical_axes, other_axes
from normlab.errors import BadInput
from normlab.functional import batch_moments
from normlab.functional.continual_norm import ContinualNormLayer
from normlab.tools.moments import Form
from normlab.tools.sites import Site

__all__ = ["Part", "estimated", "form", "is_frozen", "part"]

KINDS = ("batch", "batch_renorm", "continual", "mean_only_batch", "batch_channel", "switchable")
_KEPT = ("mean", "var", "std", "step")


class Part(NamedTuple):
    """Moments of one call of a norm, of each feature.

    Attributes:
        count: Elements counted, or the sum of their weights.
        mean: Mean.
        var: Biased variance.
    """

    count: Array
    mean: Array
    var: Array


def estimated(site: Site) -> bool:
    """Return whether a norm keeps running statistics that are moments of its input."""
    return site.kind in KINDS and "mean" in site.variables


def is_frozen(site: Site) -> bool:
    """Return whether a norm keeps its statistics in training, too."""
    return bool(getattr(site.module, "frozen", False) or getattr(site.module, "use_running_average", None))


def form(site: Site) -> Form:
    """Return how a norm keeps its statistics."""
    return Form(
        {name: path for name, path in site.variables.items() if name in _KEPT},
        epsilon=float(site.module.epsilon) if "std" in site.variables else 0.0,
        unbiased=bool(getattr(site.module, "unbiased_running_var", False)),
    )


def part(site: Site, x: Array, mask: Array | None, weights: Array | None) -> Part:
    """Return the moments of what a norm normalizes, given its input.

    Args:
        site: The norm.
        x: Its input.
        mask: True where an element counts.
        weights: Weight of each example, (batch,).

    Raises:
        BadInput: If the first axis of the input is not that of the examples.
    """
    features = canonical_axes(site.module.axis, x.ndim)
    if isinstance(site.module, normlab.linen.ContinualNorm | normlab.nnx.ContinualNorm):
        layer = site.module.layer()
        assert isinstance(layer, ContinualNormLayer)
        x = layer.normalized(x, features, mask)
    axes = other_axes(features, x.ndim)
    if weights is not None:
        return _weighted(x, axes, mask, _per_element(site, weights, x))
    moments = batch_moments(x, axis=axes, where=mask)
    return Part(jnp.broadcast_to(jnp.asarray(moments.count, jnp.float32), moments.mean.shape), moments.mean, moments.var)


def _per_element(site: Site, weights: Array, x: Array) -> Array:
    if weights.shape != x.shape[:1]:
        raise BadInput(
            f"Expected a weight for each of the {x.shape[0]} examples of `{site.path}`, got weights of shape "
            f"{weights.shape}. Return one number an example, or leave `weights` out."
        )
    return weights.reshape(-1, *[1] * (x.ndim - 1))


def _weighted(x: Array, axes: tuple[int, ...], mask: Array | None, weights: Array) -> Part:
    """Return weighted moments in two passes."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weights = jnp.broadcast_to(weights.astype(x.dtype), x.shape)
    if mask is not None:
        x, weights = jnp.where(mask, x, 0), jnp.where(mask, weights, 0)
    count = weights.sum(axes)
    share = weights / jnp.expand_dims(jnp.where(count > 0, count, 1), axes)
    mean = (x * share).sum(axes, keepdims=True)
    mean += ((x - mean) * share).sum(axes, keepdims=True)  # the digits that an offset took
    return Part(count, mean.squeeze(axes), (lax.square(x - mean) * share).sum(axes))
