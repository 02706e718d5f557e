"""Representative batch norm: batch norm, centred and scaled anew by the mean of each example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab._core.closed_form import recomputed
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.joined import Parts, of_examples, of_union
from normlab._core.layer import Parameters, State
from normlab._core.reduction import (
    Axes,
    Moments,
    Reduction,
    all_but,
    check_more_than_one,
    expand_affine,
    expand_where,
    other_axes,
)
from normlab._core.roots import reciprocal_root
from normlab._core.standardize import scaled
from normlab.functional.batch_norm import REMEDY, BatchMoments, BatchNormLayer, run_batch


def representative_batch_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    center_weight: Array | None = None,
    scale_weight: Array | None = None,
    scale_bias: Array | None = None,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
    use_fast_variance: bool = False,
) -> tuple[Array, BatchMoments]:
    """Standardize each feature over the batch, centred and scaled by the example's own mean (Gao et al., 2021).

    `u = x + center_weight * pooled(x)`, `z = batch_norm(u)`,
    `y = z * sigmoid(scale_weight * pooled(z) + scale_bias) * scale + bias`

    Statistics: `pooled` over the positions of an example, per feature; those of batch norm over `axis` (and
    `axis_name`), of `u`; in float32 or wider. Without positions `pooled(x)` is `x`.

    Args:
        x: Activations, `[batch, ..., features]`.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        center_weight: Weight of the pooled input, of the same shape; `None` is 0.
        scale_weight: Weight of the pooled output in the gate, of the same shape; `None` is 0.
        scale_bias: Shift in the gate, of the same shape; `None` is 1.
        axis: Axes reduced, the first among them; `None` means all but the last.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share statistics; `None` means all.
        use_fast_variance: Whether to use E[x^2] - E[x]^2 within an example.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of `u`.

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis, `epsilon` or `ghost_batch_size` does not fit.

    Example:
        >>> y, _ = representative_batch_norm(jnp.array([[1.0], [3.0]]), scale_bias=jnp.array([0.0]), epsilon=0.0)
        >>> y.ravel()
        Array([-0.5,  0.5], dtype=float32)

    References:
        Gao, Han, Li, Peng, Cheng. Representative Batch Normalization with Feature Calibration. CVPR 2021.
    """
    layer = RepresentativeBatchNormLayer(
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
        ghost_batch_size=ghost_batch_size,
    )
    return run_batch(
        layer,
        x,
        where,
        axis,
        scale,
        bias,
        center_weight=center_weight,
        scale_weight=scale_weight,
        scale_bias=scale_bias,
    )


@dataclass(frozen=True)
class RepresentativeBatchNormLayer(BatchNormLayer):
    """Representative batch norm with its options, those of batch norm."""

    parameters: ClassVar[tuple[str, ...]] = ("center_weight", "scale_weight", "scale_bias")

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return weights of 0 and a bias of 1 in the gate."""
        return jnp.full(shape, 1 if name == "scale_bias" else 0, dtype)

    def expanded(
        self, parameters: Parameters, shape: tuple[int, ...], features: tuple[int, ...]
    ) -> Mapping[str, Array]:
        """Return parameters of the rank of `x`, all there but perhaps scale and bias."""
        kept = tuple(size if a in features else 1 for a, size in enumerate(shape))
        start = {name: self.parameter(name, kept, jnp.float32) for name in self.parameters}
        return start | expand_affine(parameters, shape, features)

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by the running statistics of `u`, and the mean of each example."""
        x, where = float32_or_wider(x), expand_where(where, x.ndim)
        affine = _as(x, self.expanded(parameters, x.shape, features))
        running = _as(x, expand_affine({name: state[name] for name in self.averages}, x.shape, features))
        x = without_hidden(x, where)
        pooled = self.examples(x, features, where).mean_minus(running["mean"])
        shift = affine["center_weight"] * (pooled + running["mean"])
        rstd = reciprocal_root(running["var"] + self.epsilon, self.epsilon)
        return _gated(((x - running["mean"]) + shift) * rstd, (pooled + shift) * rstd, affine)

    def standardized(
        self,
        x: Array,
        over: Reduction,
        affine: Mapping[str, Array],
        where: Array | None,
        state: State | None,
    ) -> tuple[Array, Moments]:
        """Normalize a batch, or a chunk of it."""
        check_more_than_one(x.shape, over, REMEDY)
        x, affine = without_hidden(x, where), _as(x, affine)
        examples = self.examples(x, other_axes(over.axis, x.ndim), where)
        batch = of_union(x, examples, (0,), where, over.devices)
        stretched = _stretched(batch, 1 + affine["center_weight"])
        rstd = reciprocal_root(stretched.var + self.epsilon, self.epsilon)
        rstd = jnp.where(batch.counts > 0, rstd, 0)
        return _calibrated(x, examples, batch, rstd, affine), stretched.moments()

    def moments(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> BatchMoments:
        """Return the moments of `u` of a batch, which may be one element."""
        over = all_but(features, x.ndim, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        x, where = float32_or_wider(x), expand_where(where, x.ndim)
        stretch = 1 + _as(x, self.expanded(parameters, x.shape, features))["center_weight"]
        batch = _stretched(of_union(x, self.examples(x, features, where), (0,), where, over.devices), stretch)
        return BatchMoments.of(batch.moments(), tuple(map(x.shape.__getitem__, features)))

    def centred(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> Array:
        """Return `u`, the array whose statistics are taken, in float32 or wider."""
        x, where = float32_or_wider(x), expand_where(where, x.ndim)
        weight = _as(x, self.expanded(parameters, x.shape, features))["center_weight"]
        x = without_hidden(x, where)
        pooled = self.examples(x, features, where).moments().mean
        return x + weight * pooled

    def examples(self, x: Array, features: tuple[int, ...], where: Array | None) -> Parts:
        """Return the moments of each feature of each example."""
        return of_examples(x, features, where, use_fast_variance=self.use_fast_variance)


def _as(x: Array, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Give arrays the dtype of `x`."""
    return {name: a.astype(x.dtype) for name, a in arrays.items()}


def _stretched(batch: Parts, by: Array) -> Parts:
    """Return the moments of `u`, whose examples have the spread of `x`, and means that are `by` times those of `x`."""
    return Parts(by * batch.near, by * batch.rest, batch.within, lax.square(by) * batch.between, batch.counts)


@recomputed
def _calibrated(x: Array, examples: Parts, batch: Parts, rstd: Array, affine: Mapping[str, Array]) -> Array:
    """Normalize by moments of examples and of the batch; whatever is as large as `x` is computed again in reverse."""
    apart = examples.mean_minus(batch.near) - batch.rest
    centred = ((x - batch.near) - batch.rest) + affine["center_weight"] * apart
    pooled = (1 + affine["center_weight"]) * apart
    return _gated(centred * rstd, pooled * rstd, affine)


def _gated(z: Array, pooled: Array, affine: Mapping[str, Array]) -> Array:
    """Scale by the gate, then by scale and bias."""
    y = z * jax.nn.sigmoid(affine["scale_weight"] * pooled + affine["scale_bias"])
    return scaled(y, affine.get("scale"), affine.get("bias"))
