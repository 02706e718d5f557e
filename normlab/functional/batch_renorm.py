"""Batch renorm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import AxisName, check_flags, check_statistics
from normlab._core.dtypes import float32_or_wider, whole
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, State
from normlab._core.reduction import Axes, Moments, Reduction, expand, moments, other_axes
from normlab._core.standardize import normalize, standardize
from normlab.functional.batch_norm import (
    REMEDY,
    BatchMoments,
    BatchNormLayer,
    Momentum,
    merged,
    moved,
    run_batch,
    where_counted,
)

Schedule = Array | float | Callable[[Array], Array | float]
"""A number, or a function of the step."""

_REMEDY = "A running standard deviation is `sqrt(var + epsilon)`."


class RenormStatistics(NamedTuple):
    """State of a batch renorm between calls, all arrays.

    Attributes:
        mean: Running mean, of the shape of the feature axes; updates return it in float32 or wider, whatever its dtype.
        std: Running standard deviation, likewise.
        step: Updates so far, an int32 scalar; `None` where nothing depends on it.
    """

    mean: Array
    std: Array
    step: Array | None = None

    @classmethod
    def named(cls, arrays: Mapping[str, Array]) -> "RenormStatistics":
        """Return statistics from arrays by the names of a module's variables, of which `step` can be missing."""
        return cls(**arrays)

    def by_name(self) -> dict[str, Array]:
        """Undo `named`."""
        return {name: array for name, array in self._asdict().items() if array is not None}


