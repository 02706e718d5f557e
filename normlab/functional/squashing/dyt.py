"""Dynamic tanh, which stands where a norm would and takes no statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from normlab._core.elementwise import ElementwiseLayer
from normlab._core.layer import run
from normlab._core.reduction import Axes


def dyt(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    alpha: ArrayLike = 0.5,
    feature_axes: Axes = -1,
    where: Array | None = None,
) -> Array:
    """Squash each element by a hyperbolic tangent of learned width (Zhu et al., 2025).

    `y = tanh(alpha * x) * scale + bias`

    Statistics: none; computed in float32 or wider. The output saturates where `alpha * x` is far from 0: the gradient
    is 1e-6 of its largest value at 7.5 and vanishes at 9, and no rescaling of `x` is undone as norms undo it.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        alpha: A single number. Keep it out of weight decay.
        feature_axes: Axes along which `scale` and `bias` vary.
        where: True where an element counts, broadcastable to `x`; elsewhere NaN and infinity give the bias, and no
            gradient.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape or an axis does not fit.

    Example:
        >>> dyt(jnp.array([0.0, 2.0]), alpha=0.5).round(3)
        Array([0.   , 0.762], dtype=float32)

    References:
        Zhu, Chen, He, LeCun, Liu. Transformers without Normalization. CVPR 2025. https://arxiv.org/abs/2503.10622
    """
    return run(DyTLayer(feature_axes), x, where, scale, bias, alpha=jnp.asarray(alpha))


@dataclass(frozen=True)
class DyTLayer(ElementwiseLayer):
    """Dynamic tanh with its options, those of its base."""

    parameters: ClassVar[tuple[str, ...]] = ("alpha",)

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `alpha_init`, a scalar."""
        return jnp.asarray(self.alpha_init, dtype)

    def squashed(self, x: Array, parameters: Mapping[str, Array]) -> Array:
        """Return `tanh(alpha * x)`."""
        return jnp.tanh(parameters["alpha"] * x)
