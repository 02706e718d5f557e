"""Layer, RMS, group and instance norm for NNX."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype

from normlab import functional as F
from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import (
    AxisName,
    check_dtypes,
    check_epsilon,
    check_flag,
    check_where,
    choose_groups,
    chosen,
    resolve_groups,
)
from normlab._core.dtypes import output_dtype
from normlab.nnx._state import read

Initializer = Callable[..., Any]
Groups = Sequence[Sequence[int]]
Metadata = Mapping[str, Any]
zeros, ones = nnx.initializers.zeros_init(), nnx.initializers.ones_init()
NO_METADATA: Metadata = MappingProxyType({})


class Affine(nnx.Module):
    """Scale and bias of a norm, and the promotion of its input; a base of the norms here.

    Attributes:
        scale: Parameter of shape `num_features`, or `None`.
        bias: Likewise.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        dtype: Any,
        param_dtype: Any,
        scale_init: Initializer | None,
        bias_init: Initializer | None,
        scale_metadata: Metadata,
        bias_metadata: Metadata,
        rngs: nnx.Rngs,
    ) -> None:
        self.feature_shape = _feature_shape(num_features)
        self.num_features = self.feature_shape[0] if len(self.feature_shape) == 1 else self.feature_shape
        self.dtype, self.param_dtype = dtype, param_dtype
        self.scale = nnx.data(
            None
            if scale_init is None
            else nnx.Param(scale_init(rngs.params(), self.feature_shape, param_dtype), **scale_metadata)
        )
        self.bias = nnx.data(
            None
            if bias_init is None
            else nnx.Param(bias_init(rngs.params(), self.feature_shape, param_dtype), **bias_metadata)
        )

    def _promoted(self, x: jax.Array, features: Axes) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Return `x` no narrower than the output, the parameters there are, and the output's dtype, Flax's choice."""
        x = jnp.asarray(x)
        shape = tuple(x.shape[a] for a in canonical_axes(features, x.ndim, "feature_axes"))
        if shape != self.feature_shape:
            raise ValueError(
                f"Expected `x` with {self.num_features} features (`num_features`), got {x.shape}, which has {shape}."
            )
        parameters = {"scale": self.scale, "bias": self.bias}
        affine = {name: read(p) for name, p in parameters.items() if p is not None}
        check_dtypes(x, affine, self.dtype)
        with jax.numpy_dtype_promotion("standard"):
            out = canonicalize_dtype(x, *affine.values(), dtype=self.dtype)
            return x.astype(jnp.promote_types(output_dtype(x), out)), affine, out


class _ExampleNorm(Affine):
    """What the norms within one example share."""

    def _configure(
        self, epsilon: float, axis_name: AxisName | None, axis_index_groups: Groups | None, use_fast_variance: bool
    ) -> None:
        check_epsilon(epsilon)
        check_flag("use_fast_variance", use_fast_variance)
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.axis_index_groups = (
            axis_index_groups if axis_index_groups is None else tuple(map(tuple, axis_index_groups))
        )
        self.use_fast_variance = use_fast_variance

    def _normalize(
        self,
        norm: Callable[..., jax.Array],
        x: jax.Array,
        mask: jax.Array | None,
        features: Axes,
        axis: Axes | None = None,
        **options: Any,
    ) -> jax.Array:
        x, affine, dtype = self._promoted(x, features)
        mask = mask if mask is None else jnp.asarray(mask)
        check_where(mask, x.shape, "mask")
        if axis is not None:
            options["axis"] = canonical_axes(axis, x.ndim, "reduction_axes")
        return norm(
            x,
            **affine,
            epsilon=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            **options,
        ).astype(dtype)


class Identity(nnx.Module):
    """No norm: the registry's `none`."""

    def __init__(self, num_features: int | Sequence[int], *, rngs: nnx.Rngs) -> None:
        """Take what the other norms take."""
        self.num_features = num_features

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Return `x`."""
        return x


class LayerNorm(_ExampleNorm):
    """Layer norm; see `normlab.functional.layer_norm`.

    Flax's arguments and parameters; `use_fast_variance` is off by default, and statistics are in float32 or wider.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
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
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the variance, inside the root.
            dtype: Of the output; `None` is what input and parameters promote to.
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
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
            scale_metadata: Metadata of the scale variable.
        """
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            scale_init=chosen("use_scale", use_scale, scale_init),
            bias_init=chosen("use_bias", use_bias, bias_init),
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self._configure(epsilon, axis_name, axis_index_groups, use_fast_variance)
        self.reduction_axes, self.feature_axes = reduction_axes, feature_axes

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        options: dict[str, Any] = {
            "feature_axes": self.feature_axes,
            "use_fast_variance": self.use_fast_variance,
        }
        return self._normalize(F.layer_norm, x, mask, self.feature_axes, self.reduction_axes, **options)


class RMSNorm(_ExampleNorm):
    """RMS norm; see `normlab.functional.rms_norm`.

    Flax's arguments and parameters; statistics are in float32 or wider.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_scale: bool = True,
        scale_init: Initializer = ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = False,
        rngs: nnx.Rngs,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the mean square, inside the root.
            dtype: Of the output; `None` is what input and parameters promote to.
            param_dtype: Of the scale.
            use_scale: Whether there is a scale.
            scale_init: Initializer of the scale.
            reduction_axes: Axes reduced.
            feature_axes: Axes along which the scale varies.
            axis_name: Mapped axes over which the features are spread.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            use_fast_variance: Without effect: a mean square is one pass.
            rngs: Random streams; `params` is used.
            scale_metadata: Metadata of the scale variable, such as sharding.
        """
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            scale_init=chosen("use_scale", use_scale, scale_init),
            bias_init=None,
            scale_metadata=scale_metadata,
            bias_metadata=NO_METADATA,
            rngs=rngs,
        )
        self._configure(epsilon, axis_name, axis_index_groups, use_fast_variance)
        self.reduction_axes, self.feature_axes = reduction_axes, feature_axes

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        options: dict[str, Any] = {"feature_axes": self.feature_axes}
        return self._normalize(F.rms_norm, x, mask, self.feature_axes, self.reduction_axes, **options)


class GroupNorm(_ExampleNorm):
    """Group norm; see `normlab.functional.group_norm`.

    Flax's arguments and parameters; `group_size` alone is enough, masks broadcast, `use_fast_variance` is off by
    default, and statistics are in float32 or wider.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        reduction_axes: Axes | None = None,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        use_fast_variance: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the last axis.
            num_groups: Number of groups; not needed beside `group_size`.
            group_size: Features per group.
            epsilon: Added to the variance, inside the root.
            dtype: Of the output; `None` is what input and parameters promote to.
            param_dtype: Of scale and bias.
            use_bias: Whether there is a bias.
            use_scale: Whether there is a scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            reduction_axes: Axes reduced beside the features of a group; `None` means all but the first.
            axis_name: Mapped axes over which the reduced axes are spread.
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
            scale_init=chosen("use_scale", use_scale, scale_init),
            bias_init=chosen("use_bias", use_bias, bias_init),
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self._configure(epsilon, axis_name, axis_index_groups, use_fast_variance)
        (width,) = self.feature_shape
        self.num_groups = resolve_groups(width, *choose_groups(num_groups, group_size))
        self.group_size = width // self.num_groups
        self.reduction_axes = reduction_axes

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        options: dict[str, Any] = {"num_groups": self.num_groups, "use_fast_variance": self.use_fast_variance}
        return self._normalize(F.group_norm, x, mask, -1, self.reduction_axes, **options)