def batch_renorm(
    x: Array,
    running: RenormStatistics,
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
        >>> running = RenormStatistics(mean=jnp.array([0.0]), std=jnp.array([2.0]))
        >>> y, _ = batch_renorm(jnp.array([[1.0], [3.0]]), running, epsilon=0.0)
        >>> y.ravel()
        Array([0.5, 1.5], dtype=float32)

    References:
        Ioffe. Batch Renormalization. NeurIPS 2017. https://arxiv.org/abs/1702.03275
    """
    check_statistics(running, RenormStatistics, _REMEDY)
    layer = BatchRenormLayer(
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
        ghost_batch_size=ghost_batch_size,
        r_max=r_max,
        d_max=d_max,
    )
    return run_batch(layer, x, where, axis, scale, bias, state=running.by_name())


def update_batch_renorm(
    running: RenormStatistics,
    batch: BatchMoments,
    *,
    momentum: Momentum,
    epsilon: float = 1e-5,
    unbiased_running_var: bool = False,
) -> RenormStatistics:
    """Move running mean and standard deviation towards those of a batch (Ioffe, 2017: the deviation is averaged).

    Args:
        running: Statistics before the batch.
        batch: From `batch_renorm`.
        momentum: Weight of the old value, a function of the step, or `None` for the plain average of all batches.
        epsilon: The `epsilon` of `batch_renorm`: the deviation is `sqrt(var + epsilon)`.
        unbiased_running_var: Whether the variance under the root is counted times n / (n - 1).

    Returns:
        The statistics after the batch; the same with fewer than two elements counted. No gradient flows into them.
    """
    check_statistics(running, RenormStatistics, _REMEDY)
    layer = BatchRenormLayer(momentum=momentum, epsilon=epsilon, unbiased_running_var=unbiased_running_var)
    return RenormStatistics.named(layer.update(running.by_name(), batch))


def merge_batch_renorm(
    running: RenormStatistics,
    batch: BatchMoments,
    *,
    momentum: Momentum,
    epsilon: float = 1e-5,
    unbiased_running_var: bool = False,
) -> RenormStatistics:
    """Move running mean and TOTAL standard deviation towards those of a batch: `merge_batch_norm` of its square.

    Args:
        running: Statistics before the batch.
        batch: From `batch_moments`.
        momentum: See `merge_batch_norm`.
        epsilon: The `epsilon` of `batch_renorm`: the deviation is `sqrt(var + epsilon)`.
        unbiased_running_var: See `merge_batch_norm`.

    Returns:
        The statistics after the batch; the same where no element counts. No gradient flows into them.
    """
    check_statistics(running, RenormStatistics, _REMEDY)
    layer = BatchRenormLayer(momentum=momentum, epsilon=epsilon, unbiased_running_var=unbiased_running_var)
    return RenormStatistics.named(layer.merge(running.by_name(), batch))


def first_batch(running: RenormStatistics, batch: BatchMoments, *, epsilon: float = 1e-5) -> RenormStatistics:
    """Return the statistics of the batch in place of initial ones at step 0, and `running` from then on.

    A feature that a mask hides in all of the first batch keeps its initial 0 and 1.

    Args:
        running: Statistics before the batch.
        batch: From `batch_moments`.
        epsilon: The `epsilon` of `batch_renorm`.
    """
    check_statistics(running, RenormStatistics, _REMEDY)
    assert running.step is not None
    step, mean, std = whole(running.step), float32_or_wider(running.mean), float32_or_wider(running.std)
    first = (step == 0) & (jnp.asarray(batch.count) > 1)
    new_mean, new_std = (lax.stop_gradient(a) for a in (batch.mean, jnp.sqrt(batch.var + epsilon)))
    return RenormStatistics(
        where_counted(first, new_mean.astype(mean.dtype), mean),
        where_counted(first, new_std.astype(std.dtype), std),
        step,
    )


def check_limits(r_max: object, d_max: object) -> None:
    """Raise a `ValueError` if a limit of batch renorm is a number that is too small."""
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if isinstance(limit, int | float) and not limit >= least:
            raise ValueError(f"Expected `{name}` to be at least {least}, got {limit}.")


@dataclass(frozen=True)
class BatchRenormLayer(BatchNormLayer):
    """Batch renorm with its options.

    Attributes:
        r_max: Largest correction of the standard deviation, or a function of the step.
        d_max: Largest correction of the mean in standard deviations, or a function of the step.
        initialize_from_first_batch: Whether the first batch's statistics replace the initial 0 and 1.
    """

    r_max: Schedule = 3.0
    d_max: Schedule = 5.0
    initialize_from_first_batch: bool = False

    averages: ClassVar[tuple[str, ...]] = ("mean", "std")
    always_counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_limits(self.r_max, self.d_max)
        check_flags(self, "initialize_from_first_batch")

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
        """Normalize as `BatchNormLayer`; the first batch may give the statistics that it is corrected towards."""
        if self.initialize_from_first_batch and train and not self.frozen:
            running = self.statistics == "running"
            batch = self.moments(x, {}, features, mask) if running else self.by_batch(x, {}, features, mask)[1]
            state = first_batch(RenormStatistics.named(state), batch, epsilon=self.epsilon).by_name()
        return super().apply(x, parameters, state, gradient_state, features=features, train=train, mask=mask)

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by the running statistics, whose deviation includes `epsilon`."""
        axis, var = other_axes(features, x.ndim), lax.square(float32_or_wider(state["std"]))
        return normalize(without_hidden(x, where), state["mean"], var, **parameters, axis=axis, epsilon=0.0)

    def standardized(
        self,
        x: Array,
        over: Reduction,
        affine: Mapping[str, Array],
        where: Array | None,
        state: State | None,
    ) -> tuple[Array, Moments]:
        """Normalize a batch, or a chunk of it, corrected towards the running statistics in `state`; `None` is none."""
        if state is None:
            return super().standardized(x, over, affine, where, state)
        features = other_axes(over.axis, x.ndim)
        mean, std = (_expanded(name, state[name], x, features) for name in ("mean", "std"))
        r_max, d_max = (
            lax.stop_gradient(jnp.asarray(at_step(state.get("step"), limit), x.dtype))
            for limit in (self.r_max, self.d_max)
        )
        m = moments(x, over, where, use_fast_variance=self.use_fast_variance, remedy=REMEDY)
        r = jnp.clip(lax.stop_gradient(jnp.sqrt(m.var + self.epsilon) / std), 1 / r_max, r_max)
        d = jnp.clip(lax.stop_gradient(m.mean_minus(mean) / std), -d_max, d_max)
        scale = affine["scale"].astype(x.dtype) if "scale" in affine else jnp.ones_like(std)
        corrected, bias = r * scale, d * scale
        if "bias" in affine:
            bias = bias + affine["bias"].astype(x.dtype)
        return standardize(over, x, m, self.epsilon, corrected, bias, where), m

    def update(self, state: State, batch: BatchMoments) -> State:
        """Move the running statistics towards those of a batch."""
        var = batch.unbiased_var if self.unbiased_running_var else batch.var
        new = {"mean": batch.mean, "std": jnp.sqrt(var + self.epsilon)}
        return moved(state, new, self.momentum, batch.count)

    def merge(self, state: State, batch: BatchMoments) -> State:
        """Move the running mean and the TOTAL deviation towards those of a batch, by their squares."""
        std = float32_or_wider(state["std"])
        var = batch.unbiased_var if self.unbiased_running_var else batch.var
        squares = {**state, "var": lax.square(std)}
        after = merged(squares, batch.mean, var + self.epsilon, self.momentum, batch.count)
        counted = jnp.asarray(batch.count) > 0  # a root of a square need not be what it was
        after["std"] = where_counted(counted, jnp.sqrt(after.pop("var")), std)
        return after


def at_step(step: Array | None, schedule: Schedule) -> Array | float:
    """Evaluate a schedule; a number is itself."""
    if not callable(schedule):
        return schedule
    assert step is not None
    return schedule(whole(step))


def _expanded(name: str, statistic: Array, x: Array, features: tuple[int, ...]) -> Array:
    """Give a running statistic the rank and the dtype of `x`."""
    expanded = expand(f"running.{name}", statistic, x.shape, features)
    assert expanded is not None
    return expanded.astype(x.dtype)
