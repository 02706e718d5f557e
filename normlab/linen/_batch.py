"""Batch norm and batch renorm for Linen."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab._core.reduction import Axes
from normlab.functional.batch_norm import BatchNormLayer, Momentum, Statistics
from normlab.functional.batch_renorm import BatchRenormLayer, Schedule
from normlab.linen._norm import Initializer, Stateful


class BatchNorm(Stateful):
    """Batch norm; see `normlab.functional.batch_norm`.

    Flax's fields in Flax's order, then our own; Flax's parameters and `batch_stats` (`mean`, `var`; and `step` where
    `momentum` is a function or `None`); `use_fast_variance` is off by default. State is not updated during `init`.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes; the others are reduced.
        momentum: Weight of the OLD running value; a function of the step; or `None` for the plain average of all
            batches. PyTorch's momentum is 1 minus this one.
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether to add a learned bias.
        use_scale: Whether to multiply by a learned scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
        unbiased_running_var: Whether the running variance counts n / (n - 1); matters below ten elements.
        ghost_batch_size: Examples that share statistics in training; see `batch_norm` for remainder and running values.
        statistics: `auto`: the batch in training, running statistics at evaluation. `batch`: the batch in both.
            `running`: running statistics in both, as constants, still updated in training: mean and total variance,
            for which one example is enough; see `normlab.functional.merge_batch_norm`.
        frozen: Running statistics always, no update, no gradient into scale and bias.
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: Momentum = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True
    unbiased_running_var: bool = False
    ghost_batch_size: int | None = None
    statistics: Statistics = "auto"
    frozen: bool = False

    _kind = BatchNormLayer


class BatchRenorm(BatchNorm):
    """Batch renorm; see `normlab.functional.batch_renorm`.

    The fields of `BatchNorm`, then those of batch renorm. State, all arrays: `batch_stats` holds `mean`, `std` (the
    average of standard deviations, as published) and `step`.

    Attributes:
        r_max: Largest correction of the standard deviation, or a function of the step; see `normlab.norms.Ramp`.
        d_max: Largest correction of the mean in standard deviations, or a function of the step.
        initialize_from_first_batch: Whether the first batch's statistics replace the initial 0 and 1.
    """

    r_max: Schedule = 3.0
    d_max: Schedule = 5.0
    initialize_from_first_batch: bool = False

    _kind = BatchRenormLayer
