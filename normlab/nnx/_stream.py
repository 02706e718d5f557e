"""Online, streaming and continual norm for NNX."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normlab._core.layer import Layer
from normlab._core.reduction import Axes
from normlab.functional.continual_norm import ContinualNormLayer
from normlab.functional.online_norm import Guard, OnlineNormLayer
from normlab.functional.streaming_norm import Mix, StreamingNormLayer
from normlab.nnx._batch import BatchNorm, BatchNormOptions
from normlab.nnx._norm import NO_METADATA, Initializer, Metadata, OverwriteWithGradient, Stateful, ones, zeros


def overwrite_with_gradient(module: nnx.Module, gradients: nnx.State) -> nnx.State:
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


class StreamNorm(Stateful):
    """A norm whose options are set once: a momentum may be traced, and must not be a leaf of the module."""

    def _configure(self, **options: Any) -> None:
        self.axis = options["axis"]
        self._layer = self._kind(**options)

    def set_options(self, **options: object) -> None:
        """Set options of the norm to other values."""
        self._layer = dataclasses.replace(self._layer, **options)

    def layer(self) -> Layer:
        """Return the norm with the options of this module."""
        return self._layer


class OnlineNorm(StreamNorm):
    """Online norm; see `normlab.functional.online_norm`.

    Attributes:
        mean: Running mean, an `nnx.BatchStat`, float32.
        var: Running variance, likewise.
        along_y: State of the backward pass, an `OverwriteWithGradient`, whose gradient is its new value: differentiate
            by parameters and by it, and hand both to `overwrite_with_gradient`. Not differentiated by, it stays.
        along_one: State of the backward pass, as `along_y`.
    """

    _kind = OnlineNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: jax.Array | float = 0.999,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
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
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of scale and bias.
            use_bias: Whether to add a learned bias.
            use_scale: Whether to multiply by a learned scale.
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
            use_running_average=use_running_average,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
            axis=axis,
            momentum=momentum,
            backward_momentum=backward_momentum,
            epsilon=epsilon,
            guard=guard,
        )


class StreamingNorm(StreamNorm):
    """Streaming norm; see `normlab.functional.streaming_norm`.

    State: the memories of mean and variance, each an `nnx.BatchStat`, and those of their gradients, each an
    `OverwriteWithGradient`, for which see `OnlineNorm`. Evaluation is by the long memory.
    """

    _kind = StreamingNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: jax.Array | float = 0.7,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
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
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of scale and bias.
            use_bias: Whether to add a learned bias.
            use_scale: Whether to multiply by a learned scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            backward_momentum: Weight of the OLD long memory of gradients at an update of the weights.
            mix: Shares of the long, the short and the current memory in the statistics.
            backward_mix: Shares of the three memories in the gradients of the statistics.
            calls_per_update: Calls between two updates of the weights.
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
            scale_metadata: Metadata of the scale variable.
        """
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
            axis=axis,
            mix=tuple(mix),
            backward_mix=tuple(backward_mix),
            momentum=momentum,
            backward_momentum=backward_momentum,
            calls_per_update=calls_per_update,
            epsilon=epsilon,
        )


class ContinualNorm(BatchNorm):
    """Continual norm (Pham et al., 2022): group norm without scale and bias, then batch norm.

    The arguments of `BatchNorm`, and those of group norm, both with the same `epsilon`. As in `GroupNorm` there are 32
    groups unless told otherwise, and they must divide the features, which are on the last axis.

    References:
        Pham, Liu, Hoi. Continual Normalization. ICLR 2022. https://arxiv.org/abs/2203.16102
    """

    _kind = ContinualNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_groups: int | None = 32,
        group_size: int | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis.
            num_groups: Number of groups; leave it out beside `group_size`.
            group_size: Features per group.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        self.num_groups, self.group_size = num_groups, group_size
        super().__init__(num_features, rngs=rngs, **options)
