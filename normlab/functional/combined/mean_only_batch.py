"""Mean-only batch norm: batch norm that does not divide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jax import Array

from normlab._core.checks import AxisName
from normlab._core.dtypes import float32_or_wider
from normlab._core.layer import Parameters, State
from normlab._core.reduction import Axes, Moments, Reduction, expand, expand_affine, moments, other_axes
from normlab._core.standardize import scaled
from normlab.functional.batch_norm import REMEDY, BatchLayer, BatchMoments, batch_moments, merged, moved, run_batch


def mean_only_batch_norm(
    x: Array,
    bias: Array | None = None,
    *,
    axis: Axes | None = None,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
) -> tuple[Array, BatchMoments]:
    """Subtract the mean of the batch from each feature (Salimans & Kingma, 2016).

    `y = x - mean + bias`

    Statistics: over `axis` (and `axis_name`), per feature, in float32 or wider. The gradient flows through the mean.

    There is no scale: the norm of the weights that weight norm learns, of which this is the partner, is one.

    Args:
        x: Activations, `[batch, ..., features]`.
        bias: Shift, of the shape of the axes not reduced; `None` is 0.
        axis: Axes reduced; `None` means all but the last.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share a mean; `None` means all.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch.

    Raises:
        StatisticsError: If a mean would be of one element.
        ValueError: If a shape, an axis or `ghost_batch_size` does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> mean_only_batch_norm(jnp.array([[1.0], [4.0]]))[0].ravel()
        Array([-1.5,  1.5], dtype=float32)

    References:
        Salimans, Kingma. Weight Normalization. NeurIPS 2016. https://arxiv.org/abs/1602.07868
    """
    layer = MeanOnlyBatchNormLayer(
        axis_name=axis_name, axis_index_groups=axis_index_groups, ghost_batch_size=ghost_batch_size
    )
    return run_batch(layer, x, where, axis, None, bias)


@dataclass(frozen=True)
class MeanOnlyBatchNormLayer(BatchLayer):
    """Mean-only batch norm with its options."""

    averages: ClassVar[tuple[str, ...]] = ("mean",)

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Subtract the running mean."""
        mean = expand("mean", state["mean"], x.shape, features)
        assert mean is not None
        return scaled(float32_or_wider(x) - mean, None, expand_affine(parameters, x.shape, features).get("bias"))

    def standardized(
        self,
        x: Array,
        over: Reduction,
        affine: Mapping[str, Array],
        where: Array | None,
        state: State | None,
    ) -> tuple[Array, Moments]:
        """Subtract the mean of a batch, or of a chunk of it."""
        m = moments(x, over, where, remedy=REMEDY)
        assert m.near is not None and m.rest is not None
        return scaled((x - m.near) - m.rest, None, affine.get("bias")), m

    def moments(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> BatchMoments:
        """Return the moments of a batch, which may be one element."""
        axis, groups = other_axes(features, x.ndim), self.axis_index_groups
        return batch_moments(x, axis=axis, where=where, axis_name=self.axis_name, axis_index_groups=groups)

    def update(self, state: State, batch: BatchMoments) -> State:
        """Move the running mean towards that of a batch."""
        return moved(state, {"mean": batch.mean}, self.momentum, batch.count)

    def merge(self, state: State, batch: BatchMoments) -> State:
        """Move the running mean towards that of a batch, which may be one element."""
        after = merged({**state, "var": batch.var}, batch.mean, batch.var, self.momentum, batch.count)
        return {name: after[name] for name in state}
