"""Adaptive instance norm: the statistics of one image in place of those of another."""

import jax.numpy as jnp
from jax import Array

from normlab._core.checks import check_real, check_where
from normlab._core.dtypes import float32_or_wider
from normlab._core.reduction import check_more_than_one, expand_where, moments, reduction
from normlab._core.roots import reciprocal_root
from normlab.functional.instance_norm import instance_norm


def adain(
    x: Array, style: Array, *, epsilon: float = 1e-5, where: Array | None = None, style_where: Array | None = None
) -> Array:
    """Give each feature of each example the mean and the deviation that it has in `style` (Huang & Belongie, 2017).

    `y = (x - mean(x)) / sqrt(var(x) + epsilon) * sqrt(var(style) + epsilon) + mean(style)`

    Statistics: over the positions of an example, per feature, biased, in float32 or wider. Gradients flow into both.

    Args:
        x: Activations, `[batch, *positions, features]`.
        style: Activations whose statistics the output has, `[batch, *positions, features]`, of any positions.
        epsilon: Added to both variances, inside the root.
        where: True where an element of `x` counts, broadcastable to it.
        style_where: True where an element of `style` counts, broadcastable to it.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If there are no positions, or a single one.
        ValueError: If a shape or `epsilon` does not fit.

    Example:
        >>> style = jnp.array([[[10.0], [30.0], [10.0], [30.0]]])
        >>> adain(jnp.array([[[1.0], [3.0]]]), style, epsilon=0.0).ravel()
        Array([10., 30.], dtype=float32)

    References:
        Huang, Belongie. Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization. ICCV 2017.
        https://arxiv.org/abs/1703.06868
    """
    x, style = jnp.asarray(x), jnp.asarray(style)
    check_real(style)
    check_where(style_where, style.shape, "style_where")
    if x.ndim < 1 or style.ndim < 2 or (style.shape[0], style.shape[-1]) != (x.shape[0], x.shape[-1]):
        raise ValueError(
            f"Expected `style` of shape [batch, *positions, features] with the batch and the features of `x` of shape "
            f"{x.shape}, got {style.shape}."
        )
    over = reduction(tuple(range(1, style.ndim - 1)))
    check_more_than_one(style.shape, over, "Give a style with more positions")
    m = moments(float32_or_wider(style), over, expand_where(style_where, style.ndim))
    square = m.var + epsilon
    std = square * reciprocal_root(square, epsilon)
    of_each = (style.shape[0], style.shape[-1])
    return instance_norm(x, std.reshape(of_each), m.mean.reshape(of_each), epsilon=epsilon, where=where)
