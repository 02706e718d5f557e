"""Combined norms for Linen, and norms of several domains."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from normlab._core.checks import AxisName, choose_mode
from normlab._core.reduction import Axes
from normlab.functional.batch_norm import Momentum, Statistics
from normlab.functional.combined.batch_channel import BatchChannelNormLayer, ChannelAffine
from normlab.functional.combined.domain_batch import DomainBatchNormLayer
from normlab.functional.combined.mean_only_batch import MeanOnlyBatchNormLayer
from normlab.functional.combined.representative import RepresentativeBatchNormLayer
from normlab.functional.combined.switchable import SwitchableNormLayer
from normlab.linen._batch import BatchNorm
from normlab.linen._norm import Initializer, Stateful, normalize


class MeanOnlyBatchNorm(Stateful):
    """Mean-only batch norm; see `normlab.functional.mean_only_batch_norm`.

    `batch_stats` holds `mean`. There is no scale; the layer before has one, by weight norm.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes; the others are reduced.
        momentum: Weight of the OLD running mean; a function of the step; or `None` for the plain average of all.
        dtype: Dtype of the output; `None` promotes input and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of the bias.
        use_bias: Whether to add a learned bias.
        bias_init: Initializer of the bias.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        ghost_batch_size: Examples that share a mean in training.
        statistics: `auto`, `batch` or `running`; see `BatchNorm`.
        frozen: The running mean always, no update, no gradient into the bias.
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: Momentum = 0.99
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    bias_init: Initializer = nn.initializers.zeros
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    ghost_batch_size: int | None = None
    statistics: Statistics = "auto"
    frozen: bool = False

    _kind = MeanOnlyBatchNormLayer


class BatchChannelNorm(BatchNorm):
    """Batch-channel norm; see `normlab.functional.batch_channel_norm`.

    The fields of `BatchNorm`, then those of the group norm after it, with the same `epsilon`. Parameters are `scale`
    and `bias` between the two norms, and `channel_scale` and `channel_bias` after both. Features are on the last axis:
    `axis` has to name it, and `axis=1` is refused.

    Attributes:
        num_groups: Number of groups; leave it out beside `group_size`.
        group_size: Features per group.
        channel_affine: Whether the latter two are for each `group` or each `feature`; `None` is none.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    channel_affine: ChannelAffine = "group"

    _kind = BatchChannelNormLayer


class RepresentativeBatchNorm(BatchNorm):
    """Representative batch norm; see `normlab.functional.representative_batch_norm`.

    The fields of `BatchNorm`. Parameters are `scale`, `bias`, and `center_weight`, `scale_weight` and `scale_bias`,
    which start at 0, 0 and 1.
    """

    _kind = RepresentativeBatchNormLayer


class SwitchableNorm(BatchNorm):
    """Switchable norm; see `normlab.functional.switchable_norm`.

    The fields of `BatchNorm`. Parameters are `scale`, `bias`, and `mean_weight` and `var_weight`, which start at 1: of
    instance, layer and batch, `[3]`, or of the latter two, `[2]`, where the first input has no positions. NNX, which
    sees no input before the first call, has `[3]` in both cases; the outputs are the same.
    """

    _kind = SwitchableNormLayer


class DomainBatchNorm(BatchNorm):
    """Domain batch norm; see `normlab.functional.domain_batch_norm`.

    The fields of `BatchNorm`, then those of domains; no `ghost_batch_size`. Parameters and state are those of
    `BatchNorm` with a first axis of domains.

    Attributes:
        num_domains: Number of domains; `None` is `splits`, or a single domain without it.
        share_affine: Whether all domains have the same scale and bias.
        splits: Number of domains where a call may leave `domain` out: consecutive parts of the batch are then of one
            domain each in training, and all is of domain 0 at evaluation. With `None` a call has to say of which of
            several domains each example is.
    """

    num_domains: int | None = None
    share_affine: bool = False
    splits: int | None = None

    _kind = DomainBatchNormLayer

    @nn.compact
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
        """Normalize `x`.

        Args:
            x: Activations, `[batch, ..., features]`.
            use_running_average: Mode of this call; give it here or to the module, not both.
            domain: Number of each example's domain, `[batch]`, or of all; `None` is as `splits` says.
            mask: True where an element counts, broadcastable to `x`.
            scale: Gain of this call, after the module's own: `[batch, features]`, or broadcastable to `x`.
            bias: Shift of this call, of the same kind.
        """
        train = not choose_mode(self.use_running_average, use_running_average)
        given = domain if domain is None else jnp.asarray(domain)
        return normalize(self, x, mask, train, scale, bias, domain=given)
