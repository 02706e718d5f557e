"""Norms whose statistics cross the batch: batch norm and batch renorm, whole or in ghost batches."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab.functional._checks import (
    Axes,
    AxisName,
    StatisticsError,
    canonical_axes,
    check_epsilon,
    check_flag,
    check_real,
    check_where,
    one_element_allowed,
)
from normlab.functional._devices import Devices, beside, join_first, split_first
from normlab.functional._example import expand, expand_where
from normlab.functional._standardize import affine, reciprocal_root, reciprocal_std, standardize
from normlab.functional._statistics import (
    Moments,
    Momentum,
    Over,
    check_more_than_one,
    elements,
    float32_or_wider,
    merged_average,
    moments,
    output_dtype,
    running_average,
    unbiased,
    where_counted,
    whole,
)
from normlab.functional._statistics import over as over_axes

T = TypeVar("T")

_REMEDY = (
    "Use a larger batch, `axis_name` for statistics across devices, running statistics, or a norm that needs no batch "
    "(layer, RMS, group)"
)

Schedule = float | Callable[[Array], Array | float]
"""A number, or a function of the step."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchMoments:
    """What a batch adds to the running statistics; constants to autodiff.

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


class RunningStatistics(NamedTuple):
    """State of a batch norm between calls, all arrays.

    Attributes:
        mean: Running mean, of the shape of the feature axes; updates return it in float32 or wider, whatever its dtype.
        spread: Running variance (batch norm) or running standard deviation (batch renorm), likewise.
        step: Updates so far, an int32 scalar; `None` where nothing depends on it.
    """

    mean: Array
    spread: Array
    step: Array | None = None

    @classmethod
    def named(cls, arrays: Mapping[str, Array], spread: str = "var") -> "RunningStatistics":
        """Return statistics from arrays by the names of a module's variables, of which `step` can be missing."""
        return cls(arrays["mean"], arrays[spread], arrays.get("step"))

    def by_name(self, spread: str = "var") -> dict[str, Array]:
        """Undo `named`."""
        counted = {} if self.step is None else {"step": self.step}
        return {"mean": self.mean, spread: self.spread, **counted}


def batch_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
    use_fast_variance: bool = False,
) -> tuple[Array, BatchMoments]:
    """Standardize each feature over the batch (Ioffe & Szegedy, 2015).

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`

    Statistics: over `axis` (and `axis_name`), per feature, in float32 or wider.

    Ghost batches (Hoffer et al., 2017): with `ghost_batch_size=g` consecutive chunks of `g` examples are each
    normalized by their own statistics. A remainder is a smaller chunk with its own statistics. The moments returned are
    the averages of the chunks' moments, weighted by their counts: what batch norm trained on batches of `g` would have
    tracked, so that the variance is the one within a chunk and leaves out the spread between chunks.

    Devices: under `jax.jit` with a batch sharded over devices, statistics are those of the whole batch, with no option;
    `ghost_batch_size` of a device's share of the batch (or that of several neighbours) keeps them apart. Under
    `jax.shard_map`, `jax.pmap` and `jax.vmap` statistics are those of the device; `axis_name` joins the devices along
    those axes. Both together normalize by chunks within a device and average the moments over all devices.

    Args:
        x: Activations, `[batch, ..., features]`.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        axis: Axes reduced; `None` means all but the last.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share statistics; `None` means all.
        use_fast_variance: Whether to use E[x^2] - E[x]^2, as Flax does by default.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch.

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis, `epsilon` or `ghost_batch_size` does not fit.

    Example:
        >>> y, moments = batch_norm(jnp.array([[1.0], [3.0]]), epsilon=0.0)
        >>> y.ravel(), moments.mean, moments.unbiased_var
        (Array([-1.,  1.], dtype=float32), Array([2.], dtype=float32), Array([2.], dtype=float32))

    References:
        Ioffe, Szegedy. Batch Normalization. ICML 2015. https://arxiv.org/abs/1502.03167
        Hoffer, Hubara, Soudry. Train longer, generalize better. NeurIPS 2017. https://arxiv.org/abs/1705.08741
    """
    x = jnp.asarray(x)
    batch = _Batch.of(x, axis, epsilon, where, axis_name, axis_index_groups, ghost_batch_size, use_fast_variance)
    return batch.normalize(x, scale, bias)


