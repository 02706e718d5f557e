"""Standardize, then scale, then shift: the one step all norms share, and its derivative.

The only place where an implementation is chosen. XLA compiles the derivative of a two-pass norm, taken mechanically,
into two to four times the passes it needs. The rule here states it in closed form, with every sum that scale and bias
need in the shape in which the statistics need it too, so that reverse mode reads its inputs as often as the formula.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab.functional._devices import is_sharded
from normlab.functional._statistics import Moments, Over, means, rest_of_mean


def reciprocal_std(m: Moments, epsilon: float) -> Array:
    """Return `1 / sqrt(var + epsilon)`, and 0 where nothing counted, so that the output there is the bias.

    `epsilon` may be traced, but is a constant to autodiff: `standardize` is differentiated as a function of `x`.
    """
    rstd = lax.rsqrt(m.var + epsilon)
    return jnp.where(m.count > 0, rstd, 0) if isinstance(m.count, Array) else rstd


def affine(centered: Array, rstd: Array, scale: Array | None, bias: Array | None) -> Array:
    """Return `centered * rstd * scale + bias`; `None` is 1 and 0. All arrays have the same rank."""
    y = centered * (rstd if scale is None else rstd * scale)
    return y if bias is None else y + bias


def standardize(
    over: Over,
    x: Array,
    m: Moments,
    rstd: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Return `(x - m.mean) * rstd * scale + bias`, differentiated as the function of `x` it is.

    Args:
        over: What `m` was taken over.
        x: In float32 or wider.
        m: Moments of `x`, reduced axes kept.
        rstd: From `reciprocal_std`.
        scale: Of the rank of `x`, size 1 where it does not vary; `None` is 1.
        bias: Likewise; `None` is 0.
        where: The mask that `m` was taken with.
    """
    scale, bias = (a if a is None else a.astype(x.dtype) for a in (scale, bias))
    return _standardize(over, x, m.mean, m.rest, rstd, scale, bias, m.count, where)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardize(over, x, mean, rest, rstd, scale, bias, count, where):
    y = affine(x if mean is None else x - mean, rstd, scale, bias)
    return y if rest is None else y - rest * (rstd if scale is None else rstd * scale)


@_standardize.defjvp
def _standardize_jvp(over: Over, primals, tangents):
    """The tangent is `(centered - rest) * slope + dx * rstd * scale + shift`.

    The tangents of `mean` and `rstd` are left out: they follow from `dx`, as
    `dmean = mean(dx)` and `drstd = -rstd^3 mean(centered dx)`, and are in `shift` and `slope`.
    Second derivatives differentiate `mean` and `rstd` themselves, which are plain functions of `x`.

    Where sums over many rows meet an offset of 1e4, the rounding of the mean would cost them the third digit. Batch
    norms find it here if it is not known; for norms within a row that would take a third of their time. It stays apart
    from `centered`, which is the array that the forward pass has made.
    """
    x, mean, rest, rstd, scale, _, count, where = primals
    dx, _, _, _, dscale, dbias, _, _ = tangents
    y = _standardize(over, *primals)
    centered = x if mean is None else x - mean
    if mean is not None and rest is None and over.devices is None and over.inner == over.axis:
        rest = rest_of_mean(centered, over, where, count)
    if where is not None:  # NaN under the mask must not reach sums of the reverse pass, where 0 * NaN is NaN
        centered = jnp.where(where | jnp.isfinite(centered), centered, 0)
    product = functools.partial(_product, over)

    if mean is None:
        (along,) = means([centered * dx], over, where, count)
        shift = None
    else:
        mean_dx, along = means([dx, centered * dx], over, where, count)
        along = along if rest is None else along - rest * mean_dx
        shift = product(-rstd * mean_dx, scale)
    slope = product(-(rstd * rstd * rstd) * along, scale)
    if dscale is not None:
        slope = slope + product(rstd, dscale)
    dy = centered * slope + dx * (rstd if scale is None else rstd * scale)
    for part in (None if rest is None else -rest * slope, shift, dbias):
        dy = dy if part is None else dy + part
    return y, dy


def _product(over: Over, statistic: Array, factor: Array | None) -> Array:
    """Multiply a statistic by scale.

    Where the product is as large as `x`, it is a dot product of no contracted axes: its transpose is then a dot
    product, which on CPU needs no broadcast copy of its operands, and which XLA reduces to a fused sum elsewhere.
    """
    if factor is None:
        return statistic
    shape = jnp.broadcast_shapes(statistic.shape, factor.shape)
    if over.inner or shape in (statistic.shape, factor.shape) or is_sharded(statistic) or is_sharded(factor):
        return statistic * factor
    left, right = (_varying(a) for a in (statistic, factor))
    out = sorted({*left, *right})
    product = jnp.einsum(
        *(_squeeze(statistic, left), left, _squeeze(factor, right), right, out), precision=lax.Precision.HIGHEST
    )
    return product.reshape(shape)


def _varying(x: Array) -> list[int]:
    return [a for a in range(x.ndim) if x.shape[a] != 1]


def _squeeze(x: Array, axes: list[int]) -> Array:
    return x.reshape([x.shape[a] for a in axes])
