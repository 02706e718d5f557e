"""State that the backward pass updates, shared by the norms for streams."""

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from normlab._core.checks import check_real
from normlab._core.dtypes import wide_dtype
from normlab._core.ghost import whole_first
from normlab._core.reduction import Axes, canonical_axes, expand
from normlab._core.sharding import aligned, spread_like

States = TypeVar("States", bound=NamedTuple)


def check_weight(name: str, weight: object) -> None:
    """Raise a `ValueError` unless a weight of an old value is a number in [0, 1]."""
    if isinstance(weight, jax.Array):  # traced: a study may vary it
        return
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ValueError(f"Expected `{name}`, the weight of the old value, to lie in [0, 1], got {weight!r}.")


def stream_features(x: Array, axis: Axes | None) -> tuple[int, ...]:
    """Check a stream of examples, and return the feature axes: those that are not in `axis`."""
    check_real(x)
    reduced = tuple(range(x.ndim - 1)) if axis is None else canonical_axes(axis, x.ndim)
    if 0 not in reduced:
        raise ValueError(f"Expected `x` of shape [examples, ..., features] and its first axis in `axis`, got {axis}.")
    return tuple(a for a in range(x.ndim) if a not in reduced)


def wide_state(name: str, state: Array, shape: tuple[int, ...], features: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Give a state the rank and the dtype of activations; the gradient goes back through both."""
    expanded = expand(name, state, shape, features)
    assert expanded is not None
    return expanded.astype(dtype)


def own_gradient(states: States) -> States:
    """Let no gradient be taken by states, whose gradients are their new values, that are narrower than float32."""
    named: dict[str, Array] = states._asdict()
    return states._replace(
        **{name: a if a.dtype == wide_dtype(a.dtype) else _not_its_gradient(name, a) for name, a in named.items()}
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _not_its_gradient(name: str, state: Array) -> Array:
    """Return a state whose gradient, of its own narrow dtype, cannot be its new value."""
    return state


def _refuse_gradient(name: str, state: Array) -> tuple[Array, None]:
    raise TypeError(
        f"Expected `{name}` in float32 or wider, since its gradient is its new value and has its dtype, in which "
        f"updates round away, got {state.dtype}. Cast this state back to float32 (Linen: "
        "`_overwrite_with_gradient`, NNX: `OverwriteWithGradient`)."
    )


def _pass_on(name: str, _: None, gradient: Array) -> tuple[Array]:
    return (gradient,)


_not_its_gradient.defvjp(_refuse_gradient, _pass_on)


def kept_wide(state: Array, old: Array) -> Array:
    """Give a new state the shape of the old one, and its dtype, or float32 where that is narrower."""
    return state.reshape(old.shape).astype(wide_dtype(old.dtype))


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
