"""Local response norm of AlexNet."""

import numbers
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from normlab._core.checks import check_flag
from normlab._core.closed_form import Operands, again, closed_form
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State, run
from normlab._core.reduction import Axes, expand_where
from normlab._core.sharding import spread_like, whole_along
from normlab._core.standardize import in_taylor_mode


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
        weight = self.alpha / self.size if self.divide else self.alpha
        window = _Window(features[0], self.size, weight, self.beta, self.k)
        where = expand_where(mask, x.ndim)
        by = _formula if in_taylor_mode(wide) else _divided
        return by(window, wide, _divisor(window, wide, where), where), state


class _Window(NamedTuple):
    """A window and the function of its squares; hashable.

    Attributes:
        axis: The axis along which elements are neighbours.
        size: Elements in a window.
        weight: Weight of the sum of squares.
        beta: Exponent.
        k: Added to the squares.
    """

    axis: int
    size: int
    weight: float
    beta: float
    k: float


def _formula(window: _Window, x: Array, divisor: Array, where: Array | None) -> Array:
    return x * _power(divisor, -window.beta)


def _tangent(window: _Window, primals: Operands, tangents: Operands) -> Array:
    """Return `dx / d^beta - 2 beta weight x / d^(beta + 1) nearby(x dx)`, with the divisor `d`."""
    (x, divisor, where), dx = primals, tangents[0]
    assert x is not None and divisor is not None and dx is not None
    along = _nearby(window, dx * x if where is None else jnp.where(where, dx * x, 0))
    other = again(divisor)
    slope = 2 * window.beta * window.weight * _power(other, -window.beta) / other
    return dx * _power(divisor, -window.beta) - x * slope * along


_divided = closed_form(_formula, _tangent)


def _divisor(window: _Window, x: Array, where: Array | None) -> Array:
    squares = lax.square(x if where is None else jnp.where(where, x, 0))
    divisor = window.k + window.weight * _nearby(window, squares)
    return jnp.where(divisor < jnp.inf, divisor, jnp.nan)


def _power(x: Array, exponent: float) -> Array:
    """Return a power; the published one by two roots, which take a tenth of the time of a logarithm."""
    if exponent != -0.75:
        return x**exponent
    root = lax.rsqrt(x)
    return root * jnp.sqrt(root)


def _nearby(window: _Window, x: Array) -> Array:
    """Add up the neighbours of each element along an axis."""
    sizes, padding = [1] * x.ndim, [(0, 0)] * x.ndim
    sizes[window.axis], padding[window.axis] = window.size, (window.size // 2, (window.size - 1) // 2)
    zero = np.zeros((), x.dtype)
    sums = lax.reduce_window(whole_along(x, window.axis), zero, lax.add, sizes, [1] * x.ndim, padding)
    return spread_like(sums, x)
