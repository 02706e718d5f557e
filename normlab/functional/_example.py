"""Norms whose statistics stay within one example: layer, RMS, group and instance norm."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from normlab.functional._checks import (
    Axes,
    AxisName,
    StatisticsError,
    canonical_axes,
    check_epsilon,
    check_features,
    check_flag,
    check_real,
    check_where,
    resolve_groups,
)
from normlab.functional._devices import check_whole_groups
from normlab.functional._standardize import reciprocal_std, standardize
from normlab.functional._statistics import Over, check_more_than_one, float32_or_wider, moments, output_dtype
from normlab.functional._statistics import over as over_axes

Groups = Sequence[Sequence[int]]

_REMEDY = "Reduce over more axes or features, or leave the norm out"


def layer_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    use_fast_variance: bool = False,
) -> Array:
    """Standardize each example over its features (Ba et al., 2016).

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: over `axis`, per remaining position, in float32 or wider.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        axis: Axes reduced. The default, the last alone, normalizes each position of an image by itself; the papers
            that compare norms on images mean `axis=(1, 2, 3)`.
        feature_axes: Axes along which `scale` and `bias` vary; `None` means `axis`.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`; the others are normalized by the same statistics.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        use_fast_variance: Whether to use E[x^2] - E[x]^2, as Flax does by default: wrong where the mean is large.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> layer_norm(jnp.array([1.0, 3.0]), epsilon=0.0)
        Array([-1.,  1.], dtype=float32)

    References:
        Ba, Kiros, Hinton. Layer Normalization. 2016. https://arxiv.org/abs/1607.06450
    """
    x = jnp.asarray(x)
    axis = canonical_axes(axis, x.ndim)
    features = axis if feature_axes is None else canonical_axes(feature_axes, x.ndim, "feature_axes")
    over = over_axes(axis, affine=features, axis_name=axis_name, axis_index_groups=axis_index_groups)
    check_more_than_one(x.shape, over, _REMEDY)
    return _normalize(x, scale, bias, over, features, epsilon, where, use_fast_variance)


def rms_norm(
    x: Array,
    scale: Array | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Array:
    """Divide each example by the root mean square of its features (Zhang & Sennrich, 2019).

    `y = x / sqrt(mean(x^2) + epsilon) * scale`

    Statistics: over `axis`, per remaining position, in float32 or wider.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        axis: Axes reduced.
        feature_axes: Axes along which `scale` varies; `None` means `axis`.
        epsilon: Added to the mean square, inside the root. At `x = 0` the gradient is `1 / sqrt(epsilon)`.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> jnp.allclose(rms_norm(jnp.array([1.0, 7.0]), epsilon=0.0), jnp.array([0.2, 1.4]))
        Array(True, dtype=bool)

    References:
        Zhang, Sennrich. Root Mean Square Layer Normalization. NeurIPS 2019. https://arxiv.org/abs/1910.07467
    """
    x = jnp.asarray(x)
    axis = canonical_axes(axis, x.ndim)
    features = axis if feature_axes is None else canonical_axes(feature_axes, x.ndim, "feature_axes")
    over = over_axes(axis, affine=features, axis_name=axis_name, axis_index_groups=axis_index_groups, center=False)
    check_more_than_one(x.shape, over, _REMEDY)
    return _normalize(x, scale, None, over, features, epsilon, where)


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
        return _normalize(x, scale, bias, over, (last,), epsilon, where, use_fast_variance)
    split = (*x.shape[:-1], groups, size)
    over = over_axes((last + 1,), affine=(last, last + 1), **mapped)
    scale, bias = (a if a is None else a.reshape(groups, size) for a in (scale, bias))
    where = where if where is None else jnp.broadcast_to(where, x.shape).reshape(split)
    y = _normalize(x.reshape(split), scale, bias, over, (last, last + 1), epsilon, where, use_fast_variance)
    return y.reshape(x.shape)


def instance_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    use_fast_variance: bool = False,
) -> Array:
    """Standardize each feature of each example over its positions (Ulyanov et al., 2016).

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: over all axes but the first and `feature_axes`, in float32 or wider.

    Args:
        x: Activations, `[batch, *positions, features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        feature_axes: Axes that keep statistics of their own; not the first.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        use_fast_variance: Whether to use E[x^2] - E[x]^2.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If there are no positions, or a single one.
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> instance_norm(jnp.array([[[1.0], [3.0]]]), epsilon=0.0)
        Array([[[-1.],
                [ 1.]]], dtype=float32)

    References:
        Ulyanov, Vedaldi, Lempitsky. Instance Normalization. 2016. https://arxiv.org/abs/1607.08022
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    if 0 in features:
        raise ValueError(f"Expected `feature_axes` without the first axis, the batch, got {feature_axes}.")
    axis = tuple(a for a in range(1, x.ndim) if a not in features)
    if not axis:
        raise StatisticsError(
            f"Expected `x` with positions between batch and features, such as [batch, height, width, features], got "
            f"{x.shape}: instance norm would be constant. Use layer, RMS or group norm."
        )
    affine = features if scale is not None or bias is not None else ()
    over = over_axes(axis, affine=affine, axis_name=axis_name, axis_index_groups=axis_index_groups)
    check_more_than_one(x.shape, over, "Use layer, RMS or group norm")
    return _normalize(x, scale, bias, over, features, epsilon, where, use_fast_variance)


def _normalize(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    over: Over,
    features: tuple[int, ...],
    epsilon: float,
    where: Array | None,
    use_fast_variance: bool = False,
) -> Array:
    check_real(x)
    check_epsilon(epsilon)
    check_flag("use_fast_variance", use_fast_variance)
    check_where(where, x.shape)
    wide = float32_or_wider(x)
    scale, bias = (expand(name, a, x.shape, features) for name, a in (("scale", scale), ("bias", bias)))
    where = expand_where(where, x.ndim)
    m = moments(wide, over, where, use_fast_variance=use_fast_variance)
    return standardize(over, wide, m, reciprocal_std(m, epsilon), scale, bias, where).astype(output_dtype(x))


def expand(name: str, array: Array | None, shape: tuple[int, ...], features: tuple[int, ...]) -> Array | None:
    """Check a per-feature array and give it the rank of `x`, with size 1 off the feature axes."""
    check_features(name, array, tuple(shape[a] for a in features))
    if array is None:
        return None
    return array.reshape([shape[a] if a in features else 1 for a in range(len(shape))])


def expand_where(where: Array | None, ndim: int) -> Array | None:
    """Give a mask the rank of `x`."""
    return where if where is None else where.reshape((1,) * (ndim - where.ndim) + where.shape)
