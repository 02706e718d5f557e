"""Running averages of statistics."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from normlab._core.chunking import whole_first
from normlab._core.sharding import aligned, spread_like

Momentum = float | Callable[[Array], Array | float] | None
"""Weight of the OLD value; a function of the step; or `None` for the plain average of all batches so far."""


def running_average(old: Array, new: Array, momentum: Momentum, step: Array | None, count: Array | float) -> Array:
    """Move the running average `old` towards `new`; no gradient, and no change with fewer than two elements counted.

    `momentum * old + (1 - momentum) * new`; with `momentum=None` the plain average of all batches so far.

    Args:
        old: Running average, in float32 or wider: in half precision updates would round away.
        new: Statistics of this batch, of the same shape.
        momentum: Weight of the old value, or a function of the step, or `None`.
        step: Updates made so far, an integer scalar; needed unless `momentum` is a number.
        count: Elements behind `new`, broadcastable to it.

    Returns:
        The new running average, in the dtype of `old`.
    """
    decay = _decay(momentum, step, old.dtype)
    moved = decay * old + (1 - decay) * new.astype(old.dtype)
    if isinstance(count, Array) or count < 2:
        moved = where_counted(jnp.asarray(count) > 1, moved, old)
    return lax.stop_gradient(moved)


def merged_average(
    old: tuple[Array, Array], new: tuple[Array, Array], momentum: Momentum, step: Array | None, count: Array | float
) -> tuple[Array, Array]:
    """Move running mean and TOTAL variance towards those of a batch; no gradient, no change with nothing counted.

    `momentum * var + (1 - momentum) * (new_var + momentum * (new_mean - mean)^2)`: the spread between batches counts,
    too, so that one element is enough. With `momentum=None` these are mean and variance of all that came, every batch
    weighing the same (Chan et al., 1979).

    Args:
        old: Running mean and variance, in float32 or wider.
        new: Those of this batch.
        momentum: See `running_average`.
        step: See `running_average`.
        count: Elements behind `new`, broadcastable to it.

    Returns:
        The new running mean and variance, in the dtype of the old ones.
    """
    (mean, var), (new_mean, new_var) = old, (a.astype(b.dtype) for a, b in zip(new, old, strict=True))
    decay = _decay(momentum, step, mean.dtype)
    apart = new_mean - mean
    moved = mean + (1 - decay) * apart, decay * var + (1 - decay) * (new_var + decay * lax.square(apart))
    if isinstance(count, Array) or count < 1:
        moved = (where_counted(jnp.asarray(count) > 0, a, b) for a, b in zip(moved, old, strict=True))
    mean, var = map(lax.stop_gradient, moved)
    return mean, var


def where_counted(counted: Array, moved: Array, old: Array) -> Array:
    """Return the new running average where there is one, and the old one elsewhere."""
    return jnp.where(*(aligned(counted, moved, old) if counted.ndim else (counted, *aligned(moved, old))))


def _decay(momentum: Momentum, step: Array | None, dtype: DTypeLike) -> Array | float:
    """The weight of the old value, as a number where it is one, to be subtracted from 1 before it is rounded."""
    decay: Momentum | Array = momentum
    if momentum is None or callable(momentum):
        assert step is not None
        decay = step / (step + 1) if momentum is None else momentum(step)
    return decay if isinstance(decay, int | float) else jnp.asarray(decay, dtype)


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


def as_weights(momentum: Array | float, dtype: DTypeLike) -> tuple[Array, Array]:
    """Return the weights of the old and the new value; a number is subtracted from 1 before it is rounded."""
    return jnp.asarray(momentum, dtype), jnp.asarray(1 - momentum, dtype)


def recurrence(decay: Array, drive: Array, start: Array) -> tuple[Array, Array]:
    """Solve `state[i + 1] = decay[i] * state[i] + drive[i]` along the first axis.

    Args:
        decay: `[n, ...]`.
        drive: `[n, ...]`.
        start: The first state, `[1, ...]`.

    Returns:
        The states that each step starts from, `[n, ...]`, and the last state, `[1, ...]`.
    """
    if drive.shape[0] == 1:
        return start, decay * start + drive
    decay, split, start = aligned(decay, drive, start)
    decay, drive = whole_first(decay), whole_first(split)

    def step(state: Array, by: tuple[Array, Array]) -> tuple[Array, Array]:
        return by[0] * state + by[1], state

    last, states = lax.scan(step, start[0], (decay, drive))  # a parallel scan takes as long, and longer to compile
    return spread_like(states, split), last[None]
