"""Online norm: one example after the other, with a backward pass of its own and state on both passes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import (
    check_epsilon,
    check_real,
    check_where,
)
from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import Axes, Reduction, expand, expand_where, means, moments, other_axes, reduction
from normlab._core.roots import reciprocal_root
from normlab._core.sharding import spread_like
from normlab._core.standardize import normalize, scaled
from normlab._core.stream import (
    as_weights,
    check_weight,
    kept_wide,
    own_gradient,
    recurrence,
    stream_features,
    wide_state,
)
from normlab.functional.batch_norm import RunningStatistics
from normlab.functional.rms_norm import rms_norm

Guard = Literal["layer_scaling", "clamp"] | None
"""Guard against outputs that run away between updates of the statistics; `None` is none."""

CLAMPED_AT = 5.0
"""Outputs of the guard `clamp` lie between minus this and this."""


class OnlineErrors(NamedTuple):
    """State that online norm carries from one backward pass to the next, of the shape of the feature axes.

    Attributes:
        along_y: Accumulated component of the gradient along the normalized values.
        along_one: Accumulated mean of the gradient that was passed on.
    """

    along_y: Array
    along_one: Array


def online_norm(
    x: Array,
    running: RunningStatistics,
    errors: OnlineErrors,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    momentum: Array | float = 0.999,
    backward_momentum: Array | float = 0.99,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    guard: Guard = "layer_scaling",
) -> tuple[Array, RunningStatistics]:
    """Standardize each example by the statistics of those before it (Chiley et al., 2019).

    `y = (x - mean) / sqrt(var + epsilon)`, example by example, where after each of them
    `var <- momentum * var + (1 - momentum) * (var(x) + momentum * (mean(x) - mean)^2)` and
    `mean <- momentum * mean + (1 - momentum) * mean(x)`. Then `y * scale + bias`, and the guard.

    Statistics: over the positions of one example, per feature, averaged over the examples so far; in float32 or wider.
    Where there are no positions `var(x)` is 0, and the variance is the spread between examples.

    A batch is a piece of the stream: its examples are taken in order, with exactly the outputs and states that they
    would have had one by one. Under `jax.jit` with a batch sharded over devices, that is still the order of the whole
    batch, for which devices exchange their examples' statistics. There is no `axis_name`: under `jax.shard_map`,
    `jax.pmap` and `jax.vmap` each device or model has a stream, and states, of its own.

    The backward pass is not the derivative of the forward pass, through which no gradient of `mean` and `var` flows.
    From the gradient of the normalized values, `dy`, in the same order of examples,
    `d = dy - (1 - backward_momentum) * along_y * y`, `along_y <- along_y + mean(d * y)`;
    `dx = d / sqrt(var + epsilon) - (1 - backward_momentum) * along_one`, `along_one <- along_one + mean(dx)`.
    A backward pass can write no state, so **the gradient with respect to `errors` is their new value**: replace them
    by it, and hand it to no optimizer. There must be one call for each gradient, since JAX adds up what several calls
    give, and the sum of states is no state. The errors grow with the loss: the mean over a batch of n makes them n
    times as small as its examples one by one, their sum makes them the same.

    Reverse mode works once, under `jax.jit`, `jax.vmap`, `jax.checkpoint` and in `jax.lax.scan`. There is no forward
    mode (`jax.jvp`, `jax.hessian`) and no second derivative.

    Args:
        x: Activations, `[examples, ..., features]`, the oldest example first.
        running: Mean and variance before the first example.
        errors: From the backward pass before this one; zeros at the start.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        momentum: Weight of the OLD statistics when an example comes.
        backward_momentum: 1 minus the rate at which accumulated errors are paid back.
        axis: Axes reduced, the first, that of the examples, among them; `None` means all but the last.
        epsilon: Added to the variance, inside the root, and to the mean square of layer scaling.
        where: True where an element counts, broadcastable to `x`; the others are neither read nor given a gradient,
            and come out as `bias`.
        guard: `layer_scaling` divides each example by its root mean square over all features and positions; `clamp`
            limits outputs to 5 in size.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and mean and variance after the last example,
        in float32 or wider.

    Raises:
        ValueError: If a shape, an axis, a momentum, `epsilon` or `guard` does not fit.

    Example:
        >>> running = RunningStatistics(jnp.zeros(1), jnp.full(1, 2.0))
        >>> errors = OnlineErrors(jnp.zeros(1), jnp.zeros(1))
        >>> x = jnp.array([[0.0], [3.0]])
        >>> y, after = online_norm(x, running, errors, momentum=0.5, epsilon=0.0, guard=None)
        >>> y.ravel(), after.mean, after.var
        (Array([0., 3.], dtype=float32), Array([1.5], dtype=float32), Array([2.75], dtype=float32))

    References:
        Chiley et al. Online Normalization for Training Neural Networks. NeurIPS 2019. https://arxiv.org/abs/1905.05894
    """
    x = jnp.asarray(x)
    features = stream_features(x, axis)
    check_online_options(momentum, backward_momentum, epsilon, guard)
    check_where(where, x.shape)
    own, by = separated(scale, bias, x.shape, features)
    scale, bias = (expand(name, own.get(name), x.shape, features) for name in ("scale", "bias"))
    where = expand_where(where, x.ndim)
    wide = float32_or_wider(x)
    averages, errors = [running.mean, running.var], own_gradient(errors)
    before = [spread_like(wide_state("running", a, x.shape, features, wide.dtype), wide) for a in averages]
    carried = [spread_like(wide_state("errors", a, x.shape, features, wide.dtype), wide) for a in errors]
    over = reduction(tuple(a for a in range(1, x.ndim) if a not in features))
    weights = [as_weights(m, wide.dtype) for m in (momentum, backward_momentum)]
    result: Any = _online(over, wide, before, carried, where, *weights, jnp.asarray(epsilon, wide.dtype))
    y, after = result
    mean, var = (kept_wide(a, old) for a, old in zip(after, averages, strict=True))
    y = guarded(scaled(y, scale, bias), guard, epsilon=epsilon, where=where)
    return modulated(y, by, features, where).astype(output_dtype(x)), running._replace(mean=mean, var=var)


def evaluate_online_norm(
    x: Array,
    running: RunningStatistics,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    guard: Guard = "layer_scaling",
) -> Array:
    """Standardize by the statistics of a stream that has ended: online norm at inference.

    Args:
        x: Activations, `[examples, ..., features]`.
        running: Mean and variance.
        scale: See `online_norm`.
        bias: See `online_norm`.
        axis: See `online_norm`.
        epsilon: See `online_norm`.
        where: True where an element counts, which matters to layer scaling.
        guard: See `online_norm`.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape, an axis, `epsilon` or `guard` does not fit.
    """
    x = jnp.asarray(x)
    features = stream_features(x, axis)
    check_guard(guard)
    check_where(where, x.shape)
    own, by = separated(scale, bias, x.shape, features)
    y = normalize(
        without_hidden(float32_or_wider(x), where), running.mean, running.var, **own, axis=axis, epsilon=epsilon
    )
    return modulated(guarded(y, guard, epsilon=epsilon, where=where), by, features, where).astype(output_dtype(x))


def guarded(x: Array, guard: Guard, *, epsilon: float = 1e-5, where: Array | None = None) -> Array:
    """Keep the size of activations in bounds (Chiley et al., 2019, section 3.4).

    Args:
        x: Activations, `[examples, ..., features]`.
        guard: `layer_scaling` is RMS norm over all axes but the first; `clamp` limits to 5 in size, with no gradient
            beyond; `None` is `x`.
        epsilon: Added to the mean square, inside the root.
        where: True where an element counts.

    Returns:
        Activations of the same shape.

    Example:
        >>> guarded(jnp.array([[6.0, -8.0]]), "clamp")
        Array([[ 5., -5.]], dtype=float32)
    """
    check_real(x)
    if guard == "layer_scaling":
        return rms_norm(x, axis=tuple(range(1, x.ndim)), epsilon=epsilon, where=where)
    return jnp.clip(x, -CLAMPED_AT, CLAMPED_AT) if guard == "clamp" else x


def check_guard(guard: object) -> None:
    """Raise a `ValueError` unless `guard` is a `Guard`."""
    names = get_args(get_args(Guard)[0])
    if guard is not None and guard not in names:
        raise ValueError(f"Expected `guard` to be one of {names} or None, got {guard!r}.")


def check_online_options(momentum: Any, backward_momentum: Any, epsilon: float, guard: object) -> None:
    """Raise unless the options of online norm are of the right kind."""
    check_weight("momentum", momentum)
    check_weight("backward_momentum", backward_momentum)
    check_epsilon(epsilon)
    check_guard(guard)


class _OnlineResiduals(NamedTuple):
    """Residuals of the forward pass for the backward pass.

    Attributes:
        y: Normalized values, 0 where nothing counts.
        rstd: Reciprocal standard deviations, `[examples, 1, ..., features]`.
        elements: How many are behind each example's statistics.
        where: Mask.
        errors: Errors before this pass.
        weights: Weights of accumulated errors and of new ones.
    """

    y: Array
    rstd: Array
    elements: Array | float
    where: Array | None
    errors: list[Array]
    weights: tuple[Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _online(
    over: Reduction,
    x: Array,
    running: list[Array],
    errors: list[Array],
    where: Array | None,
    weights: tuple[Array, Array],
    backward_weights: tuple[Array, Array],
    epsilon: Array,
) -> tuple[Array, list[Array]]:
    return _forward(over, x, running, errors, where, weights, backward_weights, epsilon)[0]


def _forward(
    over: Reduction,
    x: Array,
    running: list[Array],
    errors: list[Array],
    where: Array | None,
    weights: tuple[Array, Array],
    backward_weights: tuple[Array, Array],
    epsilon: Array,
) -> tuple[tuple[Array, list[Array]], _OnlineResiduals]:
    """Normalize examples in order; means are counted from the running one, so that an offset costs no digits."""
    start, var = running
    m = moments(x, over, where)
    centered = x - start if where is None else jnp.where(where, x - start, 0)
    mean = m.mean_minus(start)
    old, new = (_where_counted(m.count, w, jnp.full_like(w, i)) for w, i in zip(weights, (1, 0), strict=True))
    old, new = (jnp.broadcast_to(w, mean.shape) for w in (old, new))
    shift, shifted = recurrence(old, new * mean, jnp.zeros_like(start))
    var, var_after = recurrence(old, new * (m.var + old * lax.square(mean - shift)), var)
    rstd = reciprocal_root(var + epsilon, epsilon)
    y = (centered - shift) * rstd
    y = y if where is None else jnp.where(where, y, 0)
    return (y, [start + shifted, var_after]), _OnlineResiduals(y, rstd, m.count, where, errors, backward_weights)


def _backward(over: Reduction, saved: _OnlineResiduals, cotangents: tuple[Array, list[Array]]) -> tuple[Any, ...]:
    y, rstd, count, where, (along_y, along_one), (old, new) = saved
    dy = cotangents[0] if where is None else jnp.where(where, cotangents[0], 0)
    size, along = means([lax.square(y), dy * y], over, where, count)
    before, along_y = recurrence(1 - new * size, along, along_y)
    dx = (dy - new * before * y) * rstd
    (mean,) = means([dx], over, where, count)
    decay = jnp.broadcast_to(_where_counted(count, old, jnp.ones_like(old)), mean.shape)
    before, along_one = recurrence(decay, mean, along_one)
    dx = dx - new * before
    dx = dx if where is None else jnp.where(where, dx, 0)
    return dx, None, [along_y, along_one], None, None, None, None


_online.defvjp(_forward, _backward)


def _where_counted(count: Array | float, value: Array, otherwise: Array) -> Array:
    """Return `value`, and something else for examples of which a mask leaves nothing."""
    return jnp.where(count > 0, value, otherwise) if isinstance(count, Array) else value


@dataclass(frozen=True)
class OnlineNormLayer(Layer):
    """Online norm with its options; see `online_norm`.

    Attributes:
        axis: Feature axis or axes.
        momentum: See `online_norm`.
        backward_momentum: See `online_norm`.
        epsilon: See `online_norm`.
        guard: See `online_norm`.
    """

    axis: Axes = -1
    momentum: Array | float = 0.999
    backward_momentum: Array | float = 0.99
    epsilon: float = 1e-5
    guard: Guard = "layer_scaling"

    feature_option: ClassVar[str] = "axis"
    stateful: ClassVar[bool] = True
    gradient_state_names: ClassVar[Sequence[str]] = OnlineErrors._fields

    def __post_init__(self) -> None:
        """Check the options."""
        check_online_options(self.momentum, self.backward_momentum, self.epsilon, self.guard)

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return names of the state, all of it needed."""
        return ("mean", "var"), ()

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return mean 0 and variance 1."""
        return {"mean": jnp.zeros(shape, jnp.float32), "var": jnp.ones(shape, jnp.float32)}

    def gradient_state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return no errors."""
        return {name: jnp.zeros(shape, jnp.float32) for name in OnlineErrors._fields}

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm at evaluation."""
        return self, False

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
        """Normalize by the examples before each, or by the running statistics; see `Layer`."""
        running, axis = RunningStatistics.named(state), other_axes(features, x.ndim)
        scale, bias = parameters.get("scale"), parameters.get("bias")
        if not train:
            y = evaluate_online_norm(
                x, running, scale, bias, axis=axis, epsilon=self.epsilon, where=mask, guard=self.guard
            )
            return y, state
        y, running = online_norm(
            x,
            running,
            OnlineErrors(**gradient_state),
            scale,
            bias,
            momentum=self.momentum,
            backward_momentum=self.backward_momentum,
            axis=axis,
            epsilon=self.epsilon,
            where=mask,
            guard=self.guard,
        )
        return y, running.by_name()
