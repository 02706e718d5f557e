"""Batch norm and batch renorm as Flax modules call them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.batch import batch_moments, check_ghost, first_batch, normalize, widened
from normlab._core.checks import AxisName, check_epsilon, check_flag, check_flags, check_where
from normlab._core.running import Momentum, RunningStatistics
from normlab.functional.batch_norm import batch_norm, merge_batch_norm, update_batch_norm
from normlab.functional.batch_renorm import Schedule, batch_renorm, merge_batch_renorm, update_batch_renorm
from normlab.functional.streaming_norm import (
    at_step,
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
    limits = {name: at_step(running.step, getattr(renorm, name)) for name in ("r_max", "d_max")}
    y, batch = batch_renorm(x, running, scale, bias, **limits, **options)
    return y, update_batch_renorm(running, batch, epsilon=epsilon, **update)


def initial_statistics(shape: Sequence[int], *, step: bool) -> RunningStatistics:
    """Return mean 0 and spread 1, float32, and step 0 where a step is needed."""
    shape = tuple(shape)
    return RunningStatistics(
        jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), jnp.zeros((), jnp.int32) if step else None
    )
