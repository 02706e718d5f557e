"""Group norm."""

import jax.numpy as jnp
from jax import Array

from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import AxisName, check_features, check_where, resolve_groups
from normlab._core.chunking import check_whole_groups
from normlab._core.dtypes import output_dtype
from normlab._core.per_example import Groups, normalize
from normlab._core.reduction import check_more_than_one
from normlab._core.reduction import over as over_axes


def group_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    axis: Axes | None = None,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    use_fast_variance: bool = False,
) -> Array:
    """Standardize each example over groups of neighbouring features (Wu & He, 2018).

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: over the features of a group and `axis`, per example, in float32 or wider.

    One group is layer norm over all axes but the first; as many groups as features are instance norm.

    Args:
        x: Activations, `[batch, ..., features]`.
        scale: Gain, `[features]`; `None` is 1.
        bias: Shift, `[features]`; `None` is 0.
        num_groups: Number of groups; give this or `group_size`.
        group_size: Features per group.
        axis: Axes reduced, the last among them or not: it always is. `None` means all but the first.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the reduced axes are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        use_fast_variance: Whether to use E[x^2] - E[x]^2.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If the features cannot be split so, or a shape, an axis or `epsilon` does not fit.

    Example:
        >>> group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2, epsilon=0.0)
        Array([[-1.,  1., -1.,  1.]], dtype=float32)

    References:
        Wu, He. Group Normalization. ECCV 2018. https://arxiv.org/abs/1803.08494
    """
    x = jnp.asarray(x)
    last = x.ndim - 1
    if last < 1:
        raise ValueError(f"Expected `x` of shape [batch, ..., features], got {x.shape}. Add a leading axis.")
    axis = tuple(range(1, last)) if axis is None else canonical_axes(axis, x.ndim)
    features = x.shape[-1]
    groups = resolve_groups(features, num_groups, group_size)
    for name, array in (("scale", scale), ("bias", bias)):
        check_features(name, array, (features,))
    check_where(where, x.shape)

    if features == 0:
        return x.astype(output_dtype(x))

    size = features // groups
    check_whole_groups(x, size)
    positions = tuple(a for a in axis if a != last)
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    over = over_axes(positions, affine=(last,), pool=size, **mapped)
    check_more_than_one(x.shape, over, "Use fewer groups or more positions")
    if positions:  # statistics per feature first, then pooled: no array of the size of `x` has groups for an axis
        return normalize(x, scale, bias, over, (last,), epsilon, where, use_fast_variance)
    split = (*x.shape[:-1], groups, size)
    over = over_axes((last + 1,), affine=(last, last + 1), **mapped)
    scale, bias = (a if a is None else a.reshape(groups, size) for a in (scale, bias))
    where = where if where is None else jnp.broadcast_to(where, x.shape).reshape(split)
    y = normalize(x.reshape(split), scale, bias, over, (last, last + 1), epsilon, where, use_fast_variance)
    return y.reshape(x.shape)
