"""One call of a layer that keeps state, shared by Linen and NNX: what to normalize by, and what the state becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab.functional._batch import (
    RunningStatistics,
    Schedule,
    batch_moments,
    batch_norm,
    batch_renorm,
    check_ghost,
    first_batch,
    merge_batch_norm,
    merge_batch_renorm,
    normalize,
    update_batch_norm,
    update_batch_renorm,
    widened,
)
from normlab.functional._checks import (
    Axes,
    AxisName,
    canonical_axes,
    check_epsilon,
    check_flag,
    check_flags,
    check_where,
    choose_groups,
)
from normlab.functional._example import group_norm
from normlab.functional._online import Guard, OnlineErrors, check_online_options, evaluate_online_norm, online_norm
from normlab.functional._statistics import Momentum, float32_or_wider
from normlab.functional._streaming import (
    Mix,
    StreamingMemory,
    StreamingSlopes,
    check_streaming_options,
    initial_streaming,
    streaming_norm,
)

Statistics = Literal["auto", "batch", "running"]
"""What normalizes: `auto`, the batch in training and running statistics at evaluation; or one of the two in both."""


class Renorm(NamedTuple):
    """Options of batch renorm, beside those of batch norm."""

    r_max: Schedule
    d_max: Schedule
    initialize_from_first_batch: bool


def check_batch_options(layer: Any) -> None:
    """Raise unless the options of a batch norm layer are of the right kind."""
    check_epsilon(layer.epsilon)
    check_ghost(layer.ghost_batch_size)
    check_flags(layer, "use_running_average", "use_fast_variance", "unbiased_running_var", "frozen")
    momentum, statistics = layer.momentum, layer.statistics
    if statistics not in get_args(Statistics):
        raise ValueError(f"Expected `statistics` to be one of {get_args(Statistics)}, got {statistics!r}.")
    if momentum is None or callable(momentum) or isinstance(momentum, jax.Array):
        return
    if not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
        raise ValueError(
            f"Expected `momentum`, the weight of the old value, to lie in [0, 1], got {momentum!r}. "
            "PyTorch's momentum is 1 minus this one."
        )


def choose_mode(attribute: bool | None, argument: bool | None) -> bool:
    """Return the one given of a module's `use_running_average` and its call's."""
    check_flag("use_running_average", argument)
    check_flag("use_running_average", attribute)
    if (attribute is None) == (argument is None):
        raise ValueError(
            "Expected `use_running_average` in the constructor or in the call, and in one of them only, got "
            f"{attribute} and {argument}. Pass False to train, True to evaluate."
        )
    return bool(argument if attribute is None else attribute)


def needs_step(momentum: Momentum, renorm: bool) -> bool:
    """Whether a layer's state includes the number of updates: always in batch renorm, so that its tree is one."""
    return renorm or momentum is None or callable(momentum)


def batch_layer(
    x: Array,
    running: RunningStatistics,
    scale: Array | None,
    bias: Array | None,
    *,
    use_running_average: bool,
    features: tuple[int, ...],
    momentum: Momentum,
    epsilon: float,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    use_fast_variance: bool = False,
    unbiased_running_var: bool = False,
    ghost_batch_size: int | None = None,
    statistics: Statistics = "auto",
    frozen: bool = False,
    renorm: Renorm | None = None,
) -> tuple[Array, RunningStatistics]:
    """Normalize `x` and return it with the state after the call, the same state where nothing is to change.

    Args:
        x: Activations.
        running: State before the call.
        scale: Gain, of the shape of the feature axes, or `None`.
        bias: Shift, likewise.
        use_running_average: True at evaluation: the state does not change.
        features: Feature axes; all others are reduced.
        momentum: See `running_average`.
        epsilon: Inside the root.
        where: Mask.
        axis_name: See `batch_norm`.
        axis_index_groups: See `batch_norm`.
        use_fast_variance: See `batch_norm`.
        unbiased_running_var: See `update_batch_norm`.
        ghost_batch_size: See `batch_norm`.
        statistics: What normalizes; `running` in training means the statistics before this batch, as constants, which
            then take up the batch by `merge_batch_norm`, so that one element is enough and ghosts make no difference.
        frozen: Running statistics always, no update, no gradient into scale and bias.
        renorm: Makes it batch renorm.
    """
    check_where(where, x.shape, "mask")
    running = widened(running)
    if frozen:
        scale, bias = jax.tree.map(lax.stop_gradient, (scale, bias))
    axis = tuple(a for a in range(x.ndim) if a not in features)

    def by_running() -> Array:
        var, inside = (running.spread, epsilon) if renorm is None else (lax.square(running.spread), 0.0)
        return normalize(x, running.mean, var, scale, bias, axis=axis, epsilon=inside)

    if frozen or (use_running_average and statistics != "batch"):
        return by_running(), running

    found: dict[str, Any] = {
        "axis": axis,
        "where": where,
        "axis_name": axis_name,
        "axis_index_groups": axis_index_groups,
        "use_fast_variance": use_fast_variance,
    }
    options = {**found, "epsilon": epsilon, "ghost_batch_size": ghost_batch_size}
    if use_running_average:
        return batch_norm(x, scale, bias, **options)[0], running

    update: dict[str, Any] = {"momentum": momentum, "unbiased_running_var": unbiased_running_var}
    if statistics == "running":
        batch = batch_moments(x, **found)
        if renorm is None:
            return by_running(), merge_batch_norm(running, batch, **update)
        if renorm.initialize_from_first_batch:
            running = first_batch(running, batch, epsilon=epsilon)
        return by_running(), merge_batch_renorm(running, batch, epsilon=epsilon, **update)
    if renorm is None:
        y, batch = batch_norm(x, scale, bias, **options)
        return y, update_batch_norm(running, batch, **update)
    if renorm.initialize_from_first_batch:
        _, batch = batch_norm(x, **options)
        running = first_batch(running, batch, epsilon=epsilon)
    limits = {name: _at(running.step, getattr(renorm, name)) for name in ("r_max", "d_max")}
    y, batch = batch_renorm(x, running, scale, bias, **limits, **options)
    return y, update_batch_renorm(running, batch, epsilon=epsilon, **update)


