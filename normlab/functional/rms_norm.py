"""RMS norm."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from normlab._core.checks import AxisName
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, run
from normlab._core.modulation import spread
from normlab._core.reduction import Axes, Groups, Reduction, canonical_axes
from normlab.functional.layer_norm import LayerNormLayer, with_offset


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
    scale_offset: float = 0.0,
    gate: Array | None = None,
) -> Array:
    """Divide each example by the root mean square of its features (Zhang & Sennrich, 2019).

    `y = x / sqrt(mean(x^2) + epsilon) * (scale_offset + scale)`, times `silu(gate)` if there is a gate

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
        scale_offset: Added to `scale`, where there is one, in float32 or wider: 1 in Gemma and Qwen3-Next.
        gate: Broadcastable to `x`, or `[batch, features]`; its SiLU, in float32 or wider, multiplies the output, as in
            Mamba-2 and Qwen3-Next.

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
    layer = RMSNormLayer(epsilon, axis_name, axis_index_groups, reduction_axes=axis, feature_axes=features)
    return run(layer, x, where, with_offset(scale, scale_offset), gate=gate)


@dataclass(frozen=True)
class RMSNormLayer(LayerNormLayer):
    """RMS norm with its options, those of layer norm; `use_fast_variance` is without effect."""

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Reduce `reduction_axes`, with no mean."""
        return super().over(x, features)._replace(center=False)

    def normalized(
        self,
        x: Array,
        over: Reduction,
        parameters: Parameters,
        features: tuple[int, ...],
        mask: Array | None,
    ) -> Array:
        """Divide by the root mean square, and multiply by the SiLU of `gate` where a call gives one."""
        if parameters.get("gate") is None:
            return super().normalized(x, over, parameters, features, mask)
        gate = parameters["gate"]
        assert gate is not None
        y = super().normalized(x, over, {n: a for n, a in parameters.items() if n != "gate"}, features, mask)
        gate = spread("gate", float32_or_wider(gate), x.shape, features)
        gate = gate if mask is None else without_hidden(jnp.broadcast_to(gate, x.shape), mask)
        return y * jax.nn.silu(gate).astype(y.dtype)
