"""Elements that a mask hides, kept out of derivatives, where 0 * NaN is NaN."""

import jax.numpy as jnp
from jax import Array

__all__ = ["shown", "without_hidden"]


def without_hidden(x: Array, where: Array | None) -> Array:
    """Return `x` with 0 in place of NaN and infinity where elements do not count.

    Args:
        x: Values.
        where: True where an element counts, broadcastable to `x`.
    """
    return x if where is None else jnp.where(jnp.broadcast_to(where, x.shape) | jnp.isfinite(x), x, 0)


def shown(x: Array, where: Array | None) -> Array:
    """Return `x`, and 0 for what a mask hides.

    Args:
        x: Values.
        where: True where an element counts, of the rank of `x`.
    """
    return x if where is None else jnp.where(where, x, 0)
