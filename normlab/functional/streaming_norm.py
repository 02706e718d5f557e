"""Streaming norm: statistics, and the gradients of statistics, from a long, a short and the current memory."""

import functools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_epsilon, check_where
from normlab._core.dtypes import float32_or_wider, output_dtype, whole
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import Axes, Reduction, expand, expand_where, means, moments, other_axes, reduction
from normlab._core.roots import reciprocal_root
from normlab._core.sharding import aligned, spread_like
from normlab._core.standardize import normalize, scaled
from normlab._core.stream import as_weights, check_weight, kept_wide, own_gradient, stream_features, wide_state

Mix = Sequence[float]
"""Weights of the long, the short and the current memory; without the last, it is 0."""


class StreamingMemory(NamedTuple):
    """Statistics that streaming norm remembers; of the shape of the feature axes but for the last.

    Attributes:
        mean: Long memory of the mean.
        var: Long memory of the variance.
        short_mean: Mean of what came since the last update of the weights.
        short_var: Variance of it.
        short_count: Elements behind these two.
        step: Calls so far in which anything counted, an int32 scalar.
    """

    mean: Array
    var: Array
    short_mean: Array
    short_var: Array
    short_count: Array
    step: Array


class StreamingSlopes(NamedTuple):
    """Gradients of the loss by the statistics that streaming norm remembers, of the shape of the feature axes.

    Attributes:
        slope_mean: Long memory of the gradient by the mean.
        slope_var: Long memory of the gradient by the variance.
        short_slope_mean: Average over the backward passes since the last update of the weights.
        short_slope_var: The same average for the variance.
        short_calls: How many these are.
    """

    slope_mean: Array
    slope_var: Array
    short_slope_mean: Array
    short_slope_var: Array
    short_calls: Array