def batch_renorm(
    x: Array,
    running: RunningStatistics,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    r_max: Array | float = 3.0,
    d_max: Array | float = 5.0,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    ghost_batch_size: int | None = None,
    use_fast_variance: bool = False,
) -> tuple[Array, BatchMoments]:
    """Standardize over the batch, then correct towards the running statistics (Ioffe, 2017).

    `y = ((x - mean) / std * r + d) * scale + bias` with `std = sqrt(var + epsilon)`,
    `r = clip(std / running_std, 1 / r_max, r_max)` and `d = clip((mean - running_mean) / running_std, -d_max, d_max)`.

    Statistics: over `axis` (and `axis_name`), per feature, in float32 or wider; `r` and `d` from the running statistics
    before this batch, and constants to autodiff. `r_max=1, d_max=0` is batch norm; without limits the output is that
    of the running statistics.

    Args:
        x: Activations, `[batch, ..., features]`.
        running: Running mean and standard deviation, before this batch.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        r_max: Largest correction of the standard deviation, at least 1.
        d_max: Largest correction of the mean, in running standard deviations, at least 0.
        axis: Axes reduced; `None` means all but the last.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        ghost_batch_size: Examples that share statistics, as in `batch_norm`; `r` and `d` are then per chunk.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch.

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis, `epsilon`, `r_max` or `d_max` does not fit.

    Example:
        >>> running = RunningStatistics(mean=jnp.array([0.0]), spread=jnp.array([2.0]))
        >>> y, _ = batch_renorm(jnp.array([[1.0], [3.0]]), running, epsilon=0.0)
        >>> y.ravel()
        Array([0.5, 1.5], dtype=float32)

    References:
        Ioffe. Batch Renormalization. NeurIPS 2017. https://arxiv.org/abs/1702.03275
    """
    check_limits(r_max, d_max)
    x = jnp.asarray(x)
    batch = _Batch.of(x, axis, epsilon, where, axis_name, axis_index_groups, ghost_batch_size, use_fast_variance)
    features = batch.features
    dtype = float32_or_wider(x).dtype
    mean, std = (
        _required(expand(f"running.{n}", a, x.shape, features)).astype(dtype)
        for n, a in (("mean", running.mean), ("spread", running.spread))
    )
    r_most, d_most = (lax.stop_gradient(jnp.asarray(limit, dtype)) for limit in (r_max, d_max))

    def correct(m: Moments, scale: Array | None, bias: Array | None) -> tuple[Array, Array]:
        std_batch = jnp.sqrt(m.var + epsilon)
        r = jnp.clip(lax.stop_gradient(std_batch / std), 1 / r_most, r_most)
        d = jnp.clip(lax.stop_gradient(m.mean_minus(mean) / std), -d_most, d_most)
        scale = jnp.ones_like(std) if scale is None else scale.astype(dtype)
        return r * scale, d * scale if bias is None else d * scale + bias.astype(dtype)

    return batch.normalize(x, scale, bias, correct)


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
    batch = _Batch.of(x, axis, 0.0, where, axis_name, axis_index_groups, None, use_fast_variance)
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
    rstd = reciprocal_root(_required(var_) + epsilon, epsilon)
    return affine(wide - _required(mean_), rstd, scale, bias).astype(output_dtype(x))


def update_batch_norm(
    running: RunningStatistics, batch: BatchMoments, *, momentum: Momentum, unbiased_running_var: bool = False
) -> RunningStatistics:
    """Move running mean and variance towards those of a batch.

    Args:
        running: Statistics before the batch.
        batch: From `batch_norm`.
        momentum: Weight of the old value, a function of the step, or `None` for the plain average of all batches.
        unbiased_running_var: Whether the variance is counted times n / (n - 1), as in PyTorch; Flax does not.

    Returns:
        The statistics after the batch; the same with fewer than two elements counted. No gradient flows into them.
    """
    return _update(running, batch, _var(batch, unbiased_running_var), momentum)


def update_batch_renorm(
    running: RunningStatistics,
    batch: BatchMoments,
    *,
    momentum: Momentum,
    epsilon: float = 1e-5,
    unbiased_running_var: bool = False,
) -> RunningStatistics:
    """Move running mean and standard deviation towards those of a batch (Ioffe, 2017: the deviation is averaged).

    Args:
        running: Statistics before the batch.
        batch: From `batch_renorm`.
        momentum: Weight of the old value, a function of the step, or `None` for the plain average of all batches.
        epsilon: That of `batch_renorm`: the deviation is `sqrt(var + epsilon)`.
        unbiased_running_var: Whether the variance under the root is counted times n / (n - 1).

    Returns:
        The statistics after the batch; the same with fewer than two elements counted. No gradient flows into them.
    """
    var = _var(batch, unbiased_running_var)
    return _update(running, batch, jnp.sqrt(var + epsilon), momentum)


