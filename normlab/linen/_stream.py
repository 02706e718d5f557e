"""Online, streaming and continual norm for Linen."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from normlab._core.reduction import Axes
from normlab.functional.continual_norm import ContinualNormLayer
from normlab.functional.online_norm import Guard, OnlineNormLayer
from normlab.functional.streaming_norm import Mix, StreamingNormLayer
from normlab.linen._batch import BatchNorm
from normlab.linen._norm import Initializer, Stateful


class StreamNorm(Stateful):
    """The fields that online and streaming norm share."""

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: jax.Array | float = 0.999
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones


class OnlineNorm(StreamNorm):
    """Online norm; see `normlab.functional.online_norm`.

    State: `batch_stats` holds `mean` and `var`; `_overwrite_with_gradient` holds `along_y` and `along_one`, whose
    gradient is their new value. Flax's `TrainState` knows that collection: give `TrainState.create` both it and the
    parameters, `params={"params": ..., "_overwrite_with_gradient": ...}`, differentiate by all of it, and
    `apply_gradients` trains the one and overwrites the other. Where nothing is differentiated by it, it stays as it is.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes, not the first; the others are reduced.
        momentum: Weight of the OLD running value when an example comes.
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        backward_momentum: 1 minus the rate at which accumulated errors of the gradient are paid back.
        guard: `layer_scaling`, `clamp` or `None`; see `online_norm`.
    """

    backward_momentum: jax.Array | float = 0.99
    guard: Guard = "layer_scaling"

    _kind = OnlineNormLayer


class StreamingNorm(StreamNorm):
    """Streaming norm; see `normlab.functional.streaming_norm`.

    State: `batch_stats` holds the memories of mean and variance, and `_overwrite_with_gradient` those of their
    gradients, whose own gradient is their new value; see `OnlineNorm`. Evaluation is by the long memory.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes, not the first; the others are reduced.
        momentum: Weight of the OLD long memory at an update of the weights.
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        backward_momentum: Weight of the OLD long memory of gradients at an update of the weights.
        mix: Shares of the long, the short and the current memory in the statistics.
        backward_mix: Shares of the three memories in the gradients of the statistics.
        calls_per_update: Calls between two updates of the weights.
    """

    momentum: jax.Array | float = 0.7
    backward_momentum: jax.Array | float = 0.7
    mix: Mix = (0.5, 0.5)
    backward_mix: Mix = (0.5, 0.5, 0.0)
    calls_per_update: int = 1

    _kind = StreamingNormLayer


class ContinualNorm(BatchNorm):
    """Continual norm (Pham et al., 2022): group norm without scale and bias, then batch norm.

    The fields of `BatchNorm`, then those of group norm, both with the same `epsilon`. As in `GroupNorm` there are 32
    groups unless told otherwise, and they must divide the features, which are on the last axis.

    Attributes:
        num_groups: Number of groups; leave it out beside `group_size`.
        group_size: Features per group.

    References:
        Pham, Liu, Hoi. Continual Normalization. ICLR 2022. https://arxiv.org/abs/2203.16102
    """

    num_groups: int | None = 32
    group_size: int | None = None

    _kind = ContinualNormLayer
