"""Batch whitening: mean 0, variance 1 and no correlation within groups of features."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import AxisName, check_features, check_flags, check_real, check_where, resolve_groups
from normlab._core.collectives import Devices
from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.ghost import check_chunks, check_ghost, check_whole_groups, each_ghost
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import (
    Reduction,
    all_but,
    canonical_axes,
    check_more_than_one,
    elements,
    expand_where,
    other_axes,
)
from normlab.functional.batch_norm import REMEDY, Momentum, check_momentum, moved
from normlab.functional.whitening.covariance import check_enough, mapped, spread
from normlab.functional.whitening.inverse_root import check_root, inverse_root

__all__ = ["Average", "WhitenLayer", "Whitening", "whiten", "whiten_by"]

Average = Literal["matrix", "covariance"]
"""Running average that whitens at evaluation: that of the whitening matrices, or the root of that of covariances."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whitening:
    """Statistics of a batch; constants to autodiff.

    Attributes:
        mean: `[features]`.
        matrix: Whitening matrices `W`, `[features / group_size, group_size, group_size]`.
        covariance: Covariances plus `epsilon` on their diagonals, of the same shape.
        count: Elements counted, a number or `[features]`.
    """

    mean: Array
    matrix: Array
    covariance: Array
    count: Array | float


def whiten(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    group_size: int = 64,
    steps: int = 5,
    exact: bool = False,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
    allow: bool = False,
) -> tuple[Array, Whitening]:
    """Whiten groups of neighbouring features over the batch (Huang et al., 2018, 2019).

    `y = W (x - mean) * scale + bias`, `W = (covariance + epsilon I)^(-1/2)`

    Statistics: over batch and positions (and `axis_name`), a mean per feature and a covariance per group, in float32 or
    wider. Gradients flow through both.

    `W` is symmetric (ZCA): of all whitening matrices it changes features least. Five steps of Newton's iteration whiten
    in part, which is meant: a direction with 1/8 of a group's variance ends with variance 1.00, one with 1/64 with
    0.59. `exact=True` decomposes the covariance; its derivative is finite where eigenvalues are equal.

    Ghost batches and devices: as in `batch_norm`; the statistics returned are averages of those of the chunks.

    Args:
        x: Activations, `[batch, ..., features]`.
        scale: Gain, `[features]`; `None` is 1.
        bias: Shift, `[features]`; `None` is 0.
        axis: Feature axis.
        group_size: Features per group; the covariance of a group needs more elements than that, better four times as
            many.
        steps: Steps of Newton's iteration.
        exact: Whether to decompose instead.
        epsilon: Added to the diagonal of the covariance.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share statistics; `None` means all.
        allow: Whether a group may have as many features as there are elements, so that `epsilon` decides.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the statistics of the batch.

    Raises:
        StatisticsError: If there are no more elements than features in a group, and `allow` is False.
        ValueError: If `group_size` does not divide the features, or a shape or an option does not fit.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 3.0], [5.0, 7.0]])
        >>> y, batch = whiten(x, group_size=2, exact=True, epsilon=0.0)
        >>> bool(jnp.allclose(y.T @ y / 3, jnp.eye(2), atol=1e-5))
        True

    References:
        Huang, Zhou, Zhu, Liu, Shao. Iterative Normalization: Beyond Standardization towards Efficient Whitening.
        CVPR 2019. https://arxiv.org/abs/1904.03441
        Huang, Yang, Lang, Deng. Decorrelated Batch Normalization. CVPR 2018. https://arxiv.org/abs/1804.08450
    """
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    layer = WhitenLayer(
        axis=axis,
        epsilon=epsilon,
        group_size=group_size,
        steps=steps,
        exact=exact,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        ghost_batch_size=ghost_batch_size,
        allow=allow,
    )
    features = canonical_axes(axis, x.ndim)
    own, by = separated(scale, bias, x.shape, features)
    y, batch = layer.by_batch(x, own, features, where)
    return modulated(y, by, features, where).astype(output_dtype(x)), batch


def whiten_by(
    x: Array,
    mean: Array,
    matrix: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
) -> Array:
    """Whiten by given statistics: `whiten` at inference.

    `y = matrix (x - mean) * scale + bias`

    Statistics: those given, in float32 or wider.

    Args:
        x: Activations, `[batch, ..., features]`.
        mean: `[features]`.
        matrix: `[groups, group_size, group_size]`.
        scale: Gain, `[features]`; `None` is 1.
        bias: Shift, `[features]`; `None` is 0.
        axis: Feature axis.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> x, swap = jnp.array([[1.0, 2.0]]), jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
        >>> whiten_by(x, jnp.array([1.0, 1.0]), swap)
        Array([[1., 0.]], dtype=float32)
    """
    x = jnp.asarray(x)
    check_real(x)
    features = canonical_axes(axis, x.ndim)
    width = x.shape[features[0]]
    if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2] or matrix.shape[0] * matrix.shape[1] != width:
        raise ValueError(
            f"Expected `matrix` of shape (groups, group_size, group_size) for {width} features of `x`, got "
            f"{matrix.shape}."
        )
    own, by = separated(scale, bias, x.shape, features)
    y = _by_given(x, mean, matrix, own, features)
    return modulated(y, by, features).astype(output_dtype(x))


