"""Local response norm of AlexNet."""

import functools
import numbers
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_flag
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State, run
from normlab._core.reduction import Axes, expand_where
from normlab._core.sharding import spread_like, whole_along


def local_response(
    x: Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    divide: bool = True,
    feature_axes: Axes = -1,
    where: Array | None = None,
) -> Array:
    """Divide each element by a power of the squares of its neighbours along the features (Krizhevsky et al., 2012).

    `y = x / (k + alpha * sum(x^2) / size)^beta`

    Statistics: over `size` neighbouring features, `size // 2` of them before the element, in float32 or wider. Beyond
    the first and the last feature there are zeros, which count in `size`.

    Args:
        x: Activations, `[..., features]`.
        size: Features in a window. TensorFlow's `depth_radius` is `(size - 1) / 2`.
        alpha: Weight of the squares.
        beta: Exponent.
        k: Added to the squares; 2 in AlexNet.
        divide: Whether to divide the sum by `size`, as PyTorch and Caffe do, and AlexNet and TensorFlow do not.
        feature_axes: The axis along which elements are neighbours.
        where: True where an element counts, broadcastable to `x`; the others are no neighbours.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If `size`, `k`, a shape or an axis does not fit.

    Example:
        >>> y = local_response(jnp.array([1.0, 2.0]), size=3, alpha=3.0, beta=1.0)  # divides by 1 + 1 + 4
        >>> jnp.allclose(y, jnp.array([1.0, 2.0]) / 6)
        Array(True, dtype=bool)

    References:
        Krizhevsky, Sutskever, Hinton. ImageNet Classification with Deep Convolutional Neural Networks. NeurIPS 2012.
        https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks
    """
    return run(LocalResponseLayer(feature_axes, size, alpha, beta, k, divide), x, where)


@dataclass(frozen=True)
class LocalResponseLayer(Layer):
    """Local response norm with its options; it has no parameters.

    Attributes:
        feature_axes: The axis along which elements are neighbours.
        size: Features in a window.
        alpha: Weight of the squares.
        beta: Exponent.
        k: Added to the squares.
        divide: Whether to divide the sum of squares by `size`.
    """

    feature_axes: Axes = -1
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    divide: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_flag("divide", self.divide)
        if isinstance(self.size, bool) or not isinstance(self.size, numbers.Integral) or self.size < 1:
            raise ValueError(f"Expected `size` to be a positive whole number of features, got {self.size!r}.")
        if not self.k > 0:
            raise ValueError(f"Expected `k` to be positive, got {self.k!r}. It keeps the divisor of zeros from 0.")

    def apply(
        self,
        x: Array,
        parameters: Parameters,
        state: State,
        gradient_state: State,
        *,
        features: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Divide by a power of the squares nearby; see `Layer`."""
        if len(features) != 1:
            raise ValueError(f"Expected `feature_axes` to name a single axis, got {self.feature_axes}.")
        wide = without_hidden(float32_or_wider(x), mask)
        where = expand_where(mask, x.ndim)
        squares = lax.square(wide if where is None else jnp.where(where, wide, 0))
        weight = self.alpha / self.size if self.divide else self.alpha
        divisor = self.k + weight * self._nearby(squares, features[0])
        return wide * jnp.where(divisor < jnp.inf, divisor**-self.beta, jnp.nan), state

    def _nearby(self, x: Array, axis: int) -> Array:
        """Add up the neighbours of each element along an axis."""
        width, like = x.shape[axis], x
        before, behind = (min(n, max(width - 1, 0)) for n in (self.size // 2, (self.size - 1) // 2))
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (before, behind, 0)
        x = lax.pad(whole_along(x, axis), jnp.zeros((), x.dtype), padding)
        windows = [lax.slice_in_dim(x, start, start + width, axis=axis) for start in range(before + behind + 1)]
        return spread_like(functools.reduce(lax.add, windows), like)