class InstanceNorm(_ExampleNorm):
    """Instance norm; see `normlab.functional.instance_norm`.

    Flax's arguments and parameters; `use_fast_variance` is off by default, and statistics are in float32 or wider.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
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
            dtype: Of the output; `None` is what input and parameters promote to.
            param_dtype: Of scale and bias.
            use_bias: Whether there is a bias.
            use_scale: Whether there is a scale.
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
            scale_init=chosen("use_scale", use_scale, scale_init),
            bias_init=chosen("use_bias", use_bias, bias_init),
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self._configure(epsilon, axis_name, axis_index_groups, use_fast_variance)
        self.feature_axes = feature_axes

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`."""
        options: dict[str, Any] = {
            "feature_axes": self.feature_axes,
            "use_fast_variance": self.use_fast_variance,
        }
        return self._normalize(F.instance_norm, x, mask, self.feature_axes, **options)


def _feature_shape(num_features: Any) -> tuple[int, ...]:
    sizes = (num_features,) if isinstance(num_features, numbers.Integral) else tuple(num_features)
    if any(isinstance(n, bool) or not isinstance(n, numbers.Integral) or int(n) < 1 for n in sizes):
        raise ValueError(f"Expected `num_features` to be positive whole numbers, got {num_features!r}.")
    return tuple(int(n) for n in sizes)