def streaming_norm(
    x: Array,
    memory: StreamingMemory,
    slopes: StreamingSlopes,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    mix: Mix = (0.5, 0.5),
    backward_mix: Mix = (0.5, 0.5, 0.0),
    momentum: Array | float = 0.7,
    backward_momentum: Array | float = 0.7,
    calls_per_update: int = 1,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
) -> tuple[Array, StreamingMemory]:
    """Standardize by a mix of what came long ago, since the last update of the weights, and now (Liao et al., 2016).

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias` with `mean` and `var` those of a mix of three memories, of
    which `mix` gives the shares: the long one, the short one, which is all elements since the last update of the
    weights, these included, and the current batch. At an update of the weights
    `long <- momentum * long + (1 - momentum) * short`, and the short memory is cleared.

    Statistics: over `axis`, per feature, in float32 or wider: mean and mean square, which mix and average, kept as mean
    and variance for the sake of digits. So `var` includes the spread between the means of the memories, and one element
    a call is enough. (The first author's PyTorch code averages mean and standard deviation, and is NaN there.)

    Before there is anything to average the long memory is mean 0 and variance 1, and its gradients are 0.

    The backward pass is not the derivative of the forward pass. With `s` for the gradients of the loss by `mean` and
    `var`, `dx = dy * scale / sqrt(var + epsilon) + (s_mean + 2 (x - mean) s_var) / n`, n elements behind a statistic of
    this call, where `s` is again a mix of three, by `backward_mix`: a long memory; the average over backward passes
    since the last update of the weights, this one included; and that of this pass. A backward pass can write no state,
    so **the gradient with respect to `slopes` is their new value**: replace them by it, and hand it to no optimizer.
    There must be one call for each gradient, since JAX adds up what several calls give.

    Reverse mode works once, under `jax.jit`, `jax.vmap`, `jax.checkpoint` and in `jax.lax.scan`. There is no forward
    mode (`jax.jvp`, `jax.hessian`) and no second derivative.

    Shares (0.5, 0.5) and (0.5, 0.5, 0) are the paper's for feed-forward nets, (0.7, 0.3) and (0.7, 0, 0.3) for
    recurrent nets and for online learning; (0, 1) and (0, 0, 1) are batch norm. Under `jax.jit` with a batch sharded
    over devices, statistics are those of the whole batch; under `jax.shard_map` each device has memories of its own.

    Args:
        x: Activations, `[batch, ..., features]`.
        memory: Statistics before this call.
        slopes: From the backward pass before this one; zeros at the start.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        mix: Shares of the long, the short and the current memory in the statistics; they add up to 1.
        backward_mix: Shares of the three memories in the gradients of the statistics.
        momentum: Weight of the OLD long memory at an update of the weights.
        backward_momentum: Weight of the OLD long memory of gradients at an update of the weights.
        calls_per_update: Calls, each with its backward pass, between two updates of the weights: 1 but where gradients
            are accumulated.
        axis: Axes reduced, the first among them; `None` means all but the last.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`; the others are neither read nor given a gradient,
            and come out as `bias`.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the statistics after this call.

    Raises:
        ValueError: If a shape, an axis, a weight, a share, `epsilon` or `calls_per_update` does not fit.

    Example:
        >>> memory, slopes = initial_streaming((1,))
        >>> y, after = streaming_norm(jnp.array([[1.0], [3.0]]), memory, slopes, mix=(0, 1), epsilon=0.0)
        >>> y.ravel(), after.mean
        (Array([-1.,  1.], dtype=float32), Array([0.6], dtype=float32))

    References:
        Liao, Kawaguchi, Poggio. Streaming Normalization. 2016. https://arxiv.org/abs/1610.06160
    """
    x = jnp.asarray(x)
    features = stream_features(x, axis)
    check_streaming_options(mix, backward_mix, momentum, backward_momentum, calls_per_update, epsilon)
    check_where(where, x.shape)
    own, by = separated(scale, bias, x.shape, features)
    scale, bias = (expand(name, own.get(name), x.shape, features) for name in ("scale", "bias"))
    where = expand_where(where, x.ndim)
    wide = float32_or_wider(x)
    before, carried = (
        state._replace(
            **{
                name: spread_like(wide_state(name, a, x.shape, features, wide.dtype), wide)
                for name, a in state._asdict().items()
                if name != "step"
            }
        )
        for state in (memory._replace(step=whole(memory.step)), own_gradient(slopes))
    )
    over = reduction(tuple(a for a in range(x.ndim) if a not in features))
    static = _Static(over, _three(mix), _three(backward_mix), calls_per_update)
    weights = [as_weights(m, wide.dtype) for m in (momentum, backward_momentum)]
    result: Any = _streaming(static, wide, before, carried, where, *weights, jnp.asarray(epsilon, wide.dtype))
    y, after = result
    after = StreamingMemory(*map(kept_wide, after[:-1], memory[:-1]), step=after.step)
    return modulated(scaled(y, scale, bias), by, features, where).astype(output_dtype(x)), after


def initial_streaming(shape: Sequence[int]) -> tuple[StreamingMemory, StreamingSlopes]:
    """Return the memories at the start, float32: mean 0, variance 1, and nothing else."""
    zeros, ones = jnp.zeros(tuple(shape), jnp.float32), jnp.ones(tuple(shape), jnp.float32)
    memory = StreamingMemory(zeros, ones, zeros, zeros, zeros, jnp.zeros((), jnp.int32))
    return memory, StreamingSlopes(zeros, zeros, zeros, zeros, zeros)


def check_streaming_options(
    mix: Mix, backward_mix: Mix, momentum: Any, backward_momentum: Any, calls_per_update: Any, epsilon: float
) -> None:
    """Raise unless the options of streaming norm are of the right kind."""
    for name, given in (("mix", mix), ("backward_mix", backward_mix)):
        shares: tuple[float, ...] = tuple(given)
        if len(shares) not in (2, 3) or min(shares) < 0 or not math.isclose(sum(shares), 1):
            raise ValueError(
                f"Expected `{name}` to be 2 or 3 shares (long, short, current) that add up to 1, got {shares}."
            )
    check_weight("momentum", momentum)
    check_weight("backward_momentum", backward_momentum)
    whole = isinstance(calls_per_update, numbers.Integral) and not isinstance(calls_per_update, bool)
    if not (whole and int(calls_per_update) >= 1):
        raise ValueError(f"Expected `calls_per_update` to be a positive whole number, got {calls_per_update!r}.")
    check_epsilon(epsilon)


