"""Layer norm."""

import math
import numbers
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.nn import initializers
from jax.nn.initializers import Initializer

from normlab._core.checks import AxisName
from normlab._core.dtypes import float32_or_wider
from normlab._core.layer import Parameters, run
from normlab._core.per_example import PerExampleLayer
from normlab._core.reduction import Axes, Groups, Reduction, canonical_axes, check_more_than_one, reduction

REMEDY = "Reduce over more axes or features, or leave the norm out"


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
    scale_offset: float = 0.0,
) -> Array:
    """Standardize each example over its features (Ba et al., 2016).

    `y = (x - mean) / sqrt(var + epsilon) * (scale_offset + scale) + bias`

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
        scale_offset: Added to `scale`, where there is one, in float32 or wider. With 1, `scale` is 0 at the start, and
            weight decay pulls the gain to 1.

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
    layer = LayerNormLayer(epsilon, axis_name, axis_index_groups, use_fast_variance, axis, features)
    return run(layer, x, where, with_offset(scale, scale_offset), bias)


def with_offset(scale: Array | None, offset: float) -> Array | None:
    """Return `offset + scale` in float32 or wider, and `None` for no scale; `scale` as it is for no offset."""
    return scale if scale is None or not offset else offset + float32_or_wider(scale)


@dataclass(frozen=True)
class LayerNormLayer(PerExampleLayer):
    """Layer norm with its options.

    Attributes:
        reduction_axes: Axes reduced.
        feature_axes: Axes along which scale and bias vary.
        scale_offset: Added to the scale, which then starts at 0.
    """

    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    scale_offset: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if type(self.scale_offset) is not float and not _is_number(self.scale_offset):
            raise TypeError(f"Expected `scale_offset` to be a number, got {self.scale_offset!r}. It is 1 or 0.")

    def affine_initializer(self, name: str, given: Initializer) -> Initializer:
        """Return zeros in place of ones for a scale that has an offset."""
        offset = name == "scale" and self.scale_offset
        return initializers.zeros if offset and given is initializers.ones else given

    def normalized(
        self,
        x: Array,
        over: Reduction,
        parameters: Parameters,
        features: tuple[int, ...],
        mask: Array | None,
    ) -> Array:
        """Standardize over a reduction, and add the offset to the scale."""
        if self.scale_offset:
            parameters = {**parameters, "scale": with_offset(parameters.get("scale"), self.scale_offset)}
        return super().normalized(x, over, parameters, features, mask)

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Reduce `reduction_axes`."""
        axis = features
        if self.reduction_axes != self.feature_axes:
            axis = canonical_axes(self.reduction_axes, x.ndim, "reduction_axes")
        over = reduction(
            axis,
            affine=features,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if math.prod(map(x.shape.__getitem__, axis)) == 1:
            check_more_than_one(x.shape, over, REMEDY)
        return over


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
