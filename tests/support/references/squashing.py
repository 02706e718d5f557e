"""References in float64 NumPy, as `tests.support.reference`, of the norms that squash, and of unit vectors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.reference import Array, Axes, Result, Variables, affine, axes_of, moments, rms


def shaped(array: Array, x: Array, features: Axes) -> Array:
    """Return a per-feature array with the rank of `x`."""
    return array.reshape([n if a in axes_of(features, x.ndim) else 1 for a, n in enumerate(x.shape)])


def derf(x: Array, variables: Variables, where: Array | None = None, *, feature_axes: Axes = -1, **_: Any) -> Result:
    """Chen et al., 2025; initial values are in the variables."""
    z = variables["alpha"] * x + variables["shift"]
    return affine(np.vectorize(math.erf, otypes=[float])(z), variables, feature_axes), {}


def seednorm(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    num_heads: int = 1,
    epsilon: float = 1e-6,
) -> Result:
    """Cai et al., 2025: a gain that depends on a product with the input, of each head by itself."""
    xhat, _ = rms(x, {}, where, reduction_axes=reduction_axes, feature_axes=feature_axes, epsilon=epsilon)
    product = x * shaped(variables["beta"], x, feature_axes)
    mask = None if where is None else np.broadcast_to(where, x.shape)
    if num_heads == 1:
        mean, _, count = moments(product, axes_of(reduction_axes, x.ndim), mask)
        along = mean * count
    else:
        split = (*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
        mean, _, count = moments(product.reshape(split), (x.ndim,), None if mask is None else mask.reshape(split))
        along = np.broadcast_to(mean * count, split).reshape(x.shape)
    scale = shaped(variables.get("scale", np.ones(variables["beta"].shape)), x, feature_axes)
    return (np.tanh(along) * shaped(variables["alpha"], x, feature_axes) + scale) * xhat, {}


def bhyt(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    bound: float = 0.1,
    lam_init: float = 2.0,
    learn_lam: bool = True,
    **options: Any,
) -> Result:
    """Byun et al., 2026: a tangent of RMS norm."""
    xhat, _ = rms(x, {}, where, **options)
    lam = variables["lam"] if learn_lam else lam_init
    return affine(np.tanh(lam * bound * xhat), variables, options.get("feature_axes", -1)), {}


def l2(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-12,
    additive: bool = False,
    use_temperature: bool = False,
    temperature_init: float = 1.0,
) -> Result:
    """Divide by the Euclidean length; vectors of zeros are zeros."""
    mean, _, count = moments(x**2, axes_of(reduction_axes, x.ndim), where)
    square = mean * count
    divisor = np.sqrt(square + epsilon) if additive else np.maximum(np.sqrt(square), epsilon)
    y = np.where(square > 0, x / np.where(square > 0, divisor, 1), 0)
    return affine(y, variables, feature_axes) * variables.get("temperature", 1.0), {}


def local_response(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    divide: bool = True,
    feature_axes: Axes = -1,
) -> Result:
    """Krizhevsky et al., 2012: windows along the features, one after the other."""
    moved = np.moveaxis(x, feature_axes, -1)
    counted = np.moveaxis(np.broadcast_to(True if where is None else where, x.shape), feature_axes, -1)
    y = np.zeros(moved.shape)
    for c in range(moved.shape[-1]):
        window = slice(max(c - size // 2, 0), c + (size - 1) // 2 + 1)
        mean, _, count = moments(moved[..., window] ** 2, (x.ndim - 1,), counted[..., window])
        total = (mean * count)[..., 0] / (size if divide else 1)
        y[..., c] = moved[..., c] / (k + alpha * total) ** beta
    return np.moveaxis(y, -1, feature_axes), {}


NORMS: dict[str, Callable[..., Result]] = {
    "derf": derf,
    "seednorm": seednorm,
    "bhyt": bhyt,
    "l2": l2,
    "local_response": local_response,
}
