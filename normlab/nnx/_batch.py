"""Batch norm and batch renorm for NNX."""

from collections.abc import Sequence
from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normlab._core.checks import AxisName, check_flag
from normlab._core.reduction import Axes
from normlab.functional.batch_norm import BatchNormLayer, Momentum, Statistics
from normlab.functional.batch_renorm import BatchRenormLayer, Schedule
from normlab.nnx._norm import (
    NO_METADATA,
    FrozenParam,
    Initializer,
    Metadata,
    NormOptions,
    Stateful,
    groups_of,
    ones,
    zeros,
)


class OverBatch(Stateful):
    """A norm with running averages of a batch's statistics, which can be frozen."""

    @property
    def frozen(self) -> bool:
        """True if running statistics normalize, nothing is updated, and parameters are no `nnx.Param`."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        check_flag("frozen", frozen)
        self._frozen = frozen
        kind = FrozenParam if frozen else nnx.Param
        for name in ("scale", "bias", *self._kind.parameters):
            variable = getattr(self, name, None)
            if variable is not None and type(variable) is not kind:
                setattr(self, name, kind(variable.get_raw_value(), **variable.get_metadata()))


class BatchNorm(OverBatch):
    """Batch norm; see `normlab.functional.batch_norm`.

    Flax's arguments, then our own; `use_fast_variance` is off by default, statistics are in float32 or wider, and
    running statistics stay float32 at evaluation.

    Attributes:
        mean: Running mean, an `nnx.BatchStat`, float32.
        var: Running variance, likewise; `std` in `BatchRenorm`.
        step: Updates so far, where `momentum` is a function or `None`.
    """

    _kind = BatchNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: Momentum = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        axis_name: AxisName | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        use_fast_variance: bool = False,
        unbiased_running_var: bool = False,
        ghost_batch_size: int | None = None,
        statistics: Statistics = "auto",
        frozen: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes; the others are reduced.
            momentum: Weight of the OLD running value; a function of the step; or `None` for the plain average of all
                batches. PyTorch's momentum is 1 minus this one.
            epsilon: Added to the variance, inside the root.
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of scale and bias.
            use_bias: Whether to add a learned bias.
            use_scale: Whether to multiply by a learned scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            axis_name: Mapped axes (devices) whose examples belong to the same batch.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            use_fast_variance: Whether to use E[x^2] - E[x]^2.
            unbiased_running_var: Whether the running variance counts n / (n - 1); matters below ten elements.
            ghost_batch_size: Examples that share statistics in training; see `batch_norm`.
            statistics: `auto`: the batch in training, running statistics at evaluation. `batch`: the batch in both.
                `running`: running statistics in both, as constants, still updated in training: mean and total variance,
                for which one example is enough; see `normlab.functional.merge_batch_norm`.
            frozen: Running statistics always, no update, no gradient into scale and bias.
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
            axis_index_groups=groups_of(axis_index_groups),
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            axis_name=axis_name,
            use_fast_variance=use_fast_variance,
            unbiased_running_var=unbiased_running_var,
            ghost_batch_size=ghost_batch_size,
            statistics=statistics,
            frozen=frozen,
        )
        self.frozen = frozen  # again, for the parameters, which are there now


class BatchNormOptions(NormOptions, total=False):
    """Options of batch norm, for the norms that are one with options of their own; see `BatchNorm`."""

    use_running_average: bool | None
    axis: Axes
    momentum: Momentum
    epsilon: float
    axis_name: AxisName | None
    axis_index_groups: Sequence[Sequence[int]] | None
    use_fast_variance: bool
    unbiased_running_var: bool
    ghost_batch_size: int | None
    statistics: Statistics
    frozen: bool


class BatchRenorm(BatchNorm):
    """Batch renorm; see `normlab.functional.batch_renorm`.

    The arguments of `BatchNorm`, and those of batch renorm. State, all arrays: `mean`, `std` (the average of standard
    deviations, as published) and `step`.
    """

    _kind = BatchRenormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        r_max: Schedule = 3.0,
        d_max: Schedule = 5.0,
        initialize_from_first_batch: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            r_max: Largest correction of the standard deviation, or a function of the step; see `normlab.norms.Ramp`.
            d_max: Largest correction of the mean in standard deviations, or a function of the step.
            initialize_from_first_batch: Whether the first batch's statistics replace the initial 0 and 1.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        self.r_max, self.d_max = r_max, d_max
        self.initialize_from_first_batch = initialize_from_first_batch
        super().__init__(num_features, rngs=rngs, **options)
