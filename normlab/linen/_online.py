"""Online, streaming and continual norm for Linen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT

from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import check_flags, check_where, choose_mode
from normlab._core.layer import Layer
from normlab.functional.continual_norm import group_first
from normlab.functional.online_norm import Guard, OnlineLayer
from normlab.functional.streaming_norm import Mix, StreamingLayer
from normlab.linen._batch import BatchNorm
from normlab.linen._example import affine_parameters, promote
from normlab.linen._state import state_variables

Initializer = Callable[..., Any]


class _StreamNorm(nn.Module):
    """What online and streaming norm share."""

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: jax.Array | float = 0.999
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    def _layer(self) -> Layer:
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`.

        Args:
            x: Activations, `[examples, ..., features]`, the oldest example first.
            use_running_average: Mode of this call; give it here or to the module, not both.
            mask: Elements counted.
        """
        layer = self._layer()
        check_flags(self, "use_running_average", "use_scale", "use_bias")
        evaluating = choose_mode(self.use_running_average, use_running_average) or self.is_initializing()
        x = jnp.asarray(x)
        mask = mask if mask is None else jnp.asarray(mask)
        check_where(mask, x.shape, "mask")
        features = canonical_axes(self.axis, x.ndim)
        shape = tuple(x.shape[a] for a in features)
        start = {"batch_stats": layer.state(shape)}
        if not evaluating or self.is_initializing():  # a model that only evaluates can do without
            start[OVERWRITE_WITH_GRADIENT] = layer.gradient_state(shape)
        variables = state_variables(self, start)
        affine = affine_parameters(
            self,
            shape,
            self.scale_init if self.use_scale else None,
            self.bias_init if self.use_bias else None,
        )
        x, dtype = promote(x, affine, self.dtype)
        state, gradient_state = (
            {name: variables[name].value for name in start.get(collection, {})}
            for collection in ("batch_stats", OVERWRITE_WITH_GRADIENT)
        )
        axis = tuple(a for a in range(x.ndim) if a not in features)
        y, after = layer.apply(x, affine, state, gradient_state, axis=axis, train=not evaluating, mask=mask)
        if not evaluating:
            for name, value in after.items():
                variables[name].value = value
        return y.astype(dtype)


class OnlineNorm(_StreamNorm):
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
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of scale and bias.
        use_bias: Whether there is a bias.
        use_scale: Whether there is a scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        backward_momentum: 1 minus the rate at which accumulated errors of the gradient are paid back.
        guard: `layer_scaling`, `clamp` or `None`; see `online_norm`.
    """

    backward_momentum: jax.Array | float = 0.99
    guard: Guard = "layer_scaling"

    def _layer(self) -> OnlineLayer:
        return OnlineLayer(self.momentum, self.backward_momentum, self.epsilon, self.guard)


class StreamingNorm(_StreamNorm):
    """Streaming norm; see `normlab.functional.streaming_norm`.

    State: `batch_stats` holds the memories of mean and variance, and `_overwrite_with_gradient` those of their
    gradients, whose own gradient is their new value; see `OnlineNorm`. Evaluation is by the long memory.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes, not the first; the others are reduced.
        momentum: Weight of the OLD long memory at an update of the weights.
        epsilon: Added to the variance, inside the root.
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of scale and bias.
        use_bias: Whether there is a bias.
        use_scale: Whether there is a scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        backward_momentum: Weight of the OLD long memory of gradients at an update of the weights.
        mix: Shares of the long, the short and the current memory in the statistics.
        backward_mix: Likewise in the gradients of the statistics.
        calls_per_update: Calls between two updates of the weights.
    """

    momentum: jax.Array | float = 0.7
    backward_momentum: jax.Array | float = 0.7
    mix: Mix = (0.5, 0.5)
    backward_mix: Mix = (0.5, 0.5, 0.0)
    calls_per_update: int = 1

    def _layer(self) -> StreamingLayer:
        return StreamingLayer(
            self.mix,
            self.backward_mix,
            self.momentum,
            self.backward_momentum,
            self.calls_per_update,
            self.epsilon,
        )


class ContinualNorm(BatchNorm):
    """Continual norm (Pham et al., 2022): group norm without scale and bias, then batch norm.

    The fields of `BatchNorm`, then those of group norm, both with the same `epsilon`. As in `GroupNorm` there are 32
    groups unless told otherwise, and they must divide the features, which are on the last axis.

    Attributes:
        num_groups: Number of groups; not needed beside `group_size`.
        group_size: Features per group.

    References:
        Pham, Liu, Hoi. Continual Normalization. ICLR 2022. https://arxiv.org/abs/2203.16102
    """

    num_groups: int | None = 32
    group_size: int | None = None

    def normalized(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the group norm of `x`, whose statistics are taken."""
        check_where(mask, x.shape, "mask")
        options: dict[str, Any] = {"num_groups": self.num_groups, "group_size": self.group_size, "axis": self.axis}
        return group_first(x, mask, epsilon=self.epsilon, **options)