@dataclass(frozen=True)
class WhitenLayer(Layer):
    """Batch whitening with its options.

    Attributes:
        axis: Feature axis.
        momentum: Weight of the OLD running value; see `update_batch_norm`.
        epsilon: Added to the diagonal of the covariance.
        group_size: Features per group.
        steps: See `whiten`.
        exact: See `whiten`.
        average: `matrix`: the running average is that of the whitening matrices, as published. `covariance`: that of
            the covariances, `epsilon` included, whose inverse root whitens at evaluation.
        axis_name: See `whiten`.
        axis_index_groups: See `whiten`.
        ghost_batch_size: See `whiten`.
        allow: See `whiten`.
    """

    axis: int = -1
    momentum: Momentum = 0.99
    epsilon: float = 1e-5
    group_size: int = 64
    steps: int = 5
    exact: bool = False
    average: Average = "matrix"
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    ghost_batch_size: int | None = None
    allow: bool = False

    feature_option: ClassVar[str] = "axis"
    stateful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_root(self.epsilon, self.steps, self.exact)
        check_flags(self, "allow")
        check_ghost(self.ghost_batch_size)
        check_momentum(self.momentum)
        if not isinstance(self.axis, numbers.Integral):
            raise ValueError(f"Expected `axis` to name one feature axis, got {self.axis}. Merge the axes beforehand.")
        if self.average not in get_args(Average):
            raise ValueError(f"Expected `average` to be one of {get_args(Average)}, got {self.average!r}.")

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return the running averages, and `step`, which training needs where `momentum` depends on it."""
        if self.momentum is None or callable(self.momentum):
            return ("mean", "matrix", "step"), () if train else ("step",)
        return ("mean", "matrix"), ("step",)

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return mean 0 and the identity for each group, float32, and step 0 where there is one."""
        groups = resolve_groups(shape[0], None, self.group_size)
        identity = jnp.broadcast_to(jnp.eye(self.group_size), (groups, self.group_size, self.group_size))
        start = {"mean": jnp.zeros(shape, jnp.float32), "matrix": identity.astype(jnp.float32)}
        return start | ({"step": jnp.zeros((), jnp.int32)} if "step" in self.names(True)[0] else {})

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm of a whole batch on a single device, which evaluates where the batch is too small."""
        n = elements(x.shape, all_but(features, x.ndim))
        few = isinstance(n, int) and n <= self.group_size
        single = replace(self, axis_name=None, axis_index_groups=None, ghost_batch_size=None)
        return single, train and not few

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
        """Whiten by the batch or by the running averages; see `Layer`."""
        if train:
            y, batch = self.by_batch(x, parameters, features, mask)
            return y, self.update(state, batch)
        matrix = float32_or_wider(state["matrix"])
        if self.average == "covariance":
            matrix = self._root(matrix)
        x = without_hidden(x, mask)
        return _by_given(x, state["mean"], matrix, parameters, features), state

    def by_batch(
        self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> tuple[Array, Whitening]:
        """Whiten by the batch; the output is in float32 or wider."""
        (axis,), width = features, x.shape[features[0]]
        over = all_but(features, x.ndim, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        check_more_than_one(x.shape, over, REMEDY)
        resolve_groups(width, None, self.group_size)
        check_whole_groups(x, self.group_size, axis)
        affine = _of_groups(parameters, width, self.group_size)
        z = _split(float32_or_wider(x), axis, self.group_size)
        where = expand_where(where, x.ndim)
        where = where if where is None else _split(where, axis, self.group_size)
        over = over._replace(axis=other_axes((axis, axis + 1), z.ndim))
        size, devices = self.ghost_batch_size, over.devices
        if size is not None:
            over = over._replace(devices=None)
            check_chunks(size, z, over, devices)
        if size is None or (devices is None and size >= x.shape[0]):
            y, batch = self.whitened(z, over, affine, where)
        else:

            def chunk(z: Array, where: Array | None) -> tuple[Array, Whitening]:
                y, batch = self.whitened(z, over, affine, where)
                return y, replace(batch, count=jnp.broadcast_to(jnp.asarray(batch.count, z.dtype), batch.mean.shape))

            y, batch = each_ghost(chunk, z, where, size)
            batch = _averaged(batch, devices)
        count = batch.count.reshape(width) if isinstance(batch.count, Array) else batch.count
        mean = lax.stop_gradient(batch.mean.reshape(width))
        matrix, covariance = lax.stop_gradient((batch.matrix, batch.covariance))
        return y.reshape(x.shape), Whitening(mean, matrix, covariance, count)

    def whitened(
        self, z: Array, over: Reduction, affine: dict[str, Array], where: Array | None
    ) -> tuple[Array, Whitening]:
        """Whiten a batch, or a chunk of it, by its own statistics; features lie along two axes, of groups and rows."""
        kept = other_axes(over.axis, z.ndim)
        check_enough(z.shape, over, "features", REMEDY_OF_GROUPS, self.allow)
        s = spread(z, over, where, self.epsilon)
        matrix = self._root(s.covariance)
        return _affine(s.centered, matrix, affine, kept), Whitening(s.mean, matrix, s.covariance, s.count)

    def update(self, state: State, batch: Whitening) -> State:
        """Move the running averages towards the statistics of a batch."""
        matrix, count = batch.covariance if self.average == "covariance" else batch.matrix, batch.count
        of_pairs = count
        if isinstance(count, Array):
            rows = count.reshape(matrix.shape[:2])
            of_pairs = jnp.minimum(rows[:, :, None], rows[:, None, :])
        mean = moved(state, {"mean": batch.mean}, self.momentum, count)
        return mean | moved(state, {"matrix": matrix}, self.momentum, of_pairs)

    def averaged(self, covariance: Array) -> Array:
        """Return the matrix that the running average is of, given covariances without `epsilon`, `[..., k, k]`."""
        raised = covariance + self.epsilon * jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
        return self._root(raised) if self.average == "matrix" else raised

    def _root(self, covariance: Array) -> Array:
        return inverse_root(covariance, steps=self.steps, exact=self.exact, epsilon=self.epsilon)


REMEDY_OF_GROUPS = "Use a smaller `group_size`, a larger batch, or `axis_name` for statistics across devices"


def _by_given(x: Array, mean: Array, matrix: Array, parameters: Parameters, features: tuple[int, ...]) -> Array:
    """Whiten by statistics that are constants along the batch; the output is in float32 or wider."""
    (axis,), width, size = features, x.shape[features[0]], matrix.shape[1]
    check_whole_groups(x, size, axis)
    affine = _of_groups({**parameters, "mean": mean}, width, size)
    z = _split(float32_or_wider(x), axis, size)
    z = z - _along(affine.pop("mean"), z, axis).astype(z.dtype)
    return _affine(z, matrix.astype(z.dtype), affine, (axis, axis + 1)).reshape(x.shape)


def _affine(z: Array, matrix: Array, affine: dict[str, Array], kept: tuple[int, ...]) -> Array:
    """Return `matrix z * scale + bias`, with the scale as a part of the matrix: what is kept for it is small."""
    if "scale" in affine:
        matrix = matrix * affine["scale"].astype(z.dtype)[..., None]
    y = mapped(matrix, z, kept)
    return y + _along(affine["bias"], y, kept[0]).astype(y.dtype) if "bias" in affine else y


def _of_groups(parameters: Parameters, width: int, size: int) -> dict[str, Array]:
    """Check per-feature arrays and split them into groups of `size`; `None` is left out."""
    given: dict[str, Array] = {}
    for name, array in parameters.items():
        check_features(name, array, (width,))
        if array is not None:
            given[name] = array.reshape(width // size, size)
    return given


def _split(x: Array, axis: int, size: int) -> Array:
    """Split the feature axis into groups of `size` features; the axis of a mask can be 1 and stays so."""
    width = x.shape[axis]
    split = (width // size, size) if width % size == 0 else (1, 1)
    return x.reshape(*x.shape[:axis], *split, *x.shape[axis + 1 :])


def _along(of_groups: Array, z: Array, axis: int) -> Array:
    """Give `[groups, group_size]` the rank of `z`, which has them along `axis` and the axis after it."""
    return of_groups.reshape([n if a in (axis, axis + 1) else 1 for a, n in enumerate(z.shape)])


def _averaged(chunks: Whitening, devices: Devices | None) -> Whitening:
    """Average the statistics of chunks by their counts, over chunks, the first axis, and devices."""
    assert isinstance(chunks.count, Array)
    n = chunks.count
    of_pairs = jnp.minimum(n[..., :, None], n[..., None, :])
    rows = jnp.stack([n * chunks.mean, n], -1).sum(0)
    pairs = jnp.concatenate([of_pairs * chunks.matrix, of_pairs * chunks.covariance, of_pairs], -1).sum(0)
    sums = jnp.concatenate([rows, pairs], -1)
    mean, count, *rest = jnp.split(sums if devices is None else devices.sum(sums), [1, 2], -1)
    matrix, covariance, pair = jnp.split(rest[0], 3, -1)
    pair = jnp.maximum(pair, 1)
    mean, count = mean[..., 0], count[..., 0]
    return Whitening(mean / jnp.maximum(count, 1), matrix / pair, covariance / pair, count)
