"""Group norm."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from normlab._core.checks import AxisName, check_features, choose_groups, resolve_groups
from normlab._core.dtypes import float32_or_wider
from normlab._core.ghost import check_whole_groups
from normlab._core.layer import Parameters, State, run
from normlab._core.per_example import PerExampleLayer
from normlab._core.reduction import Axes, Groups, Reduction, canonical_axes, check_more_than_one, reduction


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
    feature_axes: Axes = -1,
) -> Array:
    """Standardize each example over groups of neighbouring features (Wu & He, 2018).

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: over the features of a group and `axis`, per example, in float32 or wider.

    One group is layer norm over all axes but the first; as many groups as features are instance norm.

    Args:
        x: Activations, `[batch, ..., features]`; or with the features on the axis that `feature_axes` names.
        scale: Gain, `[features]`; `None` is 1.
        bias: Shift, `[features]`; `None` is 0.
        num_groups: Number of groups; give this or `group_size`.
        group_size: Features per group.
        axis: Axes reduced, the features among them or not: they always are. `None` means all but the first.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the reduced axes are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        feature_axes: The axis with the features, a single one and not the first; 1 where channels come first.

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
    if x.ndim:
        (feature,) = one_feature_axis(feature_axes, x.ndim)
        resolve_groups(x.shape[feature], num_groups, group_size)
    axis = axis if axis is None else canonical_axes(axis, x.ndim)
    layer = GroupNormLayer(
        epsilon, axis_name, axis_index_groups, use_fast_variance, num_groups, group_size, axis, feature_axes
    )
    return run(layer, x, where, scale, bias)


def one_feature_axis(axes: Axes, ndim: int) -> tuple[int]:
    """Return the feature axis of an array of rank `ndim`.

    Raises:
        ValueError: If there are several, or it is out of range.
    """
    features = canonical_axes(axes, ndim, "feature_axes")
    if len(features) != 1:
        raise ValueError(f"Expected `feature_axes` to be one axis, which is split into groups, got {axes}.")
    return features


@dataclass(frozen=True)
class GroupNormLayer(PerExampleLayer):
    """Group norm with its options.

    Attributes:
        num_groups: Number of groups; leave it out beside `group_size`.
        group_size: Features per group.
        reduction_axes: Axes reduced beside the features of a group; `None` means all but the first.
        feature_axes: The axis with the features.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    reduction_axes: Axes | None = None
    feature_axes: Axes = -1

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
        """Standardize each group; see `Layer`."""
        (feature,) = one_feature_axis(features, x.ndim)
        if x.ndim < 2:
            raise ValueError(f"Expected `x` of shape [batch, ..., features], got {x.shape}. Add a leading axis.")
        if feature == 0:
            raise ValueError(f"Expected `feature_axes` without the first axis, the batch, got {self.feature_axes}.")
        width = x.shape[feature]
        for name, array in parameters.items():
            check_features(name, array, (width,))
        if width == 0:
            return float32_or_wider(x), state
        over = self.over(x, features)
        if over.axis and feature == x.ndim - 1:
            # Statistics per feature first, then pooled: no array of the size of `x` has groups for an axis.
            return self.normalized(x, over, parameters, features, mask), state
        size, within = over.pool, (feature, feature + 1)
        groups = width // size
        split = (*x.shape[:feature], groups, size, *x.shape[feature + 1 :])
        inner = tuple(a if a < feature else a + 1 for a in over.axis)
        over = over._replace(axis=tuple(sorted((*inner, feature + 1))), inner=inner, pool=1)
        of_groups = {name: a if a is None else a.reshape(groups, size) for name, a in parameters.items()}
        where = mask if mask is None else jnp.broadcast_to(mask, x.shape).reshape(split)
        return self.normalized(x.reshape(split), over, of_groups, within, where).reshape(x.shape), state

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Describe statistics per feature over the positions, pooled over the neighbours in a group."""
        (feature,) = features
        width, axes = x.shape[feature], self.reduction_axes
        size = width // resolve_groups(width, *choose_groups(self.num_groups, self.group_size))
        check_whole_groups(x, size, feature)
        axis = tuple(range(1, x.ndim)) if axes is None else canonical_axes(axes, x.ndim, "reduction_axes")
        over = reduction(
            tuple(a for a in axis if a != feature),
            affine=features,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            pool=size,
        )
        check_more_than_one(x.shape, over, "Use fewer groups or more positions")
        return over
