"""Switchable norm: instance, layer and batch norm, mixed by learned weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
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
    check_more_than_one,
    expand_affine,
    expand_where,
    other_axes,
)
from normlab._core.roots import reciprocal_root
from normlab._core.standardize import scaled
from normlab.functional.batch_norm import REMEDY, BatchMoments, BatchNormLayer, run_batch


def switchable_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    mean_weight: Array | None = None,
    var_weight: Array | None = None,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
    use_fast_variance: bool = False,
) -> tuple[Array, BatchMoments]:
    """Standardize by a learned mixture of the statistics of instance, layer and batch norm (Luo et al., 2019).

    `y = (x - sum(a * means)) / sqrt(sum(b * vars) + epsilon) * scale + bias`, `a = softmax(mean_weight)`,
    `b = softmax(var_weight)`

    Statistics: per feature of an example; over all features of an example; per feature over `axis` (and `axis_name`);
    in float32 or wider, the variances biased. Without positions there are the latter two, with unbiased variances, as
    in the authors' code.

    Args:
        x: Activations, `[batch, ..., features]`.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        mean_weight: Weights of the means of instance, layer and batch, `[3]`, or of layer and batch, `[2]`, without
            positions, where the first of three is not used; `None` is as much of each.
        var_weight: Weights of the variances, of the same kind.
        axis: Axes reduced in batch norm, the first among them; `None` means all but the last.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share the statistics of batch norm; `None` means all.
        use_fast_variance: Whether to use E[x^2] - E[x]^2 within an example.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch.

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis, `epsilon` or `ghost_batch_size` does not fit.

    Example:
        >>> x = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])
        >>> instance, batch = (jnp.array([100.0, 0.0, 0.0])[jnp.array(order)] for order in ([0, 1, 2], [1, 2, 0]))
        >>> switchable_norm(x, mean_weight=instance, var_weight=instance, epsilon=0.0)[0].ravel()
        Array([-1.,  1., -1.,  1.], dtype=float32)
        >>> switchable_norm(x, mean_weight=batch, var_weight=instance, epsilon=0.0)[0].ravel()
        Array([-3., -1.,  1.,  3.], dtype=float32)

    References:
        Luo, Ren, Peng, Zhang, Li. Differentiable Learning-to-Normalize via Switchable Normalization. ICLR 2019.
        https://arxiv.org/abs/1806.10779
    """
    layer = SwitchableNormLayer(
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
        ghost_batch_size=ghost_batch_size,
    )
    return run_batch(layer, x, where, axis, scale, bias, mean_weight=mean_weight, var_weight=var_weight)


@dataclass(frozen=True)
class SwitchableNormLayer(BatchNormLayer):
    """Switchable norm with its options, those of batch norm."""

    parameters: ClassVar[tuple[str, ...]] = ("mean_weight", "var_weight")

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return equal weights of instance, layer and batch."""
        return jnp.ones((3,), dtype)

    def parameter_of(self, ndim: int, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return equal weights of the statistics that inputs of a rank have."""
        return jnp.ones((3 if ndim > 1 + len(shape) else 2,), dtype)

    def expanded(
        self, parameters: Parameters, shape: tuple[int, ...], features: tuple[int, ...]
    ) -> Mapping[str, Array]:
        """Return scale and bias of the rank of `x`, and shares in place of weights."""
        affine = {name: parameters.get(name) for name in ("scale", "bias")}
        shares = {name: _shares(name, parameters.get(name), len(shape) > 1 + len(features)) for name in self.parameters}
        return expand_affine(affine, shape, features) | shares

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by running statistics of batches, and those of each example."""
        x, where = float32_or_wider(x), expand_where(where, x.ndim)
        affine = self.expanded(parameters, x.shape, features)
        running = expand_affine({name: state[name] for name in self.averages}, x.shape, features)
        mean, var = (running[name].astype(x.dtype) for name in self.averages)
        x = without_hidden(x, where)
        examples = of_examples(x, features, where, use_fast_variance=self.use_fast_variance)
        batch = Moments(mean, jnp.zeros_like(mean), var, 1.0)
        return self.mixed(x, examples, batch, features, affine, where)

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
        computed = partial(self._standardized, over)
        if len(over.axis) == 1 and over.devices is None:  # statistics of an example are as large as it is
            computed = recomputed(computed)
        return computed(without_hidden(x, where), affine, where)

    def _standardized(
        self, over: Reduction, x: Array, affine: Mapping[str, Array], where: Array | None
    ) -> tuple[Array, Moments]:
        features = other_axes(over.axis, x.ndim)
        examples = of_examples(x, features, where, use_fast_variance=self.use_fast_variance)
        batch = of_union(x, examples, (0,), where, over.devices)
        var = batch.var if len(over.axis) > 1 else batch.unbiased_var
        y = self.mixed(x, examples, Moments(batch.near, batch.rest, var, batch.counts), features, affine, where)
        kept = batch.var if self.unbiased_running_var else var  # `update` makes the former unbiased
        return y, Moments(batch.near, batch.rest, kept, batch.counts)

    def mixed(
        self,
        x: Array,
        examples: Parts,
        batch: Moments,
        features: tuple[int, ...],
        affine: Mapping[str, Array],
        where: Array | None,
    ) -> Array:
        """Normalize by the moments of examples, of those joined over features, and of the batch."""
        positions = tuple(a for a in range(1, x.ndim) if a not in features)
        _check_examples(x.shape, positions, features)
        layer, near = of_union(x, examples, features, where), batch.near
        assert near is not None and batch.rest is not None
        means = [each.mean_minus(near) - batch.rest for each in (examples, layer, batch)]  # shares add up to 1
        spreads = [examples.var, layer.var if positions else layer.unbiased_var, batch.var]
        means, spreads = (each if positions else each[1:] for each in (means, spreads))
        shares = (affine[name].astype(x.dtype) for name in self.parameters)
        shift, var = (
            sum((share[k] * statistic for k, statistic in enumerate(statistics)), jnp.zeros((), x.dtype))
            for share, statistics in zip(shares, (means, spreads), strict=True)
        )
        rstd = reciprocal_root(var + self.epsilon, self.epsilon)
        return _standardized(x, near, batch.rest, shift, rstd, affine.get("scale"), affine.get("bias"))


@recomputed
def _standardized(
    x: Array, near: Array, rest: Array, shift: Array, rstd: Array, scale: Array | None, bias: Array | None
) -> Array:
    """Subtract and multiply; whatever is as large as `x` is computed again in reverse."""
    return scaled((((x - near) - rest) - shift) * rstd, scale, bias)


def _shares(name: str, weight: Array | None, positions: bool) -> Array:
    """Return shares that add up to 1, of instance, layer and batch, or of the latter two."""
    known = 3 if positions else 2
    if weight is None:
        weight = jnp.ones((known,), jnp.float32)
    if weight.ndim != 1 or not known <= weight.shape[0] <= 3:
        kinds = "instance, layer and batch" if positions else "layer and batch"
        raise ValueError(f"Expected `{name}` to be {known} numbers, those of {kinds}, got shape {weight.shape}.")
    return jax.nn.softmax(float32_or_wider(weight)[-known:])


def _check_examples(shape: Sequence[int], positions: tuple[int, ...], features: tuple[int, ...]) -> None:
    """Raise a `StatisticsError` where a feature of an example, or an example, is one element."""
    if positions and math.prod(shape[a] for a in positions) == 1:
        check_more_than_one(shape, Reduction(positions), "Leave out the axes between batch and features")
    if not positions:
        check_more_than_one(shape, Reduction(features), "Use batch norm")