def _three(mix: Mix) -> tuple[float, ...]:
    return (*map(float, mix), 0.0)[:3]


class _Static(NamedTuple):
    """Options that are no arrays."""

    over: Reduction
    mix: tuple[float, ...]
    backward_mix: tuple[float, ...]
    calls_per_update: int


class _StreamingResiduals(NamedTuple):
    """Residuals of the forward pass for the backward pass.

    Attributes:
        y: Normalized values, 0 where nothing counts.
        rstd: Reciprocal standard deviations that they were multiplied by.
        elements: How many are behind the current memory.
        where: Mask.
        slopes: Slopes before this pass.
        updates: Whether the weights are updated after this call.
        weights: Weights of the old and the new long memory.
    """

    y: Array
    rstd: Array
    elements: Array
    where: Array | None
    slopes: StreamingSlopes
    updates: Array
    weights: tuple[Array, Array]


class _Part(NamedTuple):
    """A set of numbers by its mean and its variance."""

    mean: Array
    var: Array

    def unless(self, missing: Array, other: "_Part") -> "_Part":
        """Return `other` where this one is missing."""
        return _Part(*(jnp.where(*aligned(missing, b, a)) for a, b in zip(self, other, strict=True)))


def _mixed(*parts: tuple[Array | float, _Part]) -> _Part:
    """Mix sets by their shares."""
    mean = functools.reduce(jnp.add, [share * part.mean for share, part in parts])
    squares = [share * (part.var + lax.square(part.mean - mean)) for share, part in parts]
    return _Part(mean, functools.reduce(jnp.add, squares))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streaming(
    static: _Static,
    x: Array,
    memory: StreamingMemory,
    slopes: StreamingSlopes,
    where: Array | None,
    weights: tuple[Array, Array],
    backward_weights: tuple[Array, Array],
    epsilon: Array,
) -> tuple[Array, StreamingMemory]:
    return _forward(static, x, memory, slopes, where, weights, backward_weights, epsilon)[0]


def _forward(
    static: _Static,
    x: Array,
    memory: StreamingMemory,
    slopes: StreamingSlopes,
    where: Array | None,
    weights: tuple[Array, Array],
    backward_weights: tuple[Array, Array],
    epsilon: Array,
) -> tuple[tuple[Array, StreamingMemory], _StreamingResiduals]:
    """Mix the memories; means are counted from a member of the batch, so that an offset costs no digits."""
    found = moments(x, static.over, where)
    near, rest = found.near, found.rest
    assert near is not None and rest is not None
    x = x - near
    count = jnp.broadcast_to(jnp.asarray(found.count, x.dtype), near.shape)
    seen = memory.short_count + count
    share = count / jnp.maximum(seen, 1)
    long, now = _Part(memory.mean - near, memory.var), _Part(rest, found.var)
    left = memory.short_count / jnp.maximum(seen, 1)  # 1 - share would lose the digits of a small one
    condition, left, one = aligned(count > 0, left, jnp.ones_like(left))
    left = jnp.where(condition, left, one)
    short = _mixed((left, _Part(memory.short_mean - near, memory.short_var)), (share, now))

    parts = (long, short.unless(seen == 0, long), now.unless(count == 0, long))
    mean, var = _mixed(*zip(static.mix, parts, strict=True))
    rstd = reciprocal_root(var + epsilon, epsilon)
    y = (x - mean) * rstd
    y = y if where is None else jnp.where(where, y, 0)

    counted = jnp.any(count > 0)
    step = memory.step + counted.astype(memory.step.dtype)
    updates = counted & (step % static.calls_per_update == 0)
    moved = _mixed((weights[0], long), (weights[1], short))
    moved = _Part(near + moved.mean, moved.var).unless(~updates | (seen == 0), _Part(memory.mean, memory.var))
    mean_left, var_left, count_left = (jnp.where(updates, 0, a) for a in (near + short.mean, short.var, seen))
    after = StreamingMemory(moved.mean, moved.var, mean_left, var_left, count_left, step)
    return (y, after), _StreamingResiduals(y, rstd, count, where, slopes, updates, backward_weights)


