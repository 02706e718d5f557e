"""Measures of predictions: their entropy, and the share of the class that is predicted most often."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from normlab._core.dtypes import float32_or_wider

__all__ = ["are_logits", "entropy", "largest_share"]


def are_logits(output: object) -> TypeGuard[Array]:
    """Return whether an output can be logits: an array `[batch, ..., classes]` of at least two classes."""
    if not isinstance(output, Array | np.ndarray) or not jnp.issubdtype(output.dtype, jnp.floating):
        return False
    return output.ndim > 1 and output.shape[-1] > 1


@jax.jit
def entropy(logits: Array) -> Array:
    """Return the mean entropy of the softmax, in nats.

    Args:
        logits: Logits, `[..., classes]`; `-inf` is a class that is left out.
    """
    log_p = jax.nn.log_softmax(float32_or_wider(logits))
    possible = ~jnp.isneginf(log_p)
    log_p = jnp.where(possible, log_p, 0)
    return -jnp.where(possible, jnp.exp(log_p) * log_p, 0).sum(-1).mean()


def largest_share(logits: Array) -> float:
    """Return the share of predictions that are the most frequent class; NaN for fewer than two predictions."""
    predicted = np.asarray(jnp.argmax(logits, -1)).ravel()
    if predicted.size < 2:
        return float("nan")
    return float(np.bincount(predicted).max() / predicted.size)
