"""Layer, RMS, group and instance norm for Linen."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab._core.modulation import Modulation, modulated_alone
from normlab._core.reduction import Axes, Groups
from normlab.functional.group_norm import GroupNormLayer
from normlab.functional.instance_norm import InstanceNormLayer
from normlab.functional.layer_norm import LayerNormLayer
from normlab.functional.rms_norm import RMSNormLayer
from normlab.linen._norm import Initializer, PerExample, normalize


class Identity(nn.Module):
    """No norm: the registry's `none`."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Return `x`, after scale and bias of this call if there are any; see `LayerNorm`."""
        return modulated_alone(x, Modulation(scale, bias), mask)


class LayerNorm(PerExample):
    """Layer norm; see `normlab.functional.layer_norm`.

    Flax's fields in Flax's order, then ours; Flax's parameters; `use_fast_variance` is off by default.

    Attributes:
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        reduction_axes: Axes reduced.
        feature_axes: Axes along which scale and bias vary.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
        scale_offset: Added to the scale, which then starts at 0 unless `scale_init` is given.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    _kind = LayerNormLayer


class RMSNorm(PerExample):
    """RMS norm; see `normlab.functional.rms_norm`.

    Flax's fields in Flax's order, then ours; Flax's parameters.

    Attributes:
        epsilon: Added to the mean square, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of the scale.
        use_scale: Whether to multiply by a learned scale.
        scale_init: Initializer of the scale.
        reduction_axes: Axes reduced.
        feature_axes: Axes along which the scale varies.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Without effect: a mean square is one pass.
        force_float32_reductions: Always True; there to accept Flax's argument.
        scale_offset: Added to the scale, which then starts at 0 unless `scale_init` is given.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True
    scale_offset: float = 0.0

    _kind = RMSNormLayer

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
        gate: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
            x: Activations.
            mask: True where an element counts, broadcastable to `x`.
            scale: Gain of this call, after the module's own: `[batch, features]`, or broadcastable to `x`.
            bias: Shift of this call, of the same kind.
            gate: Array of the same kind, whose SiLU multiplies the output before that bias.
        """
        return normalize(self, x, mask, scale=scale, bias=bias, gate=gate)


class GroupNorm(PerExample):
    """Group norm; see `normlab.functional.group_norm`.

    Flax's fields in Flax's order, Flax's parameters; `group_size` alone is enough, masks broadcast, and
    `use_fast_variance` is off by default.

    Attributes:
        num_groups: Number of groups; leave it out beside `group_size`.
        group_size: Features per group.
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        reduction_axes: Axes reduced beside the features of a group; `None` means all but the first.
        axis_name: Mapped axes over which the reduced axes are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
        feature_axes: The axis with the features; 1 where channels come first.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes | None = None
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True
    feature_axes: Axes = -1

    _kind = GroupNormLayer


class InstanceNorm(PerExample):
    """Instance norm; see `normlab.functional.instance_norm`.

    Flax's fields in Flax's order, Flax's parameters; `use_fast_variance` is off by default.

    Attributes:
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        feature_axes: Axes with statistics of their own.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True

    _kind = InstanceNormLayer