def _backward(static: _Static, saved: _StreamingResiduals, cotangents: tuple[Array, Any]) -> tuple[Any, ...]:
    y, rstd, count, where, slopes, updates, (old, new) = saved
    dy = (cotangents[0] if where is None else jnp.where(where, cotangents[0], 0)) * rstd
    n = jnp.maximum(count, 1)
    sums = (n * mean for mean in means([dy, dy * y], static.over, where, n))
    now = [sum * factor for sum, factor in zip(sums, (-1, -0.5 * rstd), strict=True)]
    counted = (count > 0).astype(count.dtype)
    calls = slopes.short_calls + counted
    weight = counted / jnp.maximum(calls, 1)
    long = (slopes.slope_mean, slopes.slope_var)
    short = [a + weight * (b - a) for a, b in zip((slopes.short_slope_mean, slopes.short_slope_var), now, strict=True)]
    by_mean, by_var = (
        functools.reduce(jnp.add, [share * part for share, part in zip(static.backward_mix, parts, strict=True)])
        for parts in zip(long, short, now, strict=True)
    )
    dx = dy + (by_mean + 2 * (y / rstd) * by_var) / n
    dx = dx if where is None else jnp.where(where, dx, 0)
    moved = (jnp.where(updates & (calls > 0), old * a + new * b, a) for a, b in zip(long, short, strict=True))
    rest = (jnp.where(updates, 0, a) for a in (*short, calls))
    return dx, None, StreamingSlopes(*moved, *rest), None, None, None, None


_streaming.defvjp(_forward, _backward)


@dataclass(frozen=True)
class StreamingNormLayer(Layer):
    """Streaming norm with its options; see `streaming_norm`.

    Attributes:
        axis: Feature axis or axes.
        mix: See `streaming_norm`.
        backward_mix: See `streaming_norm`.
        momentum: See `streaming_norm`.
        backward_momentum: See `streaming_norm`.
        calls_per_update: See `streaming_norm`.
        epsilon: See `streaming_norm`.
    """

    axis: Axes = -1
    mix: Mix = (0.5, 0.5)
    backward_mix: Mix = (0.5, 0.5, 0.0)
    momentum: Array | float = 0.7
    backward_momentum: Array | float = 0.7
    calls_per_update: int = 1
    epsilon: float = 1e-5

    feature_option: ClassVar[str] = "axis"
    stateful: ClassVar[bool] = True
    gradient_state_names: ClassVar[Sequence[str]] = StreamingSlopes._fields

    def __post_init__(self) -> None:
        """Check the options."""
        check_streaming_options(**self._options())

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "axis"}

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return names of the state, all of it needed."""
        return StreamingMemory._fields, ()

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return a long memory of mean 0 and variance 1, and nothing else."""
        return initial_streaming(shape)[0]._asdict()

    def gradient_state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return memories of no gradient."""
        return initial_streaming(shape)[1]._asdict()

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
        """Normalize by the memories, or by the long one, which has taken up the short one at an update; see `Layer`."""
        memory, axis = StreamingMemory(**state), other_axes(features, x.ndim)
        if not train:
            x = without_hidden(x, mask)
            return normalize(x, memory.mean, memory.var, **parameters, axis=axis, epsilon=self.epsilon), state
        slopes = StreamingSlopes(**gradient_state)
        y, memory = streaming_norm(x, memory, slopes, **parameters, **self._options(), axis=axis, where=mask)
        return y, memory._asdict()
