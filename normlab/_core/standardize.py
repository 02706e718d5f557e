"""Standardize, then scale, then shift: the one step all norms share, and its derivative.

The only place where an implementation is chosen. XLA compiles the derivative of a two-pass norm, taken mechanically,
into two to four times the passes it needs. The rule here states it in closed form, with every sum that scale and bias
need in the shape in which the statistics need it too, so that reverse mode reads its inputs as often as the formula.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_epsilon, check_real
from normlab._core.dtypes import float32_or_wider, float_limits, output_dtype
from normlab._core.reduction import Axes, Moments, Reduction, canonical_axes, expand, means, other_axes
from normlab._core.roots import not_vanished, reciprocal_root
from normlab._core.rows import row_norm, takes_rows
from normlab._core.sharding import is_sharded


def affine(centered: Array, rstd: Array, scale: Array | None, bias: Array | None) -> Array:
    """Return `centered * rstd * scale + bias`; `None` is 1 and 0. All arrays have the same rank."""
    y = centered * (rstd if scale is None else rstd * scale)
    return y if bias is None else y + bias


def scaled(y: Array, scale: Array | None, bias: Array | None) -> Array:
    """Return `y * scale + bias` in the dtype of `y`."""
    scale, bias = (a if a is None else a.astype(y.dtype) for a in (scale, bias))
    return affine(y, jnp.ones((1,) * y.ndim, y.dtype), scale, bias)


def normalize(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Standardize with given statistics: batch norm at inference.

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: those given, in float32 or wider.

    Args:
        x: Activations, `[batch, ..., features]`.
        mean: Means, of the shape of the axes not in `axis`.
        var: Variances, of the same shape.
        scale: Gain, of the same shape; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        axis: Axes along which the statistics do not vary; `None` means all but the last.
        epsilon: Added to the variance, inside the root; 0 where `var` is a squared running standard deviation.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape or an axis does not fit.

    Example:
        >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0).ravel()
        Array([0., 1.], dtype=float32)
    """
    x = jnp.asarray(x)
    check_real(x)
    check_epsilon(epsilon)
    axis = tuple(range(x.ndim - 1)) if axis is None else canonical_axes(axis, x.ndim)
    features, wide = other_axes(axis, x.ndim), float32_or_wider(x)
    given: dict[str, Array] = {}
    for name, array in (("mean", mean), ("var", var), ("scale", scale), ("bias", bias)):
        array = expand(name, array, x.shape, features)
        if array is not None:
            given[name] = array.astype(wide.dtype)
    rstd = reciprocal_root(given["var"] + epsilon, epsilon)
    return affine(wide - given["mean"], rstd, given.get("scale"), given.get("bias")).astype(output_dtype(x))