def merge_batch_norm(
    running: RunningStatistics, batch: BatchMoments, *, momentum: Momentum, unbiased_running_var: bool = False
) -> RunningStatistics:
    """Move running mean and TOTAL variance towards those of a batch, for which one element is enough.

    `momentum * var + (1 - momentum) * (batch var + momentum * (batch mean - mean)^2)`: `update_batch_norm` leaves out
    the spread between batches, which normalize themselves; where running statistics normalize, it is needed.

    Args:
        running: Statistics before the batch.
        batch: From `batch_moments`.
        momentum: Weight of the old value, a function of the step, or `None`: with single examples the statistics are
            then mean and (biased) variance of all examples so far.
        unbiased_running_var: Whether the variance within a batch is counted times n / (n - 1).

    Returns:
        The statistics after the batch; the same where no element counts. No gradient flows into them.

    Example:
        >>> running = RunningStatistics(jnp.array([0.0]), jnp.array([1.0]), jnp.array(0))
        >>> for x in (1.0, 3.0):
        ...     running = merge_batch_norm(running, batch_moments(jnp.array([[x]])), momentum=None)
        >>> running.mean, running.spread
        (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    return _merge(running, batch, _var(batch, unbiased_running_var), running.spread, momentum)


def merge_batch_renorm(
    running: RunningStatistics,
    batch: BatchMoments,
    *,
    momentum: Momentum,
    epsilon: float = 1e-5,
    unbiased_running_var: bool = False,
) -> RunningStatistics:
    """Move running mean and TOTAL standard deviation towards those of a batch: `merge_batch_norm` of its square.

    Args:
        running: Statistics before the batch.
        batch: From `batch_moments`.
        momentum: See `merge_batch_norm`.
        epsilon: That of `batch_renorm`: the deviation is `sqrt(var + epsilon)`.
        unbiased_running_var: See `merge_batch_norm`.

    Returns:
        The statistics after the batch; the same where no element counts. No gradient flows into them.
    """
    running = widened(running)
    var = _var(batch, unbiased_running_var) + epsilon
    after = _merge(running, batch, var, lax.square(running.spread), momentum)
    counted = jnp.asarray(batch.count) > 0  # a root of a square need not be what it was
    return after._replace(spread=where_counted(counted, jnp.sqrt(after.spread), running.spread))


def first_batch(running: RunningStatistics, batch: BatchMoments, *, epsilon: float = 1e-5) -> RunningStatistics:
    """Return the statistics of the batch in place of initial ones at step 0, and `running` from then on.

    A feature that a mask hides in all of the first batch keeps its initial 0 and 1.
    """
    running = widened(running)
    first = (_required(running.step) == 0) & (jnp.asarray(batch.count) > 1)
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


class _Batch(NamedTuple):
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
    ) -> "_Batch":
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
        size, where = _required(self.ghost), self.where
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


def _update(running: RunningStatistics, batch: BatchMoments, spread: Array, momentum: Momentum) -> RunningStatistics:
    running = widened(running)
    step, count = running.step, batch.count
    return RunningStatistics(
        mean=running_average(running.mean, batch.mean, momentum, step, count),
        spread=running_average(running.spread, spread, momentum, step, count),
        step=None if step is None else step + _any(count, 1).astype(step.dtype),
    )


def _merge(
    running: RunningStatistics, batch: BatchMoments, var: Array, old_var: Array, momentum: Momentum
) -> RunningStatistics:
    running = widened(running)
    step, count = running.step, batch.count
    mean, spread = merged_average((running.mean, old_var), (batch.mean, var), momentum, step, count)
    return RunningStatistics(mean, spread, None if step is None else step + _any(count, 0).astype(step.dtype))


def _var(batch: BatchMoments, unbiased_running_var: bool) -> Array:
    """The variance that running statistics take up."""
    check_flag("unbiased_running_var", unbiased_running_var)
    return batch.unbiased_var if unbiased_running_var else batch.var


def _any(count: Array | float, least: int) -> Array:
    """Whether any statistic has more than `least` elements."""
    return jnp.any(jnp.asarray(count) > least)


def _features(x: Array, axis: Axes | None) -> tuple[int, ...]:
    reduced = tuple(range(x.ndim - 1)) if axis is None else canonical_axes(axis, x.ndim)
    return tuple(a for a in range(x.ndim) if a not in reduced)


def check_ghost(ghost: Any) -> None:
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


def check_limits(r_max: object, d_max: object) -> None:
    """Raise a `ValueError` if a limit of batch renorm is a number that is too small."""
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if isinstance(limit, int | float) and not limit >= least:
            raise ValueError(f"Expected `{name}` to be at least {least}, got {limit}.")


def _required(value: T | None) -> T:
    assert value is not None
    return value
