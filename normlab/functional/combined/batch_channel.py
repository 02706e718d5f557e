"""Batch-channel norm: batch norm, then group norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from normlab._core.checks import AxisName, check_features, check_real, check_where, choose_groups, resolve_groups
from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.layer import Parameters, State, run
from normlab._core.reduction import Reduction
from normlab.functional.batch_norm import BatchMoments, BatchNormLayer, batch_norm
from normlab.functional.group_norm import GroupNormLayer

ChannelAffine = Literal["group", "feature"] | None
"""Extent of the second scale and bias: one for each group, or for each feature; `None` leaves them out."""


def batch_channel_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    channel_scale: Array | None = None,
    channel_bias: Array | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
    use_fast_variance: bool = False,
) -> tuple[Array, BatchMoments]:
    """Standardize each feature over the batch, then each example over groups of features (Qiao et al., 2019).

    `y = group_norm(batch_norm(x) * scale + bias) * channel_scale + channel_bias`

    Statistics: over batch and positions (and `axis_name`), per feature; then over the features of a group and
    positions, per example; in float32 or wider. Continual norm has the opposite order.

    Args:
        x: Activations, `[batch, ..., features]`. The features are on the last axis; there is no `axis`.
        scale: Gain between the two, `[features]`; `None` is 1.
        bias: Shift between the two, `[features]`; `None` is 0.
        channel_scale: Gain after both, `[num_groups]` or `[features]`; `None` is 1.
        channel_bias: Shift after both, of the same kind; `None` is 0.
        num_groups: Number of groups; give this or `group_size`.
        group_size: Features per group.
        epsilon: Added to both variances, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share the statistics of the first norm; `None` means all.
        use_fast_variance: Whether to use E[x^2] - E[x]^2 in the first norm.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch.

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If the features cannot be split so, or a shape, `epsilon` or `ghost_batch_size` does not fit.

    Example:
        >>> y, _ = batch_channel_norm(jnp.array([[1.0, 9.0], [3.0, 5.0]]), num_groups=1, epsilon=0.0)
        >>> y
        Array([[-1.,  1.],
               [ 1., -1.]], dtype=float32)

    References:
        Qiao, Wang, Liu, Shen, Yuille. Rethinking Normalization and Elimination Singularity in Neural Networks. 2019.
        https://arxiv.org/abs/1911.09738
    """
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    layer = BatchChannelNormLayer(epsilon=epsilon, num_groups=num_groups, group_size=group_size)
    y, batch = batch_norm(
        float32_or_wider(x),
        scale,
        bias,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        ghost_batch_size=ghost_batch_size,
        use_fast_variance=use_fast_variance,
    )
    channel = {"channel_scale": channel_scale, "channel_bias": channel_bias}
    return layer.by_channel(y, channel, where).astype(output_dtype(x)), batch


@dataclass(frozen=True)
class BatchChannelNormLayer(BatchNormLayer):
    """Batch-channel norm with its options: those of batch norm, and of the group norm after it.

    Groups are of neighbouring features on the last axis: another `axis`, such as 1, is refused.

    Attributes:
        num_groups: Number of groups; leave it out beside `group_size`.
        group_size: Features per group.
        channel_affine: Whether `channel_scale` and `channel_bias` are for each group or each feature; `None` is none.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    channel_affine: ChannelAffine = "group"

    parameters: ClassVar[tuple[str, ...]] = ("channel_scale", "channel_bias")
    switches: ClassVar[dict[str, str]] = dict.fromkeys(parameters, "channel_affine")

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.channel_affine not in ("group", "feature", None):
            raise ValueError(
                f"Expected `channel_affine` to be 'group', 'feature' or None, got {self.channel_affine!r}."
            )

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return scales of 1 and biases of 0, for each group or each feature."""
        size = shape[-1] if self.channel_affine == "feature" else self.groups(shape[-1])
        return jnp.full((size,), 1 if name == "channel_scale" else 0, dtype)

    def groups(self, features: int) -> int:
        """Return the number of groups of so many features."""
        return resolve_groups(features, *choose_groups(self.num_groups, self.group_size))

    def apply(
        self,
        x: Array,
        parameters: Parameters,
        state: State,
        gradient_state: State,
        *,
        features: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Normalize as batch norm, then groups; see `Layer`."""
        if features != (x.ndim - 1,):
            raise ValueError(
                f"Expected `axis` to be the last, along which features are grouped, got {self.axis}. Move the features "
                "to the end."
            )
        channel = {name: a for name, a in parameters.items() if name in self.parameters}
        if self.frozen:
            channel = jax.tree.map(lax.stop_gradient, channel)
        own = {name: a for name, a in parameters.items() if name not in self.parameters}
        y, state = super().apply(
            float32_or_wider(x), own, state, gradient_state, features=features, train=train, mask=mask
        )
        return self.by_channel(y, channel, mask), state

    def by_channel(self, y: Array, channel: Parameters, where: Array | None) -> Array:
        """Normalize groups of features of each example."""
        groups = self.groups(y.shape[-1])
        scale, bias = (_spread(name, channel.get(name), groups, y.shape[-1]) for name in self.parameters)
        return run(_AfterBatch(self.epsilon, num_groups=groups), y, where, scale, bias)


class _AfterBatch(GroupNormLayer):
    """Group norm of what a batch norm computes."""

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Describe statistics of an array that is computed."""
        return super().over(x, features)._replace(computed=True)


def _spread(name: str, array: Array | None, groups: int, features: int) -> Array | None:
    """Repeat what is given for each group for each feature."""
    if array is None or array.shape == (features,):
        return array
    check_features(name, array, (groups,))
    return jnp.broadcast_to(array[:, None], (groups, features // groups)).reshape(features)
