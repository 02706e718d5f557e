"""Batch norm: statistics of a batch, and their running averages."""

import numbers
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from normlab._core.checks import AxisName, check_epsilon, check_flags, check_real, check_statistics, check_where
from normlab._core.collectives import Devices
from normlab._core.dtypes import float32_or_wider, output_dtype, whole
from normlab._core.ghost import check_chunks, check_ghost, each_ghost
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import (
    Axes,
    Moments,
    Reduction,
    all_but,
    canonical_axes,
    elements,
    expand_affine,
    expand_where,
    moments,
    other_axes,
    reduction,
)
from normlab._core.sharding import aligned
from normlab._core.standardize import normalize, standardize

Momentum = float | Callable[[Array], Array | float] | None
"""Weight of the OLD value; a function of the step; or `None` for the plain average of all batches so far."""

Statistics = Literal["auto", "batch", "running"]
"""Statistics that normalize: those of the batch in training and running ones at evaluation (`auto`), or one in both."""

REMEDY = (
    "Use a larger batch, `axis_name` for statistics across devices, running statistics, or a norm that needs no batch "
    "(layer, RMS, group)"
)


class RunningStatistics(NamedTuple):
    """State of a batch norm between calls, all arrays.

    Attributes:
        mean: Running mean, of the shape of the feature axes; updates return it in float32 or wider, whatever its dtype.
        var: Running variance, likewise.
        step: Updates so far, an int32 scalar; `None` where nothing depends on it.
    """

    mean: Array
    var: Array
    step: Array | None = None

    @classmethod
    def named(cls, arrays: Mapping[str, Array]) -> "RunningStatistics":
        """Return statistics from arrays by the names of a module's variables, of which `step` can be missing."""
        return cls(**arrays)

    def by_name(self) -> dict[str, Array]:
        """Undo `named`."""
        return {name: array for name, array in self._asdict().items() if array is not None}


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

    @classmethod
    def of(cls, m: Moments, shape: Sequence[int]) -> "BatchMoments":
        """Return the moments as constants of `shape`."""
        n = jnp.asarray(m.count, m.var.dtype)
        unbiased_var = m.var * jnp.where(n > 1, n / jnp.maximum(n - 1, 1), 1)
        assert m.near is not None
        mean = m.near if m.rest is None else m.near + m.rest
        return cls(
            lax.stop_gradient(mean.reshape(shape)),
            lax.stop_gradient(m.var.reshape(shape)),
            lax.stop_gradient(unbiased_var.reshape(shape)),
            m.count.reshape(shape) if isinstance(m.count, Array) else m.count,
        )

    @classmethod
    def averaged(cls, m: Moments, devices: Devices | None, shape: Sequence[int]) -> "BatchMoments":
        """Average the moments of chunks by their counts, over chunks, the first axis, and devices."""
        of_chunks = cls.of(m, m.var.shape)
        parts = (of_chunks.mean, of_chunks.var, of_chunks.unbiased_var, jnp.ones_like(m.var))
        sums = jnp.stack([(m.count * part).sum(0) for part in parts])
        *parts, count = sums if devices is None else devices.sum(sums)
        mean, var, unbiased_var = ((part / jnp.maximum(count, 1)).reshape(shape) for part in parts)
        return cls(mean, var, unbiased_var, count.reshape(shape))


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
    layer = BatchNormLayer(
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
        ghost_batch_size=ghost_batch_size,
    )
    return run_batch(layer, x, where, axis, scale, bias)


def run_batch(
    layer: "BatchLayer",
    x: ArrayLike,
    where: Array | None,
    axis: Axes | None,
    scale: Array | None,
    bias: Array | None,
    state: State | None = None,
    **parameters: Array | None,
) -> tuple[Array, BatchMoments]:
    """Run a norm over a batch as a function of arrays, as `normlab._core.layer.run` does norms without state.

    Args:
        layer: The norm.
        x: Activations.
        where: True where an element counts, broadcastable to `x`.
        axis: Axes reduced; `None` means all but the last.
        scale: Gain for each feature; for each example and feature; or broadcastable to `x`.
        bias: Shift of the same kind.
        state: Statistics before the batch, of a norm that looks at them in training.
        **parameters: The norm's own, by name.

    Returns:
        The output, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the batch.
    """
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    features = feature_axes(x.ndim, axis)
    own, by = separated(scale, bias, x.shape, features)
    y, batch = layer.by_batch(x, own | parameters, features, where, state)
    return modulated(y, by, features, where).astype(output_dtype(x)), batch


