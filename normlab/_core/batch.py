"""Statistics over the batch: of all of it, of ghost batches, across devices; and running ones."""

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.axes import Axes, canonical_axes, expand, expand_where
from normlab._core.checks import AxisName, check_epsilon, check_flag, check_real, check_where, one_element_allowed
from normlab._core.chunking import beside, join_first, split_first
from normlab._core.collectives import Devices
from normlab._core.dtypes import float32_or_wider, output_dtype, whole
from normlab._core.moments import Moments, moments, unbiased
from normlab._core.reduction import Over, check_more_than_one, elements
from normlab._core.reduction import over as over_axes
from normlab._core.running import Momentum, RunningStatistics, merged_average, running_average, where_counted
from normlab._core.standardize import affine, reciprocal_root, reciprocal_std, standardize
from normlab.errors import StatisticsError

T = TypeVar("T")

_REMEDY = (
    "Use a larger batch, `axis_name` for statistics across devices, running statistics, or a norm that needs no batch "
    "(layer, RMS, group)"
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchMoments:
    """Statistics of a batch for the running averages; constants to autodiff.

    Attributes:
        mean: Means, of the shape of the feature axes.
        var: Biased variances, of the same shape.
        unbiased_var: Variances times n / (n - 1).
        count: Elements counted: a number, or an array where a mask makes them differ.
    """

    mean: Array
    var: Array
    unbiased_var: Array
    count: Array | float


def batch_moments(
    x: Array,
    *,
    axis: Axes | None = None,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    use_fast_variance: bool = False,
) -> BatchMoments:
    """Return the moments of a batch, which may be one element, with variance 0.

    Args:
        x: Activations, `[batch, ..., features]`.
        axis: See `batch_norm`.
        where: See `batch_norm`.
        axis_name: See `batch_norm`.
        axis_index_groups: See `batch_norm`.
        use_fast_variance: See `batch_norm`.
    """
    x = jnp.asarray(x)
    batch = Batch.of(x, axis, 0.0, where, axis_name, axis_index_groups, None, use_fast_variance)
    return batch.of_all(moments(float32_or_wider(x), batch.over, batch.where, use_fast_variance=batch.fast), x.shape)


def normalize(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Standardize with given statistics: batch norm at inference.

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: those given, in float32 or wider.

    Args:
        x: Activations, `[batch, ..., features]`.
        mean: Means, of the shape of the axes not in `axis`.
        var: Variances, of the same shape.
        scale: Gain, of the same shape; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        axis: Axes along which the statistics do not vary; `None` means all but the last.
        epsilon: Added to the variance, inside the root; 0 where `var` is a squared running standard deviation.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape or an axis does not fit.

    Example:
        >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0).ravel()
        Array([0., 1.], dtype=float32)
    """
    x = jnp.asarray(x)
    check_real(x)
    check_epsilon(epsilon)
    features = _features(x, axis)
    named = {"mean": mean, "var": var, "scale": scale, "bias": bias}
    expanded = (expand(name, a, x.shape, features) for name, a in named.items())
    wide = float32_or_wider(x)
    mean_, var_, scale, bias = (a if a is None else a.astype(wide.dtype) for a in expanded)
    rstd = reciprocal_root(required(var_) + epsilon, epsilon)
    return affine(wide - required(mean_), rstd, scale, bias).astype(output_dtype(x))


def first_batch(running: RunningStatistics, batch: BatchMoments, *, epsilon: float = 1e-5) -> RunningStatistics:
    """Return the statistics of the batch in place of initial ones at step 0, and `running` from then on.

    A feature that a mask hides in all of the first batch keeps its initial 0 and 1.
    """
    running = widened(running)
    first = (required(running.step) == 0) & (jnp.asarray(batch.count) > 1)
    mean, std = (lax.stop_gradient(a) for a in (batch.mean, jnp.sqrt(batch.var + epsilon)))
    return running._replace(
        mean=where_counted(first, mean.astype(running.mean.dtype), running.mean),
        spread=where_counted(first, std.astype(running.spread.dtype), running.spread),
    )


def widened(running: RunningStatistics) -> RunningStatistics:
    """Return running statistics in float32 or wider, and the step as a whole number, whatever they were cast to."""
    step = running.step
    return RunningStatistics(
        float32_or_wider(running.mean), float32_or_wider(running.spread), step if step is None else whole(step)
    )


def batch_elements(x: Array, axis: Axes, axis_name: AxisName | None = None) -> int:
    """Return how many elements one statistic of a batch norm covers, masks aside."""
    return elements(x.shape, over_axes(canonical_axes(axis, x.ndim), axis_name=axis_name))


class Batch(NamedTuple):
    """A batch norm's reduction, checked and resolved.

    Attributes:
        over: What a statistic is taken over: with ghost batches, in each chunk.
        features: Feature axes.
        epsilon: Inside the root.
        where: Mask, of the rank of `x`.
        ghost: Examples in a chunk; `None` for no chunks.
        devices: Over which the chunks' moments are averaged.
        fast: Whether the variance is taken in one pass.
    """

    over: Over
    features: tuple[int, ...]
    epsilon: float
    where: Array | None
    ghost: int | None
    devices: Devices | None
    fast: bool

    @classmethod
    def of(
        cls,
        x: Array,
        axis: Axes | None,
        epsilon: float,
        where: Array | None,
        axis_name: AxisName | None,
        groups: Sequence[Sequence[int]] | None,
        ghost: int | None,
        fast: bool,
    ) -> "Batch":
        check_real(x)
        check_epsilon(epsilon)
        check_flag("use_fast_variance", fast)
        check_where(where, x.shape)
        features = _features(x, axis)
        reduced = tuple(a for a in range(x.ndim) if a not in features)
        over = over_axes(reduced, affine=features, axis_name=axis_name, axis_index_groups=groups)
        devices = over.devices
        if ghost is not None:
            over = over._replace(devices=None)
            _check_ghost(ghost, x, over, devices)
            if devices is None and ghost >= x.shape[0]:
                ghost = None
        return cls(over, features, epsilon, expand_where(where, x.ndim), ghost, devices, fast)

    def normalize(
        self,
        x: Array,
        scale: Array | None,
        bias: Array | None,
        correct: Callable[..., tuple[Array, Array]] | None = None,
    ) -> tuple[Array, BatchMoments]:
        scale, bias = (expand(n, a, x.shape, self.features) for n, a in (("scale", scale), ("bias", bias)))
        wide = float32_or_wider(x)
        if self.ghost is None:
            y, m = self._chunk(wide, scale, bias, correct, self.where)
            batch = self.of_all(m, x.shape)
        else:
            y, m = self._ghosts(wide, scale, bias, correct)
            batch = self._constants(*self._averaged(m), x.shape)
        return y.astype(output_dtype(x)), batch

    def of_all(self, m: Moments, shape: tuple[int, ...]) -> BatchMoments:
        """The moments as constants of the shape of the feature axes."""
        return self._constants([m.mean, m.var, unbiased(m)], m.count, shape)

    def _constants(self, parts: list[Array], count: Array | float, shape: tuple[int, ...]) -> BatchMoments:
        of_features = [shape[a] for a in self.features]
        mean, var, unbiased_var = (lax.stop_gradient(part.reshape(of_features)) for part in parts)
        return BatchMoments(mean, var, unbiased_var, count.reshape(of_features) if isinstance(count, Array) else count)

    def _averaged(self, m: Moments) -> tuple[list[Array], Array]:
        """The moments of chunks, averaged by their counts over chunks and devices, and all that were counted."""
        one = jnp.ones_like(m.var)
        sums = jnp.stack([(m.count * part).sum(0) for part in (m.mean, m.var, unbiased(m), one)])
        *parts, count = sums if self.devices is None else self.devices.sum(sums)
        return [part / jnp.maximum(count, 1) for part in parts], count

    def _chunk(
        self,
        x: Array,
        scale: Array | None,
        bias: Array | None,
        correct: Callable[..., tuple[Array, Array]] | None,
        where: Array | None,
    ) -> tuple[Array, Moments]:
        check_more_than_one(x.shape, self.over, _REMEDY)
        m = moments(x, self.over, where, use_fast_variance=self.fast)
        if correct is not None:
            scale, bias = correct(m, scale, bias)
        return standardize(self.over, x, m, reciprocal_std(m, self.epsilon), scale, bias, where), m

    def _ghosts(
        self, x: Array, scale: Array | None, bias: Array | None, correct: Callable[..., tuple[Array, Array]] | None
    ) -> tuple[Array, Moments]:
        """Normalize full chunks under `vmap` and the remainder on its own; moments get a leading axis of chunks."""
        size, where = required(self.ghost), self.where
        full = x.shape[0] // size * size
        if where is not None:
            where = beside(jnp.broadcast_to(where, x.shape[:1] + where.shape[1:]), x)

        def chunk(x: Array, where: Array | None) -> tuple[Array, Moments]:
            y, m = self._chunk(x, scale, bias, correct, where)
            return y, replace(m, count=jnp.broadcast_to(jnp.asarray(m.count, x.dtype), m.var.shape))

        y, m = jax.vmap(chunk)(split_first(x, size), where if where is None else split_first(where, size))
        y = join_first(y)
        if full == x.shape[0]:
            return y, m
        rest, last = chunk(x[full:], where if where is None else where[full:])
        return jnp.concatenate([y, rest]), jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), m, last)


def update(running: RunningStatistics, batch: BatchMoments, spread: Array, momentum: Momentum) -> RunningStatistics:
    running = widened(running)
    step, count = running.step, batch.count
    return RunningStatistics(
        mean=running_average(running.mean, batch.mean, momentum, step, count),
        spread=running_average(running.spread, spread, momentum, step, count),
        step=None if step is None else step + _any(count, 1).astype(step.dtype),
    )


def merge(
    running: RunningStatistics, batch: BatchMoments, var: Array, old_var: Array, momentum: Momentum
) -> RunningStatistics:
    running = widened(running)
    step, count = running.step, batch.count
    mean, spread = merged_average((running.mean, old_var), (batch.mean, var), momentum, step, count)
    return RunningStatistics(mean, spread, None if step is None else step + _any(count, 0).astype(step.dtype))


def var_of(batch: BatchMoments, unbiased_running_var: bool) -> Array:
    """The variance that running statistics take up."""
    check_flag("unbiased_running_var", unbiased_running_var)
    return batch.unbiased_var if unbiased_running_var else batch.var


def _any(count: Array | float, least: int) -> Array:
    """Check for a statistic over more than `least` elements."""
    return jnp.any(jnp.asarray(count) > least)


def _features(x: Array, axis: Axes | None) -> tuple[int, ...]:
    reduced = tuple(range(x.ndim - 1)) if axis is None else canonical_axes(axis, x.ndim)
    return tuple(a for a in range(x.ndim) if a not in reduced)


def check_ghost(ghost: int | None) -> None:
    """Raise a `ValueError` unless `ghost` is a positive whole number or `None`."""
    whole = isinstance(ghost, numbers.Integral) and not isinstance(ghost, bool)
    if ghost is not None and not (whole and int(ghost) >= 1):
        raise ValueError(f"Expected `ghost_batch_size` to be a positive whole number or None, got {ghost!r}.")


def _check_ghost(ghost: int, x: Array, over: Over, devices: Devices | None) -> None:
    check_ghost(ghost)
    if not isinstance(x.shape[0], int):
        raise ValueError(
            f"Expected a batch of known size with `ghost_batch_size`, got the symbolic size {x.shape[0]}. Export "
            "with a fixed batch, or export evaluation."
        )
    if devices is not None and ghost > x.shape[0]:
        raise ValueError(
            f"Expected `ghost_batch_size` with `axis_name` to be at most the {x.shape[0]} examples of a device, got "
            f"{ghost}. For statistics over groups of devices split the mesh axis in two and name the inner one, "
            "without `ghost_batch_size`."
        )
    if 0 not in over.axis:
        raise ValueError(f"Expected the first axis among the reduced ones with `ghost_batch_size`, got {over.axis}.")
    rest = x.shape[0] % ghost
    alone = rest and rest * elements(x.shape, over) == x.shape[0]
    if ghost < x.shape[0] and alone and not one_element_allowed():
        raise StatisticsError(
            f"Expected `ghost_batch_size` to leave a remainder of more than one element, got {ghost} for a batch of "
            f"{x.shape[0]}. Choose a size that divides the batch."
        )


def required(value: T | None) -> T:
    assert value is not None
    return value
