"""Instance norm."""

from dataclasses import dataclass

from jax import Array

from normlab._core.checks import AxisName
from normlab._core.layer import run
from normlab._core.per_example import PerExampleLayer
from normlab._core.reduction import Axes, Groups, Reduction, check_more_than_one, reduction
from normlab.errors import StatisticsError


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
        >>> import jax.numpy as jnp
        >>> instance_norm(jnp.array([[[1.0], [3.0]]]), epsilon=0.0)
        Array([[[-1.],
                [ 1.]]], dtype=float32)

    References:
        Ulyanov, Vedaldi, Lempitsky. Instance Normalization. 2016. https://arxiv.org/abs/1607.08022
    """
    layer = InstanceNormLayer(epsilon, axis_name, axis_index_groups, use_fast_variance, feature_axes)
    return run(layer, x, where, scale, bias)


@dataclass(frozen=True)
class InstanceNormLayer(PerExampleLayer):
    """Instance norm with its options.

    Attributes:
        feature_axes: Axes with statistics of their own.
    """

    feature_axes: Axes = -1

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Reduce all axes but the first and the features."""
        if 0 in features:
            raise ValueError(f"Expected `feature_axes` without the first axis, the batch, got {self.feature_axes}.")
        axis = tuple(a for a in range(1, x.ndim) if a not in features)
        if not axis:
            raise StatisticsError(
                f"Expected `x` with positions between batch and features, such as [batch, height, width, features], "
                f"got {x.shape}: instance norm would be constant. Use layer, RMS or group norm."
            )
        over = reduction(axis, affine=features, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        check_more_than_one(x.shape, over, "Use layer, RMS or group norm")
        return over
