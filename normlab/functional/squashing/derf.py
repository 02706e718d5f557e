"""Dynamic erf, which stands where a norm would and takes no statistics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from normlab._core.elementwise import ElementwiseLayer
from normlab._core.layer import run
from normlab._core.reduction import Axes
from normlab._core.standardize import in_taylor_mode


def derf(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    alpha: ArrayLike = 0.5,
    shift: ArrayLike = 0.0,
    feature_axes: Axes = -1,
    where: Array | None = None,
) -> Array:
    """Squash each element by an error function of learned width and centre (Chen et al., 2025).

    `y = erf(alpha * x + shift) * scale + bias`

    Statistics: none; computed in float32 or wider. The output saturates sooner than that of `dyt`: the gradient is
    1e-4 of its largest value where `alpha * x + shift` is 3 and 1e-11 at 5.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        bias: Shift of the output, of the same shape; `None` is 0.
        alpha: A single number. Keep it out of weight decay.
        shift: A single number.
        feature_axes: Axes along which `scale` and `bias` vary.
        where: True where an element counts, broadcastable to `x`; elsewhere NaN and infinity count as 0.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape or an axis does not fit.

    Example:
        >>> jnp.allclose(derf(jnp.array([0.0, 2.0]), alpha=0.5), jnp.array([0.0, 0.843]), atol=1e-3)
        Array(True, dtype=bool)

    References:
        Chen, Lu, Zhu, Sun, Liu. Stronger Normalization-Free Transformers. 2025. https://arxiv.org/abs/2512.10938
    """
    return run(DerfLayer(feature_axes), x, where, scale, bias, alpha=jnp.asarray(alpha), shift=jnp.asarray(shift))


@dataclass(frozen=True)
class DerfLayer(ElementwiseLayer):
    """Dynamic erf with its options.

    Attributes:
        shift_init: Initial value of the parameter `shift`.
    """

    shift_init: float = 0.0

    parameters: ClassVar[tuple[str, ...]] = ("alpha", "shift")

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `alpha_init` or `shift_init`, a scalar."""
        return jnp.asarray(self.alpha_init if name == "alpha" else self.shift_init, dtype)

    def squashed(self, x: Array, parameters: Mapping[str, Array]) -> Array:
        """Return `erf(alpha * x + shift)`."""
        z = parameters["alpha"] * x + parameters["shift"]
        return lax.erf(z) if in_taylor_mode(z) else _erf(z)


@jax.custom_jvp
def _erf(x: Array) -> Array:
    """Return `erf(x)`, with a derivative that works inside of `jax.shard_map`, where that of JAX 0.12 fails."""
    return lax.erf(x)


@_erf.defjvp
def _erf_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _erf(x), dx * (2 / math.sqrt(math.pi)) * jnp.exp(-lax.square(x))
