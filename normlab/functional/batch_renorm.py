"""Batch renorm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.axes import Axes, expand
from normlab._core.batch import (
    Batch,
    BatchMoments,
    batch_moments,
    first_batch,
    merge,
    normalize,
    required,
    update,
    var_of,
    widened,
)
from normlab._core.checks import AxisName, check_flags
from normlab._core.dtypes import float32_or_wider
from normlab._core.layer import State
from normlab._core.moments import Moments
from normlab._core.running import Momentum, RunningStatistics, where_counted
from normlab.functional.batch_norm import BatchLayer, batch_norm

Schedule = float | Callable[[Array], Array | float]
"""A number, or a function of the step."""


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
    batch = Batch.of(x, axis, epsilon, where, axis_name, axis_index_groups, ghost_batch_size, use_fast_variance)
    features = batch.features
    dtype = float32_or_wider(x).dtype
    mean, std = (
        required(expand(f"running.{n}", a, x.shape, features)).astype(dtype)
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
    var = var_of(batch, unbiased_running_var)
    return update(running, batch, jnp.sqrt(var + epsilon), momentum)


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
    var = var_of(batch, unbiased_running_var) + epsilon
    after = merge(running, batch, var, lax.square(running.spread), momentum)
    counted = jnp.asarray(batch.count) > 0  # a root of a square need not be what it was
    return after._replace(spread=where_counted(counted, jnp.sqrt(after.spread), running.spread))


def check_limits(r_max: object, d_max: object) -> None:
    """Raise a `ValueError` if a limit of batch renorm is a number that is too small."""
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if isinstance(limit, int | float) and not limit >= least:
            raise ValueError(f"Expected `{name}` to be at least {least}, got {limit}.")


@dataclass(frozen=True)
class BatchRenormLayer(BatchLayer):
    """Batch renorm with its options.

    Attributes:
        r_max: Largest correction of the standard deviation, or a function of the step.
        d_max: Largest correction of the mean in standard deviations, or a function of the step.
        initialize_from_first_batch: Whether the first batch's statistics replace the initial 0 and 1.
    """

    r_max: Schedule = 3.0
    d_max: Schedule = 5.0
    initialize_from_first_batch: bool = False

    spread: ClassVar[str] = "std"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_limits(self.r_max, self.d_max)
        check_flags(self, "initialize_from_first_batch")

    @property
    def has_step(self) -> bool:
        """True: the state always includes the number of updates, so that its tree is one."""
        return True

    def by_running(self, x: Array, running: RunningStatistics, parameters: State, axis: tuple[int, ...]) -> Array:
        """Normalize by the running statistics, whose deviation includes `epsilon`."""
        return normalize(x, running.mean, lax.square(running.spread), **parameters, axis=axis, epsilon=0.0)

    def before_batch(
        self, x: Array, running: RunningStatistics, parameters: State, options: dict[str, Any]
    ) -> tuple[Array, RunningStatistics]:
        """Normalize by the running statistics before the batch, then let them take it up."""
        batch = batch_moments(x, **options)
        if self.initialize_from_first_batch:
            running = first_batch(running, batch, epsilon=self.epsilon)
        y = self.by_running(x, running, parameters, options["axis"])
        return y, merge_batch_renorm(running, batch, epsilon=self.epsilon, **self._update)

    def by_batch(
        self, x: Array, running: RunningStatistics, parameters: State, options: dict[str, Any]
    ) -> tuple[Array, RunningStatistics]:
        """Normalize by the batch, corrected towards the running statistics, which then move towards it."""
        if self.initialize_from_first_batch:
            _, batch = batch_norm(x, **options)
            running = first_batch(running, batch, epsilon=self.epsilon)
        limits = {name: at_step(running.step, getattr(self, name)) for name in ("r_max", "d_max")}
        y, batch = batch_renorm(x, running, **parameters, **limits, **options)
        return y, update_batch_renorm(running, batch, epsilon=self.epsilon, **self._update)


def at_step(step: Array | None, schedule: Schedule) -> Array | float:
    """Evaluate a schedule; a number is itself."""
    return schedule(step) if callable(schedule) and step is not None else schedule  # pyright: ignore[reportReturnType]
