"""Layer, RMS, group and instance norm for Linen."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype

from normlab import functional as F
from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import (
    AxisName,
    check_dtypes,
    check_epsilon,
    check_flags,
    check_float32_reductions,
    check_where,
    choose_groups,
    chosen,
)
from normlab._core.dtypes import output_dtype

Initializer = Callable[..., Any]
Groups = Sequence[Sequence[int]]


class Identity(nn.Module):
    """No norm: the registry's `none`."""

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Return `x`."""
        return x


class LayerNorm(nn.Module):
    """Layer norm; see `normlab.functional.layer_norm`.

    Flax's fields in Flax's order, Flax's parameters; `use_fast_variance` is off by default.

    Attributes:
        epsilon: Added to the variance, inside the root.
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of scale and bias.
        use_bias: Whether there is a bias.
        use_scale: Whether there is a scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        reduction_axes: Axes reduced.
        feature_axes: Axes along which scale and bias vary.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
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

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        return _normalize(
            self,
            F.layer_norm,
            x,
            self.feature_axes,
            chosen("use_bias", self.use_bias, self.bias_init),
            where=mask,
            axis=self.reduction_axes,
            feature_axes=self.feature_axes,
            use_fast_variance=self.use_fast_variance,
        )


class RMSNorm(nn.Module):
    """RMS norm; see `normlab.functional.rms_norm`.

    Flax's fields in Flax's order, Flax's parameters.

    Attributes:
        epsilon: Added to the mean square, inside the root.
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of the scale.
        use_scale: Whether there is a scale.
        scale_init: Initializer of the scale.
        reduction_axes: Axes reduced.
        feature_axes: Axes along which the scale varies.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Without effect: a mean square is one pass.
        force_float32_reductions: Always True; there to accept Flax's argument.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        axes: dict[str, Any] = {"axis": self.reduction_axes, "feature_axes": self.feature_axes}
        return _normalize(self, F.rms_norm, x, self.feature_axes, where=mask, **axes)


class GroupNorm(nn.Module):
    """Group norm; see `normlab.functional.group_norm`.

    Flax's fields in Flax's order, Flax's parameters; `group_size` alone is enough, masks broadcast, and
    `use_fast_variance` is off by default.

    Attributes:
        num_groups: Number of groups; not needed beside `group_size`.
        group_size: Features per group.
        epsilon: Added to the variance, inside the root.
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of scale and bias.
        use_bias: Whether there is a bias.
        use_scale: Whether there is a scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        reduction_axes: Axes reduced beside the features of a group; `None` means all but the first.
        axis_name: Mapped axes over which the reduced axes are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes | None = None
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        num_groups, group_size = choose_groups(self.num_groups, self.group_size)
        return _normalize(
            self,
            F.group_norm,
            x,
            -1,
            chosen("use_bias", self.use_bias, self.bias_init),
            where=mask,
            axis=self.reduction_axes,
            num_groups=num_groups,
            group_size=group_size,
            use_fast_variance=self.use_fast_variance,
        )


class InstanceNorm(nn.Module):
    """Instance norm; see `normlab.functional.instance_norm`.

    Flax's fields in Flax's order, Flax's parameters; `use_fast_variance` is off by default.

    Attributes:
        epsilon: Added to the variance, inside the root.
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of scale and bias.
        use_bias: Whether there is a bias.
        use_scale: Whether there is a scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        feature_axes: Axes with statistics of their own.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        return _normalize(
            self,
            F.instance_norm,
            x,
            self.feature_axes,
            chosen("use_bias", self.use_bias, self.bias_init),
            where=mask,
            feature_axes=self.feature_axes,
            use_fast_variance=self.use_fast_variance,
        )


def affine_parameters(
    module: Any, shape: tuple[int, ...], scale_init: Initializer | None, bias_init: Initializer | None
) -> dict[str, jax.Array]:
    """Return scale and bias of `shape` as parameters of `module`; no initializer, no parameter."""
    inits = {"scale": scale_init, "bias": bias_init}
    return {k: module.param(k, init, shape, module.param_dtype) for k, init in inits.items() if init is not None}


def promote(x: jax.Array, affine: dict[str, jax.Array], dtype: Any) -> tuple[jax.Array, Any]:
    """Return `x` in a dtype no narrower than the output's, and the output's, which is Flax's choice."""
    check_dtypes(x, affine, dtype)
    with jax.numpy_dtype_promotion("standard"):
        out = canonicalize_dtype(x, *affine.values(), dtype=dtype)
        return x.astype(jnp.promote_types(output_dtype(x), out)), out


def _normalize(
    module: Any,
    norm: Callable[..., jax.Array],
    x: jax.Array,
    features: Axes,
    bias_init: Initializer | None = None,
    *,
    where: jax.Array | None,
    axis: Axes | None = None,
    **options: Any,
) -> jax.Array:
    """Call `norm` with `module`'s parameters; while these are made, no mapped axis is needed."""
    check_epsilon(module.epsilon)
    check_float32_reductions(module.force_float32_reductions)
    check_flags(module, "use_scale", "use_fast_variance", *(["use_bias"] if hasattr(module, "use_bias") else []))
    x = jnp.asarray(x)
    where = where if where is None else jnp.asarray(where)
    check_where(where, x.shape, "mask")
    if axis is not None:
        options["axis"] = canonical_axes(axis, x.ndim, "reduction_axes")
    shape = tuple(x.shape[a] for a in canonical_axes(features, x.ndim, "feature_axes"))
    affine = affine_parameters(module, shape, module.scale_init if module.use_scale else None, bias_init)
    x, dtype = promote(x, affine, module.dtype)
    if not module.is_initializing():
        options |= {"axis_name": module.axis_name, "axis_index_groups": module.axis_index_groups}
    return norm(x, **affine, epsilon=module.epsilon, where=where, **options).astype(dtype)
