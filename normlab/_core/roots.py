"""Reciprocals of standard deviations, which are NaN where squares have left the range of their dtype."""

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.dtypes import float_limits

__all__ = ["not_vanished", "reciprocal_root"]


def reciprocal_root(square: Array, epsilon: Array | float) -> Array:
    """Return `1 / sqrt(square)`, and NaN where squares have left the range of their dtype.

    Squares of elements beyond 1e19 overflow in float32, and those of elements below 1e-19 vanish. Without NaN the first
    would give the bias, whatever the input. To scale each set by a power of two where it is needed was tried: asking
    costs inputs that need none 4 to 70 % of their time.

    Args:
        square: A variance or a mean square plus `epsilon`.
        epsilon: The latter; unless it is traced or almost 0, nothing can vanish beside it.
    """
    if isinstance(epsilon, Array) or epsilon < float_limits(square.dtype).least_square:
        square = not_vanished(square)
    return jnp.where(square < jnp.inf, lax.rsqrt(square), jnp.nan)


def not_vanished(square: Array) -> Array:
    """Return `square`, and NaN where squares that vanished may have been a part of it."""
    return jnp.where(square >= float_limits(square.dtype).least_square, square, jnp.nan)
