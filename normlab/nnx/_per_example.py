"""Layer, RMS, group and instance norm for NNX."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Required

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normlab._core.checks import AxisName, choose_groups, resolve_groups
from normlab._core.layer import Layer
from normlab._core.modulation import Modulation, modulated_alone
from normlab._core.reduction import Axes, Groups
from normlab.functional.group_norm import GroupNormLayer
from normlab.functional.instance_norm import InstanceNormLayer
from normlab.functional.layer_norm import LayerNormLayer
from normlab.functional.rms_norm import RMSNormLayer
from normlab.nnx._norm import (
    NO_METADATA,
    Initializer,
    Metadata,
    NormOptions,
    PerExample,
    feature_shape,
    groups_of,
    normalize,
    ones,
    zeros,
)


class Identity(nnx.Module):
    """No norm: the registry's `none`."""

    def __init__(self, num_features: int | Sequence[int], *, rngs: nnx.Rngs) -> None:
        """Take what the other norms take."""
        self.num_features = num_features

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


class PerExampleOptions(NormOptions, total=False):
    """Options of norms within one example that Flax does not have; see `NormOptions`.

    Attributes:
        rngs: Random streams; `params` is used.
        feature_axes: Axes along which scale and bias vary; the last by default.
    """

    rngs: Required[nnx.Rngs]
    feature_axes: Axes


class LayerNorm(PerExample):
    """Layer norm; see `normlab.functional.layer_norm`.

    Flax's arguments and parameters; `use_fast_variance` is off by default, and statistics are in float32 or wider.
    """

    _kind = LayerNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
        scale_offset: float = 0.0,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the variance, inside the root.
            dtype: Dtype of the output; `None` promotes input and parameters.
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
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
            scale_metadata: Metadata of the scale variable.
            scale_offset: Added to the scale, which then starts at 0 unless `scale_init` is given.
        """
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
            epsilon=epsilon,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            use_fast_variance=use_fast_variance,
            reduction_axes=reduction_axes,
            feature_axes=feature_axes,
            scale_offset=scale_offset,
        )


class RMSNorm(PerExample):
    """RMS norm; see `normlab.functional.rms_norm`.

    Flax's arguments and parameters; statistics are in float32 or wider.
    """

    _kind = RMSNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True,
        scale_init: Initializer = ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = False,
        rngs: nnx.Rngs,
        scale_metadata: Metadata = NO_METADATA,
        scale_offset: float = 0.0,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the mean square, inside the root.
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of the scale.
            use_scale: Whether to multiply by a learned scale.
            scale_init: Initializer of the scale.
            reduction_axes: Axes reduced.
            feature_axes: Axes along which the scale varies.
            axis_name: Mapped axes over which the features are spread.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            use_fast_variance: Without effect: a mean square is one pass.
            rngs: Random streams; `params` is used.
            scale_metadata: Metadata of the scale variable, such as sharding.
            scale_offset: Added to the scale, which then starts at 0 unless `scale_init` is given.
        """
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=False,
            scale_init=scale_init,
            bias_init=zeros,
            scale_metadata=scale_metadata,
            bias_metadata=NO_METADATA,
            rngs=rngs,
            epsilon=epsilon,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            use_fast_variance=use_fast_variance,
            reduction_axes=reduction_axes,
            feature_axes=feature_axes,
            scale_offset=scale_offset,
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
        gate: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize `x`; as in `LayerNorm`, but `mask` can be given by position, as in Flax.

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

    Flax's arguments and parameters; `group_size` alone is enough, masks broadcast, `use_fast_variance` is off by
    default, and statistics are in float32 or wider.
    """

    _kind = GroupNormLayer

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        reduction_axes: Axes | None = None,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = False,
        feature_axes: Axes = -1,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis.
            num_groups: Number of groups; leave it out beside `group_size`.
            group_size: Features per group.
            epsilon: Added to the variance, inside the root.
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of scale and bias.
            use_bias: Whether to add a learned bias.
            use_scale: Whether to multiply by a learned scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            reduction_axes: Axes reduced beside the features of a group; `None` means all but the first.
            axis_name: Mapped axes over which the reduced axes are spread.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            use_fast_variance: Whether to use E[x^2] - E[x]^2.
            feature_axes: The axis with the features; 1 where channels come first.
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
            scale_metadata: Metadata of the scale variable.
        """
        (width,) = feature_shape(num_features)
        num_groups = resolve_groups(width, *choose_groups(num_groups, group_size))
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
            epsilon=epsilon,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            use_fast_variance=use_fast_variance,
            num_groups=num_groups,
            group_size=width // num_groups,
            reduction_axes=reduction_axes,
            feature_axes=feature_axes,
        )

    def layer(self) -> Layer:
        """Return the norm with the options of this module."""
        return replace(super().layer(), group_size=None)


class InstanceNorm(PerExample):
    """Instance norm; see `normlab.functional.instance_norm`.

    Flax's arguments and parameters; `use_fast_variance` is off by default, and statistics are in float32 or wider.
    """

    _kind = InstanceNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the variance, inside the root.
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of scale and bias.
            use_bias: Whether to add a learned bias.
            use_scale: Whether to multiply by a learned scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            feature_axes: Axes with statistics of their own.
            axis_name: Mapped axes over which the positions are spread.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            use_fast_variance: Whether to use E[x^2] - E[x]^2.
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
            scale_metadata: Metadata of the scale variable.
        """
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
            epsilon=epsilon,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            use_fast_variance=use_fast_variance,
            feature_axes=feature_axes,
        )
