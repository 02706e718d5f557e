"""Continual norm: group norm, then batch norm."""

from jax import Array

from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import choose_groups
from normlab._core.dtypes import float32_or_wider
from normlab.functional.group_norm import group_norm


def group_first(
    x: Array,
    where: Array | None,
    *,
    num_groups: int | None,
    group_size: int | None,
    axis: Axes,
    epsilon: float,
) -> Array:
    """Apply the group norm of continual norm, which has no scale and no bias, and keep float32 for the batch norm."""
    features = canonical_axes(axis, x.ndim)
    if features != (x.ndim - 1,):
        raise ValueError(f"Expected `axis` to be the last, along which features are grouped, got {axis}.")
    num_groups, group_size = choose_groups(num_groups, group_size)
    x = float32_or_wider(x)
    return group_norm(x, num_groups=num_groups, group_size=group_size, epsilon=epsilon, where=where)