def group_first(
    x: Array,
    where: Array | None,
    *,
    num_groups: int | None,
    group_size: int | None,
    axis: Axes,
    epsilon: float,
) -> Array:
    """Apply the group norm of continual norm, which has no scale and no bias, and keep float32 for the batch norm."""
    features = canonical_axes(axis, x.ndim)
    if features != (x.ndim - 1,):
        raise ValueError(f"Expected `axis` to be the last, along which features are grouped, got {axis}.")
    num_groups, group_size = choose_groups(num_groups, group_size)
    x = float32_or_wider(x)
    return group_norm(x, num_groups=num_groups, group_size=group_size, epsilon=epsilon, where=where)


def initial_statistics(shape: Sequence[int], *, step: bool) -> RunningStatistics:
    """Return mean 0 and spread 1, float32, and step 0 where a step is needed."""
    shape = tuple(shape)
    return RunningStatistics(
        jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), jnp.zeros((), jnp.int32) if step else None
    )


class StreamLayer(Protocol):
    """A norm with a state that the forward pass changes, and one whose gradient is its new value.

    Attributes:
        names: Of the arrays of the first.
    """

    names: ClassVar[tuple[str, ...]]

    def initial(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Return both states at the start, named tuples."""
        ...

    def train(self, x: Array, state: Any, carried: Any, **options: Any) -> tuple[Array, Any]:
        """Normalize, and return the first state after it, too."""
        ...

    def evaluate(self, x: Array, state: Any, **options: Any) -> Array:
        """Normalize by the first state."""
        ...


@dataclass(frozen=True)
class OnlineLayer:
    """Online norm with its options; see `online_norm`."""

    momentum: Array | float
    backward_momentum: Array | float
    epsilon: float
    guard: Guard

    names: ClassVar[tuple[str, ...]] = ("mean", "var")

    def __post_init__(self) -> None:
        """Check the options."""
        check_online_options(self.momentum, self.backward_momentum, self.epsilon, self.guard)

    def initial(self, shape: tuple[int, ...]) -> tuple[RunningStatistics, OnlineErrors]:
        """Return mean 0, variance 1 and no errors."""
        zeros = jnp.zeros(shape, jnp.float32)
        return initial_statistics(shape, step=False), OnlineErrors(zeros, zeros)

    def train(
        self, x: Array, state: RunningStatistics, carried: OnlineErrors, **options: Any
    ) -> tuple[Array, RunningStatistics]:
        """Normalize the next examples of the stream."""
        return online_norm(x, state, carried, **vars(self), **options)

    def evaluate(self, x: Array, state: RunningStatistics, **options: Any) -> Array:
        """Normalize by the running statistics."""
        return evaluate_online_norm(x, state, epsilon=self.epsilon, guard=self.guard, **options)


@dataclass(frozen=True)
class StreamingLayer:
    """Streaming norm with its options; see `streaming_norm`."""

    mix: Mix
    backward_mix: Mix
    momentum: Array | float
    backward_momentum: Array | float
    calls_per_update: int
    epsilon: float

    names: ClassVar[tuple[str, ...]] = StreamingMemory._fields

    def __post_init__(self) -> None:
        """Check the options."""
        check_streaming_options(**vars(self))

    def initial(self, shape: tuple[int, ...]) -> tuple[StreamingMemory, StreamingSlopes]:
        """Return a long memory of mean 0 and variance 1, and nothing else."""
        return initial_streaming(shape)

    def train(
        self, x: Array, state: StreamingMemory, carried: StreamingSlopes, **options: Any
    ) -> tuple[Array, StreamingMemory]:
        """Normalize a batch."""
        return streaming_norm(x, state, carried, **vars(self), **options)

    def evaluate(self, x: Array, state: StreamingMemory, **options: Any) -> Array:
        """Normalize by the long memory, which after an update of the weights has taken up the short one."""
        options.pop("where")  # which no output depends on
        return normalize(x, state.mean, state.var, epsilon=self.epsilon, **options)


def _at(step: Array | None, schedule: Schedule) -> Array | float:
    return schedule(step) if callable(schedule) and step is not None else schedule  # pyright: ignore[reportReturnType]
