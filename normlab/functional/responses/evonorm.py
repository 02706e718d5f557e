"""EvoNorm: norms found by search together with their activation, over a batch (B0 to B2) and an example (S0 to S2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from normlab._core.checks import AxisName, check_flags, check_real, check_where
from normlab._core.closed_form import Operands, again, closed_form
from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, State, run
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import (
    Axes,
    Groups,
    Moments,
    Reduction,
    canonical_axes,
    check_more_than_one,
    expand,
    expand_affine,
    expand_where,
    moments,
    moments_of_union,
    reduction,
)
from normlab._core.roots import reciprocal_root
from normlab._core.standardize import in_taylor_mode, scaled, variance
from normlab.errors import StatisticsError
from normlab.functional.batch_norm import REMEDY, BatchMoments, BatchNormLayer, moved
from normlab.functional.group_norm import GroupNormLayer, one_feature_axis

OfBatch = Literal["b0", "b1", "b2"]
"""Variants with statistics of the batch."""

OfExample = Literal["s0", "s1", "s2"]
"""Variants with statistics of one example."""

_POSITIONS = "Use `evonorm_s0`, or `nonlinear=False`, which takes no statistics"


def evonorm_batch(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    variant: OfBatch = "b0",
    v: Array | None = None,
    var: Array | None = None,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    ghost_batch_size: int | None = None,
) -> tuple[Array, BatchMoments | None]:
    """Divide by the larger of a deviation of the batch and one of the example (Liu et al., 2020): norm and activation.

    `y = x / max(sqrt(var + epsilon), d) * scale + bias` with `d` of

    - `b0`: `v * x + sqrt(var_p + epsilon)`
    - `b1`: `(x + 1) * sqrt(mean_p(x^2) + epsilon)`
    - `b2`: `sqrt(mean_p(x^2) + epsilon) - x`

    Statistics: `var` per feature over batch and positions (and `axis_name`), `var_p` and `mean_p` per feature and
    example over positions, all in float32 or wider and from one pair of passes over `x`. No mean is subtracted.

    Args:
        x: Activations, `[batch, *positions, features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        variant: Which of the three.
        v: Weight of `x` in `b0`, of the same shape; `None` is 1.
        var: Running variance, of the same shape: evaluates. `None` takes the variance of the batch.
        axis: Feature axis or axes, not the first.
        epsilon: Added to variances and mean squares, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share `var`, as in `batch_norm`; `None` means all.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch, `None` where
        `var` is given.

    Raises:
        StatisticsError: If there are no positions, or a single one.
        ValueError: If a shape, an axis, `epsilon` or `variant` does not fit.

    Example:
        >>> y, moments = evonorm_batch(jnp.array([[[2.0], [-2.0]]]), epsilon=0.0)
        >>> y.ravel(), moments.var
        (Array([ 0.5, -1. ], dtype=float32), Array([4.], dtype=float32))

    References:
        Liu, Brock, Simonyan, Le. Evolving Normalization-Activation Layers. NeurIPS 2020.
        https://arxiv.org/abs/2004.02967
    """
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    layer = EvoNormBatchLayer(
        axis=axis,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        ghost_batch_size=ghost_batch_size,
        variant=variant,
    )
    features = canonical_axes(axis, x.ndim)
    own, by = separated(scale, bias, x.shape, features)
    if v is not None:
        own["v"] = v
    if var is not None:
        y, batch = layer.by_given(x, var, own, features, where), None
    else:
        y, batch = layer.by_batch(x, own, features, where)
    return modulated(y, by, features, where).astype(output_dtype(x)), batch


def evonorm_sample(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    variant: OfExample = "s0",
    v: Array | None = None,
    num_groups: int | None = None,
    group_size: int | None = None,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
    feature_axes: Axes = -1,
) -> Array:
    """Divide a swish by the deviation of a group of features (Liu et al., 2020): norm and activation.

    - `s0`: `y = x * sigmoid(v * x) / sqrt(var + epsilon) * scale + bias`
    - `s1`: `y = x * sigmoid(x) / sqrt(var + epsilon) * scale + bias`
    - `s2`: `y = x * sigmoid(x) / sqrt(mean(x^2) + epsilon) * scale + bias`

    Statistics: over the features of a group and `axis`, per example, in float32 or wider. No mean is subtracted.

    Args:
        x: Activations, `[batch, ..., features]`; or with the features on the axis that `feature_axes` names.
        scale: Gain, `[features]`; `None` is 1.
        bias: Shift, `[features]`; `None` is 0.
        variant: Which of the three.
        v: Slope of the sigmoid in `s0`, `[features]`; `None` is 1.
        num_groups: Number of groups of neighbouring features; give this or `group_size`.
        group_size: Features per group.
        axis: Axes reduced beside the features of a group; `None` means all but the first.
        epsilon: Added to the variance or the mean square, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the reduced axes are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        feature_axes: The axis with the features, a single one and not the first; 1 where channels come first.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If the features cannot be split so, or a shape, an axis, `epsilon` or `variant` does not fit.

    Example:
        >>> y = evonorm_sample(jnp.array([[2.0, -2.0]]), num_groups=1, epsilon=0.0)
        >>> [f"{value:.3f}" for value in y.ravel()]
        ['0.881', '-0.119']

    References:
        Liu, Brock, Simonyan, Le. Evolving Normalization-Activation Layers. NeurIPS 2020.
        https://arxiv.org/abs/2004.02967
    """
    layer = EvoNormSampleLayer(
        epsilon,
        axis_name,
        axis_index_groups,
        num_groups=num_groups,
        group_size=group_size,
        reduction_axes=axis,
        feature_axes=feature_axes,
        variant=variant,
    )
    return run(layer, x, where, scale, bias, v=v)


@dataclass(frozen=True)
class EvoNormBatchLayer(BatchNormLayer):
    """EvoNorm over a batch with its options, those of batch norm first.

    Attributes:
        variant: Which of the three.
        nonlinear: Whether there is a division; else scale and bias are all there is, and no state.
    """

    variant: OfBatch = "b0"
    nonlinear: bool = True

    parameters: ClassVar[tuple[str, ...]] = ("v",)
    switches: ClassVar[dict[str, str]] = {"v": "weighs"}
    averages: ClassVar[tuple[str, ...]] = ("var",)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        _check(self, self.variant, OfBatch)

    @property
    def weighs(self) -> bool:
        """True if there is a parameter `v`."""
        return self.nonlinear and self.variant == "b0"

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `v`, which starts at 1."""
        return jnp.ones(shape, dtype)

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return the running variance, and `step` as batch norm does."""
        return super().names(train) if self.nonlinear else ((), ())

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return a variance of 1."""
        return super().state(shape) if self.nonlinear else {}

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
        """Normalize by the batch or by the running variance; see `Layer`."""
        if not self.nonlinear:
            parameters = jax.tree.map(lax.stop_gradient, dict(parameters)) if self.frozen else parameters
            x = without_hidden(float32_or_wider(x), mask)
            affine = expand_affine(parameters, x.shape, features)
            return scaled(x, affine.get("scale"), affine.get("bias")), state
        return super().apply(x, parameters, state, gradient_state, features=features, train=train, mask=mask)

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by the running variance, a constant."""
        return self.by_given(x, lax.stop_gradient(state["var"]), parameters, features, where)

    def by_given(
        self, x: Array, var: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by a variance that does not depend on the batch; the output is in float32 or wider."""
        where = expand_where(where, x.ndim)
        x = without_hidden(float32_or_wider(x), where)
        affine, of_batch = expand_affine(parameters, x.shape, features), expand("var", var, x.shape, features)
        assert of_batch is not None
        over = self._over_positions(x, features)
        m = moments(x, over, where, use_fast_variance=self.use_fast_variance)
        return self._divided(x, over, m, of_batch.astype(x.dtype), affine, where)

    def standardized(
        self,
        x: Array,
        over: Reduction,
        affine: Mapping[str, Array],
        where: Array | None,
        state: State | None,
    ) -> tuple[Array, Moments]:
        """Normalize a batch, or a chunk of it, by its own variance."""
        check_more_than_one(x.shape, over, REMEDY)
        x = without_hidden(x, where)
        positions = self._over_positions(x, tuple(a for a in range(x.ndim) if a not in over.axis))
        m = moments(x, positions, where, use_fast_variance=self.use_fast_variance)
        batch = moments_of_union(m, x.shape[0], over.devices)
        return self._divided(x, positions, m, variance(over, x, batch, where), affine, where), batch

    def update(self, state: State, batch: BatchMoments) -> State:
        """Move the running variance towards that of a batch."""
        var = batch.unbiased_var if self.unbiased_running_var else batch.var
        return moved(state, {"var": var}, self.momentum, batch.count)

    def merge(self, state: State, batch: BatchMoments) -> State:
        """Move the running variance towards that of a batch: there is no mean whose spread would count."""
        return self.update(state, batch)

    def _over_positions(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Describe statistics per feature and example."""
        if 0 in features:
            raise ValueError(f"Expected `axis` without the first axis, the batch, got {self.axis}.")
        over = reduction(tuple(a for a in range(1, x.ndim) if a not in features), affine=features)
        if not over.axis:
            raise StatisticsError(
                "Expected `x` with positions between batch and features, such as [batch, height, width, features], "
                f"got {x.shape}. {_POSITIONS}."
            )
        check_more_than_one(x.shape, over, _POSITIONS)
        return over

    def _divided(
        self,
        x: Array,
        over: Reduction,
        m: Moments,
        of_batch: Array,
        affine: Mapping[str, Array],
        where: Array | None,
    ) -> Array:
        """Divide, scale and shift, with the moments of each example and a variance of the batch."""
        near = rest = None
        v = affine["v"].astype(x.dtype) if "v" in affine else None
        if self.variant == "b0":
            size = self._root(variance(over, x, m, where))
        else:
            square = Moments(None, None, m.var + lax.square(m.mean), m.count)
            size = self._root(variance(over._replace(center=False), x, square, where))
        if self.variant == "b2":
            near, rest, size = m.near, m.rest, self._size_minus_mean(x, size, over, m, where)
        scale, bias = (a if a is None else a.astype(x.dtype) for a in map(affine.get, ("scale", "bias")))
        by = _quotient if any(map(in_taylor_mode, (x, v, scale))) else _divided
        y = by(self.variant, x, near, rest, size, self._root(of_batch), v, scale)
        return y if bias is None else y + bias

    def _size_minus_mean(self, x: Array, size: Array, over: Reduction, m: Moments, where: Array | None) -> Array:
        """Return `size - mean`, to the digits of the difference: `size^2` is the variance plus `mean^2` and epsilon."""
        above = (variance(over, x, m, where) + self.epsilon) / (size + jnp.maximum(m.mean, 0))
        return jnp.where(m.mean > 0, above, size - m.mean)

    def _root(self, square: Array) -> Array:
        """Return a deviation, NaN where squares have left the range of their dtype."""
        return 1 / reciprocal_root(square + self.epsilon, self.epsilon)


@dataclass(frozen=True)
class EvoNormSampleLayer(GroupNormLayer):
    """EvoNorm over one example with its options, those of group norm first.

    Attributes:
        variant: Which of the three.
        nonlinear: Whether there are a division and a swish; else scale and bias are all there is.
    """

    epsilon: float = 1e-5
    variant: OfExample = "s0"
    nonlinear: bool = True

    parameters: ClassVar[tuple[str, ...]] = ("v",)
    switches: ClassVar[dict[str, str]] = {"v": "slopes"}

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        _check(self, self.variant, OfExample)

    @property
    def slopes(self) -> bool:
        """True if there is a parameter `v`."""
        return self.nonlinear and self.variant == "s0"

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `v`, which starts at 1."""
        return jnp.ones(shape, dtype)

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
        """Normalize each group; see `Layer`."""
        if not self.nonlinear:
            features = one_feature_axis(features, x.ndim)
            x = without_hidden(float32_or_wider(x), mask)
            affine = expand_affine(parameters, x.shape, features)
            return scaled(x, affine.get("scale"), affine.get("bias")), state
        return super().apply(x, parameters, state, gradient_state, features=features, train=train, mask=mask)

    def normalized(
        self, x: Array, over: Reduction, parameters: Parameters, features: tuple[int, ...], mask: Array | None
    ) -> Array:
        """Divide the swish of `x`, then scale and shift; the output is in float32 or wider."""
        affine, where = expand_affine(parameters, x.shape, features), expand_where(mask, x.ndim)
        x = without_hidden(float32_or_wider(x), where)
        if self.variant == "s2":
            over = over._replace(center=False)
        m = moments(x, over, where, use_fast_variance=self.use_fast_variance)
        factor = reciprocal_root(variance(over, x, m, where) + self.epsilon, self.epsilon)
        v = affine["v"].astype(x.dtype) if "v" in affine else None
        by = _swish if in_taylor_mode(x) else _scaled_swish
        factor = factor * affine["scale"].astype(x.dtype) if "scale" in affine else factor
        y = by(None, x, v, factor)
        return y + affine["bias"].astype(x.dtype) if "bias" in affine else y


def _check(layer: "EvoNormBatchLayer | EvoNormSampleLayer", variant: str, known: object) -> None:
    check_flags(layer, "nonlinear")
    if variant not in get_args(known):
        raise ValueError(f"Expected `variant` to be one of {get_args(known)}, got {variant!r}.")


def _quotient(
    variant: OfBatch,
    x: Array,
    near: Array | None,
    rest: Array | None,
    size: Array,
    of_batch: Array,
    v: Array | None,
    scale: Array | None,
) -> Array:
    """Return `x` over the larger of two deviations: `of_batch`, and one of the example.

    The latter is `v x + size`, `(x + 1) size` or, about the mean `near + rest`, `size - (x - mean)`.
    """
    y = x / jnp.maximum(of_batch, _of_example(variant, x, near, rest, size, v))
    return y if scale is None else y * scale


def _of_example(
    variant: OfBatch, x: Array, near: Array | None, rest: Array | None, size: Array, v: Array | None
) -> Array:
    if variant == "b0":
        return (x if v is None else x * v) + size
    if variant == "b1":
        return (x + 1) * size
    assert near is not None
    return size - (x - near if rest is None else (x - near) - rest)


def _quotient_tangent(variant: OfBatch, primals: Operands, tangents: Operands) -> Array:
    """Return `(dx - x dmax / max) / max`, with the tangent of the larger deviation; each term is computed by itself."""
    (x, near, rest, size, of_batch, v, scale), (dx, _, drest, dsize, dof_batch, dv, dscale) = primals, tangents
    assert x is not None and size is not None and of_batch is not None
    assert dx is not None and dsize is not None and dof_batch is not None

    def terms(x: Array) -> tuple[Array, Array, Array]:
        """Return the factor of `dx`, that of the tangent of the other deviation, and that of `dof_batch`."""
        other = _of_example(variant, x, near, rest, size, v)
        by = 1 / jnp.maximum(of_batch, other)
        scaled_by = by if scale is None else by * scale
        fall = -x * by * scaled_by
        return scaled_by, jnp.where(other > of_batch, fall, 0), jnp.where(other > of_batch, 0, fall)

    apart = [x]
    for _ in range(4):
        apart.append(again(apart[-1]))
    direct, of_other, _ = terms(x)
    if variant == "b0":
        dy = dx * (direct + (of_other if v is None else of_other * v)) + terms(apart[1])[1] * dsize
        dy = dy if dv is None else dy + apart[4] * terms(apart[4])[1] * dv
    elif variant == "b1":
        dy = dx * (direct + of_other * size) + (apart[1] + 1) * terms(apart[1])[1] * dsize
    else:
        dy = dx * (direct - of_other) + terms(apart[1])[1] * (dsize if drest is None else dsize + drest)
    dy = dy + terms(apart[2])[2] * dof_batch
    if dscale is None:
        return dy
    other = _of_example(variant, apart[3], near, rest, size, v)
    return dy + apart[3] * jnp.where(other > of_batch, 1 / other, 1 / of_batch) * dscale


_divided = closed_form(_quotient, _quotient_tangent)


def _swish(_: None, x: Array, v: Array | None, factor: Array) -> Array:
    return x * jax.nn.sigmoid(x if v is None else v * x) * factor


def _swish_tangent(_: None, primals: Operands, tangents: Operands) -> Array:
    """Return the tangent, by the derivative `s (1 + v x (1 - s))` of the swish with the sigmoid `s`."""
    (x, v, factor), (dx, dv, dfactor) = primals, tangents
    assert x is not None and factor is not None and dx is not None and dfactor is not None
    slope = x if v is None else v * x
    share, once = jax.nn.sigmoid(slope), again(x)
    dy = dx * (share * (1 + slope * (1 - share)) * factor) + _swish(None, once, v, jnp.ones_like(factor)) * dfactor
    if dv is None or v is None:
        return dy
    x = again(once)
    share = jax.nn.sigmoid(v * x)
    return dy + lax.square(x) * (share * (1 - share)) * factor * dv


_scaled_swish = closed_form(_swish, _swish_tangent)
