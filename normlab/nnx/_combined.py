"""Combined norms for NNX, and norms of several domains."""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from normlab._core.checks import AxisName, choose_mode
from normlab._core.reduction import Axes
from normlab.functional.batch_norm import Momentum, Statistics
from normlab.functional.combined.batch_channel import BatchChannelNormLayer, ChannelAffine
from normlab.functional.combined.domain_batch import DomainBatchNormLayer
from normlab.functional.combined.mean_only_batch import MeanOnlyBatchNormLayer
from normlab.functional.combined.representative import RepresentativeBatchNormLayer
from normlab.functional.combined.switchable import SwitchableNormLayer
from normlab.nnx._batch import BatchNorm, BatchNormOptions, OverBatch
from normlab.nnx._norm import NO_METADATA, Initializer, Metadata, groups_of, normalize, zeros


class MeanOnlyBatchNorm(OverBatch):
    """Mean-only batch norm; see `normlab.functional.mean_only_batch_norm`.

    Attributes:
        mean: Running mean, an `nnx.BatchStat`, float32.
        step: Updates so far, where `momentum` is a function or `None`.
    """

    _kind = MeanOnlyBatchNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: Momentum = 0.99,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        bias_init: Initializer = zeros,
        axis_name: AxisName | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        ghost_batch_size: int | None = None,
        statistics: Statistics = "auto",
        frozen: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes; the others are reduced.
            momentum: Weight of the OLD running mean; a function of the step; or `None` for the plain average of all.
            dtype: Dtype of the output; `None` promotes input and parameters.
            param_dtype: Dtype of the bias.
            use_bias: Whether to add a learned bias.
            bias_init: Initializer of the bias.
            axis_name: Mapped axes (devices) whose examples belong to the same batch.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            ghost_batch_size: Examples that share a mean in training.
            statistics: `auto`, `batch` or `running`; see `BatchNorm`.
            frozen: The running mean always, no update, no gradient into the bias.
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
        """
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=False,
            use_bias=use_bias,
            bias_init=bias_init,
            bias_metadata=bias_metadata,
            rngs=rngs,
            axis_index_groups=groups_of(axis_index_groups),
            axis=axis,
            momentum=momentum,
            axis_name=axis_name,
            ghost_batch_size=ghost_batch_size,
            statistics=statistics,
            frozen=frozen,
        )
        self.frozen = frozen  # again, for the parameters, which are there now


class BatchChannelNorm(BatchNorm):
    """Batch-channel norm; see `normlab.functional.batch_channel_norm`.

    The arguments of `BatchNorm`, and those of the group norm after it, with the same `epsilon`. Parameters are `scale`
    and `bias` between the two norms, and `channel_scale` and `channel_bias` after both. Features are on the last axis:
    `axis` has to name it, and `axis=1` is refused.
    """

    _kind = BatchChannelNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_groups: int | None = 32,
        group_size: int | None = None,
        channel_affine: ChannelAffine = "group",
        rngs: nnx.Rngs,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis.
            num_groups: Number of groups; leave it out beside `group_size`.
            group_size: Features per group.
            channel_affine: Whether the latter two are for each `group` or each `feature`; `None` is none.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        self.num_groups, self.group_size, self.channel_affine = num_groups, group_size, channel_affine
        super().__init__(num_features, rngs=rngs, **options)


class RepresentativeBatchNorm(BatchNorm):
    """Representative batch norm; see `normlab.functional.representative_batch_norm`.

    The arguments of `BatchNorm`. Parameters are `scale`, `bias`, and `center_weight`, `scale_weight` and `scale_bias`,
    which start at 0, 0 and 1.
    """

    _kind = RepresentativeBatchNormLayer


class SwitchableNorm(BatchNorm):
    """Switchable norm; see `normlab.functional.switchable_norm`.

    The arguments of `BatchNorm`. Parameters are `scale`, `bias`, and `mean_weight` and `var_weight`, `[3]`, which start
    at 1: of instance, layer and batch. Without positions the first of three is not used; Linen, which has seen the
    rank of its input, then has `[2]`.
    """

    _kind = SwitchableNormLayer


class DomainBatchNorm(BatchNorm):
    """Domain batch norm; see `normlab.functional.domain_batch_norm`.

    The arguments of `BatchNorm`, and those of domains; no `ghost_batch_size`. Parameters and state are those of
    `BatchNorm` with a first axis of domains.
    """

    _kind = DomainBatchNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_domains: int | None = None,
        share_affine: bool = False,
        splits: int | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            num_domains: Number of domains; `None` is `splits`, or a single domain without it.
            share_affine: Whether all domains have the same scale and bias.
            splits: Number of domains where a call may leave `domain` out: consecutive parts of the batch are then of
                one domain each in training, and all is of domain 0 at evaluation. With `None` a call has to say of
                which of several domains each example is.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        self.num_domains, self.share_affine, self.splits = num_domains, share_affine, splits
        super().__init__(num_features, rngs=rngs, **options)

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        domain: ArrayLike | None = None,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize `x` and, in training, update the state.

        Args:
            x: Activations, `[batch, ..., features]`.
            use_running_average: Overrides the attribute in this call.
            domain: Number of each example's domain, `[batch]`, or of all; `None` is as `splits` says.
            mask: True where an element counts, broadcastable to `x`.
            scale: Gain of this call, after the module's own: `[batch, features]`, or broadcastable to `x`.
            bias: Shift of this call, of the same kind.
        """
        attribute = self.use_running_average if use_running_average is None else None
        train = not choose_mode(attribute, use_running_average)
        given = domain if domain is None else jnp.asarray(domain)
        return normalize(self, x, mask, train, scale, bias, domain=given)
