"""Online, streaming and continual norm for NNX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import check_where, choose_mode, chosen
from normlab._core.layer import Layer
from normlab.functional.continual_norm import group_first
from normlab.functional.online_norm import Guard, OnlineLayer
from normlab.functional.streaming_norm import Mix, StreamingLayer
from normlab.nnx._batch import BatchNorm
from normlab.nnx._example import NO_METADATA, Affine, Initializer, Metadata, ones, zeros
from normlab.nnx._state import OverwriteWithGradient, read, state_variables, write


def overwrite_with_gradient(module: nnx.Module, gradients: Any) -> Any:
    """Set variables whose gradient is their new value, and return the other gradients, for an optimizer.

    Args:
        module: The model.
        gradients: By its parameters and its `OverwriteWithGradient` variables, as from `nnx.grad` with
            `argnums=nnx.DiffState(0, (nnx.Param, OverwriteWithGradient))`. Variables that are not in them stay.

    Returns:
        The gradients by the parameters.
    """
    new, others = nnx.split_state(gradients, OverwriteWithGradient, ...)
    nnx.update(module, new)
    return others


class _StreamNorm(Affine):
    """What online and streaming norm share."""

    def _configure(self, layer: Layer, axis: Axes, use_running_average: bool | None) -> None:
        self.layer, self.axis, self.use_running_average = layer, axis, use_running_average
        for name, value in layer.state(self.feature_shape).items():
            setattr(self, name, nnx.BatchStat(value))
        for name, value in layer.gradient_state(self.feature_shape).items():
            setattr(self, name, OverwriteWithGradient(value))

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalize `x` and, in training, update the statistics.

        Args:
            x: Activations, `[examples, ..., features]`, the oldest example first.
            use_running_average: Overrides the attribute in this call.
            mask: True where an element counts, broadcastable to `x`.
        """
        attribute = self.use_running_average if use_running_average is None else None
        evaluating = choose_mode(attribute, use_running_average)
        x, affine, dtype = self._promoted(x, self.axis)
        mask = mask if mask is None else jnp.asarray(mask)
        check_where(mask, x.shape, "mask")
        features = canonical_axes(self.axis, x.ndim)
        axis = tuple(a for a in range(x.ndim) if a not in features)
        names = self.layer.state(self.feature_shape), self.layer.gradient_state(self.feature_shape)
        variables = state_variables(self, [*names[0], *names[1]])
        state, gradient_state = ({name: read(variables[name]) for name in part} for part in names)
        y, after = self.layer.apply(x, affine, state, gradient_state, axis=axis, train=not evaluating, mask=mask)
        if not evaluating:
            for name, value in after.items():
                write(variables[name], value)
        return y.astype(dtype)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode; called by `nnx.view`, and read by `nnx.view_info`, which expects this indentation.

        Args:
          use_running_average: True at evaluation, False in training; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class OnlineNorm(_StreamNorm):
    """Online norm; see `normlab.functional.online_norm`.

    Attributes:
        mean: Running mean, an `nnx.BatchStat`, float32.
        var: Running variance, likewise.
        along_y: State of the backward pass, an `OverwriteWithGradient`, whose gradient is its new value: differentiate
            by parameters and by it, and hand both to `overwrite_with_gradient`. Not differentiated by, it stays.
        along_one: Likewise.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: jax.Array | float = 0.999,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        backward_momentum: jax.Array | float = 0.99,
        guard: Guard = "layer_scaling",
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes, not the first; the others are reduced.
            momentum: Weight of the OLD running value when an example comes.
            epsilon: Added to the variance, inside the root.
            dtype: Of the output; `None` is what input and parameters promote to.
            param_dtype: Of scale and bias.
            use_bias: Whether there is a bias.
            use_scale: Whether there is a scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            backward_momentum: 1 minus the rate at which accumulated errors of the gradient are paid back.
            guard: `layer_scaling`, `clamp` or `None`; see `online_norm`.
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
        self._configure(OnlineLayer(momentum, backward_momentum, epsilon, guard), axis, use_running_average)


class StreamingNorm(_StreamNorm):
    """Streaming norm; see `normlab.functional.streaming_norm`.

    State: the memories of mean and variance, each an `nnx.BatchStat`, and those of their gradients, each an
    `OverwriteWithGradient`, for which see `OnlineNorm`. Evaluation is by the long memory.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: jax.Array | float = 0.7,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        backward_momentum: jax.Array | float = 0.7,
        mix: Mix = (0.5, 0.5),
        backward_mix: Mix = (0.5, 0.5, 0.0),
        calls_per_update: int = 1,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes, not the first; the others are reduced.
            momentum: Weight of the OLD long memory at an update of the weights.
            epsilon: Added to the variance, inside the root.
            dtype: Of the output; `None` is what input and parameters promote to.
            param_dtype: Of scale and bias.
            use_bias: Whether there is a bias.
            use_scale: Whether there is a scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            backward_momentum: Weight of the OLD long memory of gradients at an update of the weights.
            mix: Shares of the long, the short and the current memory in the statistics.
            backward_mix: Likewise in the gradients of the statistics.
            calls_per_update: Calls between two updates of the weights.
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
        layer = StreamingLayer(tuple(mix), tuple(backward_mix), momentum, backward_momentum, calls_per_update, epsilon)
        self._configure(layer, axis, use_running_average)


class ContinualNorm(BatchNorm):
    """Continual norm (Pham et al., 2022): group norm without scale and bias, then batch norm.

    The arguments of `BatchNorm`, and those of group norm, both with the same `epsilon`. As in `GroupNorm` there are 32
    groups unless told otherwise, and they must divide the features, which are on the last axis.

    References:
        Pham, Liu, Hoi. Continual Normalization. ICLR 2022. https://arxiv.org/abs/2203.16102
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_groups: int | None = 32,
        group_size: int | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis.
            num_groups: Number of groups; not needed beside `group_size`.
            group_size: Features per group.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        super().__init__(num_features, rngs=rngs, **options)
        self.num_groups, self.group_size = num_groups, group_size

    def normalized(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the group norm of `x`, whose statistics are taken."""
        check_where(mask, x.shape, "mask")
        options: dict[str, Any] = {"num_groups": self.num_groups, "group_size": self.group_size, "axis": self.axis}
        return group_first(x, mask, epsilon=self.epsilon, **options)
