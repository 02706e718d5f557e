"""Power norm and moving average batch norm for Linen."""

import jax

from normlab._core.checks import AxisName
from normlab._core.reduction import Groups
from normlab.functional.moving.mabn import MABNLayer
from normlab.functional.moving.power_norm import PowerNormLayer
from normlab.linen._stream import StreamNorm


class PowerNorm(StreamNorm):
    """Power norm; see `normlab.functional.power_norm`.

    State: `batch_stats` holds `phi` and `step`; `_overwrite_with_gradient` holds `nu`, whose gradient is its new value;
    see `OnlineNorm`. Evaluation is by `phi`.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes.
        momentum: Weight of the OLD running mean square.
        epsilon: Added to mean squares, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        backward_momentum: 1 minus the rate at which `nu` moves.
        num_groups: Groups of features that are scaled first, each on its own.
        warmup_steps: Calls that divide by the mean square of their own batch.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name`.
    """

    momentum: jax.Array | float = 0.9
    backward_momentum: jax.Array | float = 0.9
    num_groups: int = 1
    warmup_steps: int = 10000
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None

    _kind = PowerNormLayer


class MABN(StreamNorm):
    """Moving average batch norm; see `normlab.functional.mabn`.

    State: `batch_stats` holds `run`, `chi` and `step`; `_overwrite_with_gradient` holds `gz`, whose gradient is its new
    value; see `OnlineNorm`. Evaluation is by `run`.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes.
        momentum: Weight of the OLD running mean square.
        epsilon: Added to mean squares, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        buffer_size: Batches that are averaged.
        warmup_steps: First call that takes the mean square of the last batches.
        clip_from: First call that corrects towards the running mean square.
        ghost_batch_size: Examples that share statistics in training.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name`.
    """

    momentum: jax.Array | float = 0.98
    buffer_size: int = 16
    warmup_steps: int = 100
    clip_from: int = 100
    ghost_batch_size: int | None = None
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None

    _kind = MABNLayer
