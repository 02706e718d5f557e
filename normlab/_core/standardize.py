"""Standardize, then scale, then shift: the one step all norms share, and its derivative.

The only place where an implementation is chosen. XLA compiles the derivative of a two-pass norm, taken mechanically,
into two to four times the passes it needs. The rule here states it in closed form, with every sum that scale and bias
need in the shape in which the statistics need it too, so that reverse mode reads its inputs as often as the formula.
"""

import functools
import sys

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.moments import Moments, means
from normlab._core.reduction import Over
from normlab._core.sharding import is_sharded


def reciprocal_std(m: Moments, epsilon: float) -> Array:
    """Return `1 / sqrt(var + epsilon)`, and 0 where nothing counted, so that the output there is the bias.

    `epsilon` may be traced, but is a constant to autodiff: `standardize` is differentiated as a function of `x`. NaN as
    in `reciprocal_root`, by the root of a negative number where the reciprocal is 0; elsewhere the subtraction rounds
    away. A comparison would make two programs of one in XLA:CPU.
    """
    square = _not_vanished(m.var + epsilon, epsilon)
    rstd = lax.square(jnp.sqrt(lax.rsqrt(square) - float(jnp.finfo(square.dtype).tiny) ** 0.75))
    return jnp.where(m.count > 0, rstd, 0) if isinstance(m.count, Array) else rstd


def reciprocal_root(square: Array, epsilon: Array | float) -> Array:
    """Return `1 / sqrt(square)`, and NaN where squares have left the range of their dtype.

    Squares of elements beyond 1e19 overflow in float32, and those of elements below 1e-19 vanish. Without NaN the first
    would give the bias, whatever the input. To scale each set by a power of two where it is needed was tried: asking
    costs inputs that need none 4 to 70 % of their time.

    Args:
        square: A variance or a mean square plus `epsilon`.
        epsilon: The latter; unless it is traced or almost 0, nothing can vanish beside it.
    """
    square = _not_vanished(square, epsilon)
    return jnp.where(square < jnp.inf, lax.rsqrt(square), jnp.nan)


def _not_vanished(square: Array, epsilon: Array | float) -> Array:
    """Return `square`, and NaN where squares that vanished may have been a part of it."""
    kind = jnp.finfo(square.dtype)
    least = float(kind.tiny) / float(kind.eps)
    if isinstance(epsilon, Array) or epsilon < least:
        square = jnp.where(square >= least, square, jnp.nan)
    return square


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
    """Return `(x - mean) * rstd * scale + bias`, differentiated as the function of `x` it is.

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
    if any(map(_in_taylor_mode, (x, scale, bias))):
        return affine(_centered(x, m.near, m.rest), rstd, scale, bias)
    return _standardize(over, x, m.near, m.rest, rstd, scale, bias, m.count, where)


def _in_taylor_mode(x: Array | None) -> bool:
    """Check for tracing by `jax.experimental.jet`, which fails on `jax.custom_jvp` and needs no closed form."""
    jet = sys.modules.get("jax.experimental.jet")
    return jet is not None and isinstance(x, jet.JetTracer)


def _centered(x: Array, near: Array | None, rest: Array | None) -> Array:
    for part in (near, rest):
        x = x if part is None else x - part
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardize(over, x, near, rest, rstd, scale, bias, count, where):
    return affine(_centered(x, near, rest), rstd, scale, bias)


@_standardize.defjvp
def _standardize_jvp(over: Over, primals, tangents):
    """The tangent is `centered * slope + dx * rstd * scale + shift`.

    The tangents of `mean` and `rstd` are left out: they follow from `dx`, as
    `dmean = mean(dx)` and `drstd = -rstd^3 mean(centered dx)`, and are in `shift` and `slope`.
    Second derivatives differentiate `mean` and `rstd` themselves, which are plain functions of `x`.
    """
    x, near, rest, rstd, scale, _, count, where = primals
    dx, _, _, _, dscale, dbias, _, _ = tangents
    y = _standardize(over, *primals)
    centered = _centered(x, near, rest)
    if where is not None:  # NaN under the mask must not reach sums of the reverse pass, where 0 * NaN is NaN
        centered = jnp.where(where | jnp.isfinite(centered), centered, 0)
    product = functools.partial(_product, over)

    if near is None:
        (along,) = means([centered * dx], over, where, count)
        shift = None
    else:
        mean_dx, along = means([dx, centered * dx], over, where, count)
        shift = product(-rstd * mean_dx, scale)
    slope = product(-(rstd * rstd * rstd) * along, scale)
    if dscale is not None:
        slope = slope + product(rstd, dscale)
    dy = centered * slope + dx * (rstd if scale is None else rstd * scale)
    for part in (shift, dbias):
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