def standardize(
    over: Reduction,
    x: Array,
    m: Moments,
    epsilon: float,
    scale: Array | None = None,
    bias: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Return `(x - mean) / sqrt(var + epsilon) * scale + bias`, differentiated as the function of `x` it is.

    Where nothing counted the output is the bias.

    Args:
        over: The reduction of `m`.
        x: In float32 or wider.
        m: Moments of `x`, reduced axes kept.
        epsilon: Added to the variance, inside the root. May be traced, but is a constant to autodiff.
        scale: Gain of the rank of `x`, size 1 where it does not vary; `None` is 1.
        bias: Shift of the same kind; `None` is 0.
        where: The mask that `m` was taken with.
    """
    rstd = reciprocal_deviation(m, epsilon)
    scale = scale if scale is None else scale.astype(x.dtype)
    bias = bias if bias is None else bias.astype(x.dtype)
    by = _standardize
    if "jax.experimental.jet" in sys.modules and any(map(in_taylor_mode, (x, scale, bias))):
        by = _formula
    elif not over.inner and takes_rows(over, x, m, epsilon, where):
        return row_norm(over, x, m, rstd, epsilon, scale, bias)
    return by(over, x, m.near, m.rest, rstd, scale, bias, m.count, where)


def reciprocal_deviation(m: Moments, epsilon: float) -> Array:
    """Return `1 / sqrt(var + epsilon)`, and 0 where nothing counted.

    It is NaN where squares have left the range of their dtype, as in `reciprocal_root`: by the root of a negative
    number where the reciprocal is 0; elsewhere the subtraction rounds away. A comparison would make two programs of one
    in XLA:CPU.

    Args:
        m: The moments.
        epsilon: Added to the variance; may be traced.
    """
    square, limits = m.var + epsilon, float_limits(m.var.dtype)
    if isinstance(epsilon, Array) or epsilon < limits.least_square:
        square = not_vanished(square)
    rstd = lax.square(jnp.sqrt(lax.rsqrt(square) - limits.tiny**0.75))
    return jnp.where(m.count > 0, rstd, 0) if isinstance(m.count, Array) else rstd


def variance(over: Reduction, x: Array, m: Moments, where: Array | None = None) -> Array:
    """Return `m.var`, for a formula of its own, with the derivative in closed form: `2 mean((x - mean) dx)`.

    Args:
        over: The reduction of `m`, or the union of the sets that `m` was merged from.
        x: In float32 or wider; finite, also where the mask hides it.
        m: Moments of `x`.
        where: The mask that `m` was taken with.
    """
    if "jax.experimental.jet" in sys.modules and in_taylor_mode(x):
        return m.var
    return _variance(over, x, m.near, m.rest, m.var, m.count, where)


_Spread = tuple[Array, Array | None, Array | None, Array, Array | float, Array | None]
"""`x`, `near`, `rest`, `var`, `count` and `where`, or their tangents."""


def _given(
    over: Reduction,
    x: Array,
    near: Array | None,
    rest: Array | None,
    var: Array,
    count: Array | float,
    where: Array | None,
) -> Array:
    return var


_variance = jax.custom_jvp(_given, nondiff_argnums=(0,))


@_variance.defjvp
def _variance_jvp(over: Reduction, primals: _Spread, tangents: _Spread) -> tuple[Array, Array]:
    """Leave out the tangents of `near`, `rest` and `var`, which follow from `dx`."""
    x, near, rest, var, count, where = primals
    centered = x if near is None else x - near
    centered = centered if rest is None else centered - rest
    return var, 2 * means([centered * tangents[0]], over, where, count)[0]


def in_taylor_mode(x: Array | None) -> bool:
    """Check for tracing by `jax.experimental.jet`, which fails on `jax.custom_jvp` and needs no closed form."""
    jet = sys.modules.get("jax.experimental.jet")
    return jet is not None and isinstance(x, jet.JetTracer)


_Operands = tuple[Array, Array | None, Array | None, Array, Array | None, Array | None, Array | float, Array | None]
"""`x`, `near`, `rest`, `rstd`, `scale`, `bias`, `count` and `where`, or their tangents."""


def _formula(
    over: Reduction,
    x: Array,
    near: Array | None,
    rest: Array | None,
    rstd: Array,
    scale: Array | None,
    bias: Array | None,
    count: Array | float,
    where: Array | None,
) -> Array:
    centered = x if near is None else x - near
    centered = centered if rest is None else centered - rest
    y = centered * (rstd if scale is None else rstd * scale)
    return y if bias is None else y + bias


_standardize = jax.custom_jvp(_formula, nondiff_argnums=(0,))


@_standardize.defjvp
def _standardize_jvp(over: Reduction, primals: _Operands, tangents: _Operands) -> tuple[Array, Array]:
    """The tangent is `centered * slope + dx * rstd * scale + shift`.

    The tangents of `mean` and `rstd` are left out: they follow from `dx`, as
    `dmean = mean(dx)` and `drstd = -rstd^3 mean(centered dx)`, and are in `shift` and `slope`.
    Second derivatives differentiate `mean` and `rstd` themselves, which are plain functions of `x`.
    """
    x, near, rest, rstd, scale, _, count, where = primals
    dx, _, _, _, dscale, dbias, _, _ = tangents
    y = _standardize(over, *primals)
    centered = x if near is None else x - near
    centered = centered if rest is None else centered - rest
    if where is not None:  # NaN under the mask must not reach sums of the reverse pass, where 0 * NaN is NaN
        centered = jnp.where(where | jnp.isfinite(centered), centered, 0)
    if near is None:
        (along,) = means([centered * dx], over, where, count)
        shift = None
    else:
        mean_dx, along = means([dx, centered * dx], over, where, count)
        shift = product(over, -rstd * mean_dx, scale)
    # The cube of `rstd` leaves the range of float32 where it is 1e-13 or 1e13.
    slope = product(over, -rstd * (rstd * (rstd * along)), scale)
    if dscale is not None:
        slope = slope + product(over, rstd, dscale)
    dy = centered * slope + dx * (rstd if scale is None else rstd * scale)
    for part in (shift, dbias):
        dy = dy if part is None else dy + part
    return y, dy


def product(over: Reduction, statistic: Array, factor: Array | None) -> Array:
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
    by_axes = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    if left[-1] < right[0]:  # of two axes XLA:CPU transposes the product in half the time
        product = by_axes("m,c->mc", statistic.ravel(), factor.ravel())
    else:
        out = sorted({*left, *right})
        product = by_axes(_squeeze(statistic, left), left, _squeeze(factor, right), right, out)
    return product.reshape(shape)


def _varying(x: Array) -> list[int]:
    return [a for a in range(x.ndim) if x.shape[a] != 1]


def _squeeze(x: Array, axes: list[int]) -> Array:
    return x.reshape([x.shape[a] for a in axes])