def feature_axes(ndim: int, axis: Axes | None) -> tuple[int, ...]:
    """Return the axes that are not reduced; `None` reduces all but the last."""
    return (ndim - 1,) if axis is None else other_axes(canonical_axes(axis, ndim), ndim)


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
    check_real(x)
    check_where(where, x.shape)
    layer = BatchNormLayer(
        axis_name=axis_name, axis_index_groups=axis_index_groups, use_fast_variance=use_fast_variance
    )
    return layer.moments(x, {}, feature_axes(x.ndim, axis), where)


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
    check_statistics(running, RunningStatistics, "A running variance is `std**2 - epsilon`.")
    layer = BatchNormLayer(momentum=momentum, unbiased_running_var=unbiased_running_var)
    return RunningStatistics.named(layer.update(running.by_name(), batch))


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
        >>> running.mean, running.var
        (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    check_statistics(running, RunningStatistics, "A running variance is `std**2 - epsilon`.")
    layer = BatchNormLayer(momentum=momentum, unbiased_running_var=unbiased_running_var)
    return RunningStatistics.named(layer.merge(running.by_name(), batch))


def moved(state: State, new: Mapping[str, Array], momentum: Momentum, count: Array | float) -> dict[str, Array]:
    """Move running averages towards the statistics of a batch: `momentum * old + (1 - momentum) * new`.

    Args:
        state: Running averages by name, and perhaps `step`. In half precision updates would round away, so that
            averages are widened.
        new: Statistics of the batch by the names of their averages, of the same shapes.
        momentum: Weight of the old value, or a function of the step, or `None` for the plain average.
        count: Elements behind `new`, broadcastable to it.

    Returns:
        The new state, in float32 or wider. There is no gradient, and no change with fewer than two elements counted.
    """
    step = whole(state["step"]) if "step" in state else None
    after: dict[str, Array] = {}
    for name, statistic in new.items():
        average = state[name] if state[name].dtype == jnp.float32 else float32_or_wider(state[name])
        decay = momentum if isinstance(momentum, int | float) else _decay(momentum, step, average.dtype)
        update = decay * average + (1 - decay) * statistic.astype(average.dtype)
        if isinstance(count, Array) or count < 2:
            update = where_counted(jnp.asarray(count) > 1, update, average)
        after[name] = lax.stop_gradient(update)
    if step is not None:
        after["step"] = step + jnp.any(jnp.asarray(count) > 1).astype(step.dtype)
    return after


def merged(state: State, mean: Array, var: Array, momentum: Momentum, count: Array | float) -> dict[str, Array]:
    """Move running mean and TOTAL variance towards those of a batch: the spread between batches counts, too.

    `momentum * var + (1 - momentum) * (new_var + momentum * (new_mean - mean)^2)`. With `momentum=None` these are mean
    and variance of all that came, every batch weighing the same (Chan et al., 1979).

    Args:
        state: Running `mean` and `var`, and perhaps `step`.
        mean: Mean of the batch.
        var: Variance of the batch.
        momentum: See `moved`.
        count: See `moved`.

    Returns:
        As `moved`, with no change where nothing is counted.
    """
    step = whole(state["step"]) if "step" in state else None
    old_mean, old_var = float32_or_wider(state["mean"]), float32_or_wider(state["var"])
    decay = _decay(momentum, step, old_mean.dtype)
    apart = mean.astype(old_mean.dtype) - old_mean
    within = var.astype(old_var.dtype) + decay * lax.square(apart)
    new = {"mean": (old_mean + (1 - decay) * apart, old_mean), "var": (decay * old_var + (1 - decay) * within, old_var)}
    after: dict[str, Array] = {}
    for name, (update, old) in new.items():
        if isinstance(count, Array) or count < 1:
            update = where_counted(jnp.asarray(count) > 0, update, old)
        after[name] = lax.stop_gradient(update)
    if step is not None:
        after["step"] = step + jnp.any(jnp.asarray(count) > 0).astype(step.dtype)
    return after


def where_counted(counted: Array, moved: Array, old: Array) -> Array:
    """Return the new running average where there is one, and the old one elsewhere."""
    condition, new, kept = aligned(counted, moved, old) if counted.ndim else (counted, *aligned(moved, old))
    return jnp.where(condition, new, kept)


def _decay(momentum: Momentum, step: Array | None, dtype: DTypeLike) -> Array | float:
    """Return the weight of the old value, as a number where it is one, to be subtracted from 1 before it is rounded."""
    decay: Momentum | Array = momentum
    if momentum is None or callable(momentum):
        assert step is not None
        decay = step / (step + 1) if momentum is None else momentum(step)
    return decay if isinstance(decay, int | float) else jnp.asarray(decay, dtype)


def batch_elements(x: Array, axis: Axes, axis_name: AxisName | None = None) -> int:
    """Return how many elements one statistic of a batch norm covers, masks aside."""
    return elements(x.shape, reduction(canonical_axes(axis, x.ndim), axis_name=axis_name))


@dataclass(frozen=True)
class BatchLayer(Layer):
    """A norm by statistics of a batch, which it keeps running averages of; a subclass says which statistics.

    Attributes:
        axis: Feature axis or axes.
        momentum: Weight of the OLD running value; see `update_batch_norm`.
        axis_name: See `batch_norm`.
        axis_index_groups: See `batch_norm`.
        ghost_batch_size: See `batch_norm`.
        statistics: Statistics that normalize; `running` in training means those before this batch, as constants, which
            then take up the batch by `merge_batch_norm`, so that one element is enough and ghosts make no difference.
        frozen: Running statistics always, no update, no gradient into parameters.
    """

    axis: Axes = -1
    momentum: Momentum = 0.99
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    ghost_batch_size: int | None = None
    statistics: Statistics = "auto"
    frozen: bool = False

    feature_option: ClassVar[str] = "axis"
    stateful: ClassVar[bool] = True
    averages: ClassVar[tuple[str, ...]] = ("mean", "var")
    always_counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options."""
        if type(self.frozen) is not bool:
            check_flags(self, "frozen")
        if self.statistics not in get_args(Statistics):
            raise ValueError(f"Expected `statistics` to be one of {get_args(Statistics)}, got {self.statistics!r}.")
        if self.ghost_batch_size is not None:
            check_ghost(self.ghost_batch_size)
        if not (isinstance(self.momentum, float) and 0 <= self.momentum <= 1):
            check_momentum(self.momentum)

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return the running statistics, and `step`, which training needs where options depend on it."""
        if self.always_counts or self.momentum is None or callable(self.momentum):
            return (*self.averages, "step"), () if train and not self.frozen else ("step",)
        return self.averages, ("step",)

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return mean 0 and variance or deviation 1, float32, and step 0 where there is one."""
        start = {name: jnp.full(shape, float(name != "mean"), jnp.float32) for name in self.averages}
        return start | ({"step": jnp.zeros((), jnp.int32)} if "step" in self.names(True)[0] else {})

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm of a whole batch on a single device, which evaluates where the batch is one element."""
        alone = elements(x.shape, reduction(other_axes(features, x.ndim))) == 1
        single = replace(self, axis_name=None, axis_index_groups=None, ghost_batch_size=None, statistics="auto")
        return single, train and not alone

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
        """Normalize by the batch or by the running statistics; see `Layer`."""
        if self.frozen:
            parameters = jax.tree.map(lax.stop_gradient, dict(parameters))
        if self.frozen or not (train or self.statistics == "batch"):
            return self.by_running(x, state, parameters, features, mask), state
        if train and self.statistics == "running":
            return self.before_batch(x, state, parameters, features, mask)
        y, batch = self.by_batch(x, parameters, features, mask, state if train else None)
        return y, self.update(state, batch) if train else state

    @abstractmethod
    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by the running statistics."""

    def before_batch(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], mask: Array | None
    ) -> tuple[Array, State]:
        """Normalize by the running statistics before the batch, then let them take it up."""
        y = self.by_running(x, state, parameters, features, mask)
        return y, self.merge(state, self.moments(x, parameters, features, mask))

    def by_batch(
        self,
        x: Array,
        parameters: Parameters,
        features: tuple[int, ...],
        where: Array | None,
        state: State | None = None,
    ) -> tuple[Array, BatchMoments]:
        """Normalize by the batch; the output is in float32 or wider."""
        over = all_but(features, x.ndim, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        shape = tuple(map(x.shape.__getitem__, features))
        x = x if x.dtype == jnp.float32 else float32_or_wider(x)
        affine = self.expanded(parameters, x.shape, features)
        where = where if where is None else expand_where(where, x.ndim)
        size, devices = self.ghost_batch_size, over.devices
        if size is not None:
            over = over._replace(devices=None)
            check_chunks(size, x, over, devices)
        if size is None or (devices is None and size >= x.shape[0]):
            y, m = self.standardized(x, over, affine, where, state)
            return y, BatchMoments.of(m, shape)

        def chunk(x: Array, where: Array | None) -> tuple[Array, Moments]:
            y, m = self.standardized(x, over, affine, where, state)
            return y, replace(m, count=jnp.broadcast_to(jnp.asarray(m.count, x.dtype), m.var.shape))

        y, m = each_ghost(chunk, x, where, size)
        return y, BatchMoments.averaged(m, devices, shape)

    def expanded(
        self, parameters: Parameters, shape: tuple[int, ...], features: tuple[int, ...]
    ) -> Mapping[str, Array]:
        """Return parameters by name, checked, as `standardized` takes them."""
        return expand_affine(parameters, shape, features)

    @abstractmethod
    def standardized(
        self,
        x: Array,
        over: Reduction,
        affine: Mapping[str, Array],
        where: Array | None,
        state: State | None,
    ) -> tuple[Array, Moments]:
        """Normalize a batch, or a chunk of it, by its own moments."""

    @abstractmethod
    def moments(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> BatchMoments:
        """Return the moments of a batch, which may be one element."""

    @abstractmethod
    def update(self, state: State, batch: BatchMoments) -> State:
        """Move the running statistics towards those of a batch."""

    @abstractmethod
    def merge(self, state: State, batch: BatchMoments) -> State:
        """Move the running statistics towards those of a batch, which may be one element."""


@dataclass(frozen=True)
class BatchNormLayer(BatchLayer):
    """Batch norm with its options.

    Attributes:
        epsilon: Inside the root.
        use_fast_variance: See `batch_norm`.
        unbiased_running_var: See `update_batch_norm`.
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False
    unbiased_running_var: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if type(self.epsilon) is not float or not 0 <= self.epsilon < 1:
            check_epsilon(self.epsilon)
        if {*map(type, (self.use_fast_variance, self.unbiased_running_var))} != {bool}:
            check_flags(self, "use_fast_variance", "unbiased_running_var")
        super().__post_init__()

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by the running statistics."""
        axis = other_axes(features, x.ndim)
        x = without_hidden(x, where)
        return normalize(x, state["mean"], state["var"], **parameters, axis=axis, epsilon=self.epsilon)

    def standardized(
        self,
        x: Array,
        over: Reduction,
        affine: Mapping[str, Array],
        where: Array | None,
        state: State | None,
    ) -> tuple[Array, Moments]:
        """Normalize a batch, or a chunk of it, by its own moments."""
        m = moments(x, over, where, use_fast_variance=self.use_fast_variance, remedy=REMEDY)
        return standardize(over, x, m, self.epsilon, **affine, where=where), m

    def moments(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> BatchMoments:
        """Return the moments of a batch, which may be one element."""
        over = all_but(features, x.ndim, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        where = expand_where(where, x.ndim)
        m = moments(float32_or_wider(x), over, where, use_fast_variance=self.use_fast_variance)
        return BatchMoments.of(m, tuple(map(x.shape.__getitem__, features)))

    def update(self, state: State, batch: BatchMoments) -> State:
        """Move the running statistics towards those of a batch."""
        var = batch.unbiased_var if self.unbiased_running_var else batch.var
        return moved(state, {"mean": batch.mean, "var": var}, self.momentum, batch.count)

    def merge(self, state: State, batch: BatchMoments) -> State:
        """Move the running mean and the TOTAL variance towards those of a batch."""
        var = batch.unbiased_var if self.unbiased_running_var else batch.var
        return merged(state, batch.mean, var, self.momentum, batch.count)


def check_momentum(momentum: object) -> None:
    """Raise unless `momentum` is a weight of the old value, a function of the step, or `None`."""
    if momentum is None or callable(momentum) or isinstance(momentum, jax.Array):
        return
    if not isinstance(momentum, numbers.Real) or not 0 <= float(momentum) <= 1:
        raise ValueError(
            f"Expected `momentum`, the weight of the old value, to lie in [0, 1], got {momentum!r}. "
            "PyTorch's momentum is 1 minus this one."
        )
