"""Norms along rows on accelerators, where a row fits into registers.

Forward, XLA makes one kernel of mean, variance and output, which reads `x` once, if each is computed from the one
before. It makes no such kernel of a backward pass, which has results of several shapes, so there the sums do without
the mean: they are about a number near the mean, and all of them take one pass over `x` and the cotangent.
"""

import jax
from jax import Array, lax

from normlab._core.platforms import on_accelerator
from normlab._core.reduction import Moments, Reduction, elements, means
from normlab._core.roots import reciprocal_root

__all__ = ["row_norm", "takes_rows"]


def takes_rows(over: Reduction, x: Array, m: Moments, epsilon: Array | float, where: Array | None) -> bool:
    """Check whether `row_norm` is for this reduction: of whole rows of one device, with a mean, without a mask.

    Scale and bias vary along all of a row: `over.inner` is empty.
    """
    simple = where is None and over.devices is None and over.pool == 1
    simple = simple and all(isinstance(x.shape[a], int) for a in over.axis)
    return simple and m.rest is not None and isinstance(epsilon, float) and on_accelerator()


def row_norm(
    over: Reduction, x: Array, m: Moments, rstd: Array, epsilon: float, scale: Array | None, bias: Array | None
) -> Array:
    """Return `(x - mean) * rstd * scale + bias`; see `standardize`.

    Args:
        over: The reduction of `m`, one that `takes_rows`.
        x: In float32 or wider.
        m: Moments of `x`, which only derivatives use.
        rstd: The reciprocal root of their variance and `epsilon`.
        epsilon: Added to the variance, inside the root.
        scale: Gain of the rank of `x`; `None` is 1.
        bias: Shift of the same kind; `None` is 0.
    """
    assert m.near is not None and m.rest is not None
    return _row_norm(over, epsilon, x, m.near, m.rest, rstd, scale, bias)


_LONGEST = 8192
"""Elements of a row beyond which one kernel is slower than a pass for the statistics: measured at 4096 and 16384."""

_Operands = tuple[Array, Array, Array, Array, Array | None, Array | None]
"""`x`, `near`, `rest`, `rstd`, `scale` and `bias`, or their tangents."""


def _forward(
    over: Reduction,
    epsilon: float,
    x: Array,
    near: Array,
    rest: Array,
    rstd: Array,
    scale: Array | None,
    bias: Array | None,
) -> Array:
    if elements(x.shape, over) > _LONGEST:
        x = (x - near) - rest
    else:  # the statistics that are given would be read from memory, and `x` once more to compute them
        x = x - x.mean(over.axis, keepdims=True)
        x = x - x.mean(over.axis, keepdims=True)  # beside a large mean rounding left something
        rstd = reciprocal_root(lax.square(x).mean(over.axis, keepdims=True) + epsilon, epsilon)
    y = x * rstd if scale is None else x * rstd * scale
    return y if bias is None else y + bias


_row_norm = jax.custom_jvp(_forward, nondiff_argnums=(0, 1))


@_row_norm.defjvp
def _row_norm_jvp(over: Reduction, epsilon: float, primals: _Operands, tangents: _Operands) -> tuple[Array, Array]:
    """The tangent of `standardize`, with `x - near` wherever its reverse pass sums over a row."""
    x, near, rest, rstd, scale, _ = primals
    dx, _, _, _, dscale, dbias = tangents
    y = _row_norm(over, epsilon, *primals)
    apart = x - near
    mean_dx, along = means([dx, apart * dx], over, None, elements(x.shape, over))
    slope = -rstd * (rstd * (rstd * (along - rest * mean_dx)))
    dy = dx * rstd + apart * slope - (rstd * mean_dx + rest * slope)
    dy = dy if scale is None else dy * scale
    if dscale is not None:
        dy = dy + (apart - rest) * rstd * dscale
    return y, dy if dbias is None else dy + dbias
