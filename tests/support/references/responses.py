"""References in float64 NumPy, as `tests.support.reference`, of the norms of responses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.support.reference import (
    Array,
    Axes,
    Result,
    Variables,
    affine,
    axes_of,
    chunks,
    moments,
    moved,
    others,
    sigmoid,
)


def along(array: Array, x: Array, features: Axes) -> Array:
    """Give an array of the features the rank of `x`."""
    return array.reshape([x.shape[a] if a in axes_of(features, x.ndim) else 1 for a in range(x.ndim)])


def positions(x: Array, features: Axes) -> tuple[int, ...]:
    """Return the axes that are neither the first nor features."""
    return others((0, *axes_of(features, x.ndim)), x.ndim)


def frn(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    nonlinear: bool = True,
    learn_epsilon: Any = False,
) -> Result:
    """Singh & Krishnan, 2020."""
    square, _, count = moments(x**2, positions(x, feature_axes), where)
    e = np.abs(variables["e"]) if learn_epsilon else np.zeros(())
    total = np.maximum(square, 0) + epsilon + (along(e, x, feature_axes) if e.ndim else e)
    y = affine(np.where(count > 0, x / np.sqrt(total), 0), variables, feature_axes)
    return np.maximum(y, along(variables["tau"], x, feature_axes)) if nonlinear else y, {}


def evonorm_b(
    variant: str,
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    ghost_batch_size: int | None = None,
    momentum: Any = 0.99,
    unbiased_running_var: bool = False,
    nonlinear: bool = True,
    train: bool = True,
) -> Result:
    """Liu et al., 2020: over the batch."""
    if not nonlinear:
        return affine(x, variables, axis), {}
    counted = np.broadcast_to(True if where is None else where, x.shape)
    if variant == "b0":
        _, var, _ = moments(x, positions(x, axis), counted)
        other = along(variables["v"], x, axis) * x + np.sqrt(np.maximum(var, 0) + epsilon)
    else:
        square, _, _ = moments(x**2, positions(x, axis), counted)
        size = np.sqrt(np.maximum(square, 0) + epsilon)
        other = (x + 1) * size if variant == "b1" else size - x
    if not train:
        y = x / np.maximum(np.sqrt(along(variables["var"], x, axis) + epsilon), other)
        return affine(y, variables, axis), {}
    spread = lambda chunk, mean, var, count: np.broadcast_to(np.maximum(var, 0), chunk.shape)  # noqa: E731
    of_batch, _, var, count = chunks(x, where, axis, ghost_batch_size, unbiased_running_var, spread)
    y = x / np.maximum(np.sqrt(of_batch + epsilon), other)
    return affine(y, variables, axis), moved(variables, {"var": var}, count, momentum)


def evonorm_s(
    variant: str,
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    epsilon: float = 1e-5,
    nonlinear: bool = True,
) -> Result:
    """Liu et al., 2020: over groups of neighbouring features of an example."""
    if not nonlinear:
        return affine(x, variables, -1), {}
    groups = num_groups if group_size is None else x.shape[-1] // group_size
    assert groups is not None
    split = (*x.shape[:-1], groups, x.shape[-1] // groups)
    counted = np.broadcast_to(True if where is None else where, x.shape).reshape(split)
    axis = (*range(1, x.ndim - 1), x.ndim)
    _, var, _ = moments(x.reshape(split), axis, counted)
    square, _, _ = moments(x.reshape(split) ** 2, axis, counted)
    spread = np.maximum(square if variant == "s2" else var, 0)
    swish = x * sigmoid(variables["v"] * x if variant == "s0" else x)
    y = swish.reshape(split) / np.sqrt(spread + epsilon)
    return affine(y.reshape(x.shape), variables, -1), {}


def grn(
    x: Array, variables: Variables, where: Array | None = None, *, feature_axes: Axes = -1, epsilon: float = 1e-6
) -> Result:
    """Woo et al., 2023: responses beside their mean over the features that count."""
    features = axes_of(feature_axes, x.ndim)
    square, _, count = moments(x**2, positions(x, features), where)
    response = np.sqrt(np.maximum(square * count, 0))
    mean = response.sum(features, keepdims=True) / np.maximum((count > 0).sum(features, keepdims=True), 1)
    scaled = {name: array for name, array in variables.items() if name == "scale"}
    y = x + affine(x * response / (mean + epsilon), scaled, features)
    return affine(y, {k: a for k, a in variables.items() if k == "bias"}, features), {}


NORMS: dict[str, Callable[..., Result]] = {
    "frn": frn,
    **{f"evonorm_{variant}": partial(evonorm_b, variant) for variant in ("b0", "b1", "b2")},
    **{f"evonorm_{variant}": partial(evonorm_s, variant) for variant in ("s0", "s1", "s2")},
    "grn": grn,
}
