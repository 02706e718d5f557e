"""Batch norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.axes import Axes
from normlab._core.batch import (
    Batch,
    BatchMoments,
    batch_moments,
    check_ghost,
    merge,
    normalize,
    update,
    var_of,
    widened,
)
from normlab._core.checks import AxisName, check_epsilon, check_flags, check_where
from normlab._core.layer import State
from normlab._core.running import Momentum, RunningStatistics


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
    batch = Batch.of(x, axis, epsilon, where, axis_name, axis_index_groups, ghost_batch_size, use_fast_variance)
    return batch.normalize(x, scale, bias)


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
    return update(running, batch, var_of(batch, unbiased_running_var), momentum)


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
        >>> from normlab.functional import batch_moments
        >>> running = RunningStatistics(jnp.array([0.0]), jnp.array([1.0]), jnp.array(0))
        >>> for x in (1.0, 3.0):
        ...     running = merge_batch_norm(running, batch_moments(jnp.array([[x]])), momentum=None)
        >>> running.mean, running.spread
        (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    return merge(running, batch, var_of(batch, unbiased_running_var), running.spread, momentum)


Statistics = Literal["auto", "batch", "running"]
"""Statistics that normalize: those of the batch in training and running ones at evaluation (`auto`), or one in both."""


@dataclass(frozen=True)
class BatchLayer:
    """Batch norm with its options.

    Attributes:
        momentum: See `running_average`.
        epsilon: Inside the root.
        axis_name: See `batch_norm`.
        axis_index_groups: See `batch_norm`.
        use_fast_variance: See `batch_norm`.
        unbiased_running_var: See `update_batch_norm`.
        ghost_batch_size: See `batch_norm`.
        statistics: Statistics that normalize; `running` in training means those before this batch, as constants, which
            then take up the batch by `merge_batch_norm`, so that one element is enough and ghosts make no difference.
        frozen: Running statistics always, no update, no gradient into scale and bias.
    """

    momentum: Momentum = 0.99
    epsilon: float = 1e-5
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = False
    unbiased_running_var: bool = False
    ghost_batch_size: int | None = None
    statistics: Statistics = "auto"
    frozen: bool = False

    spread: ClassVar[str] = "var"

    def __post_init__(self) -> None:
        """Check the options."""
        check_epsilon(self.epsilon)
        check_ghost(self.ghost_batch_size)
        check_flags(self, "use_fast_variance", "unbiased_running_var", "frozen")
        if self.statistics not in get_args(Statistics):
            raise ValueError(f"Expected `statistics` to be one of {get_args(Statistics)}, got {self.statistics!r}.")
        check_momentum(self.momentum)

    @property
    def has_step(self) -> bool:
        """True where the state includes the number of updates."""
        return self.momentum is None or callable(self.momentum)

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return mean 0 and spread 1, float32, and step 0 where there is one."""
        step = {"step": jnp.zeros((), jnp.int32)} if self.has_step else {}
        return {"mean": jnp.zeros(shape, jnp.float32), self.spread: jnp.ones(shape, jnp.float32), **step}

    def gradient_state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return nothing."""
        return {}

    def apply(
        self,
        x: Array,
        parameters: State,
        state: State,
        gradient_state: State,
        *,
        axis: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Normalize by the batch or by the running statistics; see `Layer`."""
        check_where(mask, x.shape, "mask")
        running = widened(RunningStatistics.named(state, self.spread))
        if self.frozen:
            parameters = jax.tree.map(lax.stop_gradient, dict(parameters))
        if self.frozen or not (train or self.statistics == "batch"):
            return self.by_running(x, running, parameters, axis), state
        found: dict[str, Any] = {
            "axis": axis,
            "where": mask,
            "axis_name": self.axis_name,
            "axis_index_groups": self.axis_index_groups,
            "use_fast_variance": self.use_fast_variance,
        }
        if train and self.statistics == "running":
            y, running = self.before_batch(x, running, parameters, found)
            return y, running.by_name(self.spread)
        options = {**found, "epsilon": self.epsilon, "ghost_batch_size": self.ghost_batch_size}
        if not train:
            return batch_norm(x, **parameters, **options)[0], state
        y, running = self.by_batch(x, running, parameters, options)
        return y, running.by_name(self.spread)

    def by_running(self, x: Array, running: RunningStatistics, parameters: State, axis: tuple[int, ...]) -> Array:
        """Normalize by the running statistics."""
        return normalize(x, running.mean, running.spread, **parameters, axis=axis, epsilon=self.epsilon)

    def before_batch(
        self, x: Array, running: RunningStatistics, parameters: State, options: dict[str, Any]
    ) -> tuple[Array, RunningStatistics]:
        """Normalize by the running statistics before the batch, then let them take it up."""
        y = self.by_running(x, running, parameters, options["axis"])
        return y, merge_batch_norm(running, batch_moments(x, **options), **self._update)

    def by_batch(
        self, x: Array, running: RunningStatistics, parameters: State, options: dict[str, Any]
    ) -> tuple[Array, RunningStatistics]:
        """Normalize by the batch, and move the running statistics towards it."""
        y, batch = batch_norm(x, **parameters, **options)
        return y, update_batch_norm(running, batch, **self._update)

    @property
    def _update(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "unbiased_running_var": self.unbiased_running_var}


def check_momentum(momentum: object) -> None:
    """Raise unless `momentum` is a weight of the old value, a function of the step, or `None`."""
    if momentum is None or callable(momentum) or isinstance(momentum, jax.Array):
        return
    if not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
        raise ValueError(
            f"Expected `momentum`, the weight of the old value, to lie in [0, 1], got {momentum!r}. "
            "PyTorch's momentum is 1 minus this one."
        )
