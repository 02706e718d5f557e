"""Power norm: mean squares of the batches before divide, and a backward pass of its own makes up for the batch."""

import functools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from normlab._core.checks import AxisName, check_epsilon, check_real, check_where, resolve_groups
from normlab._core.closed_form import again
from normlab._core.dtypes import float32_or_wider, output_dtype, whole
from normlab._core.ghost import check_whole_groups
from normlab._core.hidden import shown, without_hidden
from normlab._core.layer import Layer, Parameters, State
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import (
    Axes,
    Groups,
    Reduction,
    check_more_than_one,
    expand,
    expand_where,
    means,
    moments,
    other_axes,
    reduction,
)
from normlab._core.roots import reciprocal_root
from normlab._core.sharding import aligned, spread_like
from normlab._core.standardize import scaled
from normlab._core.stream import as_weights, check_weight, kept_wide, own_gradient, wide_state
from normlab.functional.batch_norm import feature_axes

__all__ = ["PowerMemory", "PowerNormLayer", "PowerSlopes", "evaluate_power_norm", "power_norm"]


class PowerMemory(NamedTuple):
    """Statistics that power norm remembers.

    Attributes:
        phi: Running mean square, of the shape of the feature axes; ones at the start.
        step: Calls so far in which more than one element counted, an int32 scalar.
    """

    phi: Array
    step: Array


class PowerSlopes(NamedTuple):
    """State that power norm carries from one backward pass to the next.

    Attributes:
        nu: Component of the gradient along the output that is taken out, of the shape of the feature axes; zeros at the
            start.
    """

    nu: Array


def power_norm(
    x: Array,
    memory: PowerMemory,
    slopes: PowerSlopes,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int = 1,
    momentum: Array | float = 0.9,
    backward_momentum: Array | float = 0.9,
    warmup_steps: int = 10000,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> tuple[Array, PowerMemory]:
    """Divide by a running mean square, after a scaling of each position (Shen et al., 2020).

    `h = x / sqrt(mean(x^2) + epsilon)` over the features of a group, at each position. Then
    `z = h / sqrt(phi + epsilon)` and `y = z * scale + bias`, with `phi` from the calls before this one. Nothing is
    centred. After the call `phi <- momentum * phi + (1 - momentum) * mean(h^2)`.

    In the first `warmup_steps` calls `mean(h^2)` itself stands in the place of `phi`, in both passes, while `phi`
    becomes the plain average of all calls.

    Statistics: over `axis` (and `axis_name`), per feature, after those over features; in float32 or wider.

    The backward pass is not the derivative of the forward pass. With `dz` for the gradient of the loss by `z`,
    `t = dz - nu * z` and `dh = t / sqrt(phi + epsilon)`, of which the exact derivative of the first scaling makes `dx`;
    after the pass `nu <- nu + (1 - backward_momentum) * mean(t * z)`. The authors' code divides `t` by the root of the
    batch's mean square, although its forward pass has divided by that of `phi`; here both are `phi`.

    A backward pass can write no state, so **the gradient with respect to `slopes` is their new value**: replace them by
    it, and hand it to no optimizer. There must be one call for each gradient, since JAX adds up what several calls
    give. With `axis_name` all devices compute the same new value: average it over devices, or take that of any.

    Reverse mode works once, under `jax.jit`, `jax.vmap`, `jax.checkpoint` and in `jax.lax.scan`. There is no forward
    mode (`jax.jvp`, `jax.hessian`) and no second derivative.

    Args:
        x: Activations, `[batch, ..., features]`.
        memory: Statistics before this call.
        slopes: From the backward pass before this one.
        scale: Gain, of the shape of the axes not reduced; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        num_groups: Groups of neighbouring features, each scaled on its own; more than one needs features on the last
            axis.
        momentum: Weight of the OLD running mean square.
        backward_momentum: 1 minus the rate at which `nu` moves.
        warmup_steps: Calls that divide by the mean square of their own batch.
        axis: Axes reduced; `None` means all but the last.
        epsilon: Added to both mean squares, inside the roots.
        where: True where an element counts, broadcastable to `x`; the others are neither read nor given a gradient,
            and come out as `bias`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the statistics after this call.

    Raises:
        StatisticsError: If a group is one feature, or a batch one element while there is a warm-up.
        ValueError: If a shape, an axis, a number of groups, a weight, `epsilon` or `warmup_steps` does not fit.

    Example:
        >>> memory, slopes = PowerMemory(jnp.full(2, 0.25), jnp.int32(9)), PowerSlopes(jnp.zeros(2))
        >>> x = jnp.array([[3.0, 3.0], [1.0, -1.0]])
        >>> y, after = power_norm(x, memory, slopes, warmup_steps=0, epsilon=0.0)
        >>> y, after.phi
        (Array([[ 2.,  2.],
               [ 2., -2.]], dtype=float32), Array([0.325, 0.325], dtype=float32))

    References:
        Shen, Yao, Gholami, Mahoney, Keutzer. PowerNorm: Rethinking Batch Normalization in Transformers. ICML 2020.
        https://arxiv.org/abs/2003.07845
    """
    layer = PowerNormLayer(
        momentum=momentum,
        backward_momentum=backward_momentum,
        epsilon=epsilon,
        num_groups=num_groups,
        warmup_steps=warmup_steps,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    features = feature_axes(x.ndim, axis)
    own, by = separated(scale, bias, x.shape, features)
    y, memory = layer.in_training(x, memory, slopes, own, features, where)
    return modulated(y, by, features, where).astype(output_dtype(x)), memory


def evaluate_power_norm(
    x: Array,
    phi: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int = 1,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
) -> Array:
    """Divide by a mean square that no longer moves: power norm at inference.

    Args:
        x: Activations, `[batch, ..., features]`.
        phi: Running mean square.
        scale: See `power_norm`.
        bias: See `power_norm`.
        num_groups: See `power_norm`.
        axis: See `power_norm`.
        epsilon: See `power_norm`.
        where: True where an element counts, which matters to the scaling of positions.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a group is one feature.
        ValueError: If a shape, an axis, a number of groups or `epsilon` does not fit.
    """
    layer = PowerNormLayer(epsilon=epsilon, num_groups=num_groups)
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    features = feature_axes(x.ndim, axis)
    own, by = separated(scale, bias, x.shape, features)
    return modulated(layer.at_inference(x, phi, own, features, where), by, features, where).astype(output_dtype(x))


@dataclass(frozen=True)
class PowerNormLayer(Layer):
    """Power norm with its options; see `power_norm`.

    Attributes:
        axis: Feature axis or axes.
        momentum: See `power_norm`.
        epsilon: See `power_norm`.
        axis_name: See `power_norm`.
        axis_index_groups: See `power_norm`.
        backward_momentum: See `power_norm`.
        num_groups: See `power_norm`.
        warmup_steps: See `power_norm`.
    """

    axis: Axes = -1
    momentum: Array | float = 0.9
    epsilon: float = 1e-5
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    backward_momentum: Array | float = 0.9
    num_groups: int = 1
    warmup_steps: int = 10000

    feature_option: ClassVar[str] = "axis"
    stateful: ClassVar[bool] = True
    gradient_state_names: ClassVar[Sequence[str]] = PowerSlopes._fields

    def __post_init__(self) -> None:
        """Check the options."""
        check_weight("momentum", self.momentum)
        check_weight("backward_momentum", self.backward_momentum)
        check_epsilon(self.epsilon)
        check_steps("warmup_steps", self.warmup_steps)

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return names of the state, of which evaluation can do without `step`."""
        return PowerMemory._fields, () if train else ("step",)

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return a mean square of 1 after no calls."""
        return {"phi": jnp.ones(shape, jnp.float32), "step": jnp.zeros((), jnp.int32)}

    def gradient_state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return nothing to take out of the gradient."""
        return {"nu": jnp.zeros(shape, jnp.float32)}

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
        """Divide by the running mean square, or by that of the batch in the warm-up; see `Layer`."""
        if not train:
            return self.at_inference(x, state["phi"], parameters, features, mask), state
        y, memory = self.in_training(x, PowerMemory(**state), PowerSlopes(**gradient_state), parameters, features, mask)
        return y, memory._asdict()

    def in_training(
        self,
        x: Array,
        memory: PowerMemory,
        slopes: PowerSlopes,
        parameters: Parameters,
        features: tuple[int, ...],
        where: Array | None,
    ) -> tuple[Array, PowerMemory]:
        """Divide by `phi`, and let it move; the output is in float32 or wider."""
        split = self.split(x, features)
        over = reduction(
            other_axes(split.features, len(split.shape)),
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            center=False,
        )
        if self.warmup_steps:
            check_more_than_one(split.shape, over, _REMEDY)
        static = _Static(split.within, over, self.warmup_steps)
        parts = x.astype(output_dtype(x)).reshape(split.shape)
        like = float32_or_wider(parts)
        phi, nu = (
            spread_like(wide_state(name, a, x.shape, features, like.dtype).reshape(split.kept), like)
            for name, a in {"phi": memory.phi, "nu": own_gradient(slopes).nu}.items()
        )
        old, new = as_weights(self.momentum, like.dtype)
        rate = as_weights(self.backward_momentum, like.dtype)[1]
        epsilon = jnp.asarray(self.epsilon, like.dtype)
        masked = split.mask(where, x.shape)
        result: Any = _power(static, parts, phi, whole(memory.step), nu, masked, (old, new), rate, epsilon)
        z, phi, step = result
        affine = (expand(name, parameters.get(name), x.shape, features) for name in ("scale", "bias"))
        return scaled(z.reshape(x.shape), *affine), PowerMemory(kept_wide(phi, memory.phi), step)

    def at_inference(
        self, x: Array, phi: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Divide by `phi`, which stays; the output is in float32 or wider."""
        h = self.scaled(x, features, where)
        square = wide_state("phi", phi, x.shape, features, h.dtype) + self.epsilon
        affine = (expand(name, parameters.get(name), x.shape, features) for name in ("scale", "bias"))
        return scaled(h * reciprocal_root(square, self.epsilon), *affine)

    def scaled(self, x: Array, features: tuple[int, ...], where: Array | None) -> Array:
        """Divide each position by the root mean square of each group, in float32 or wider: `phi` is of the result."""
        split = self.split(x, features)
        wide, masked = without_hidden(float32_or_wider(x), where).reshape(split.shape), split.mask(where, x.shape)
        return (wide * _of_groups(wide, split.within, masked, self.epsilon)[0]).reshape(x.shape)

    def split(self, x: Array, features: tuple[int, ...]) -> "_Split":
        """Describe the groups of features, and check that they are of more than one."""
        if self.num_groups == 1:
            split = _Split(x.shape, features, reduction(features, center=False))
        else:
            last = x.ndim - 1
            if features != (last,):
                raise ValueError(
                    "Expected `axis` to be the last, along which features are grouped, with `num_groups`, got "
                    f"{self.axis}. Move the features to the end, or use one group."
                )
            groups = resolve_groups(x.shape[-1], self.num_groups, None)
            size = x.shape[-1] // groups
            check_whole_groups(x, size)
            shape = (*x.shape[:-1], groups, size)
            split = _Split(shape, (last, last + 1), reduction((last + 1,), center=False))
        check_more_than_one(split.shape, split.within, "Use fewer groups or more features")
        return split


_REMEDY = "Use a larger batch, `axis_name` for statistics across devices, or `warmup_steps=0`"


def check_steps(name: str, steps: object) -> None:
    """Raise a `ValueError` unless `steps` is a whole number, 0 or more."""
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or int(steps) < 0:
        raise ValueError(f"Expected `{name}` to be a whole number of calls, 0 or more, got {steps!r}.")


class _Split(NamedTuple):
    """Activations with an axis for groups of features where there are several.

    Attributes:
        shape: Their shape.
        features: Axes of the features.
        within: The features that are scaled together.
    """

    shape: tuple[int, ...]
    features: tuple[int, ...]
    within: Reduction

    @property
    def kept(self) -> tuple[int, ...]:
        """Shape of arrays that vary along features alone."""
        return tuple(size if a in self.features else 1 for a, size in enumerate(self.shape))

    def mask(self, where: Array | None, shape: tuple[int, ...]) -> Array | None:
        """Return a mask of this shape for one of `shape`, that of `x`."""
        if where is None or self.shape == shape:
            return expand_where(where, len(shape))
        return jnp.broadcast_to(where, shape).reshape(self.shape)


class _Static(NamedTuple):
    """Options and reductions, which are no arrays.

    Attributes:
        within: The features that are scaled together.
        over: The elements of the batch that share a statistic.
        warmup_steps: See `power_norm`.
    """

    within: Reduction
    over: Reduction
    warmup_steps: int


class _PowerResiduals(NamedTuple):
    """Residuals of the forward pass for the backward pass.

    Attributes:
        x: Activations.
        by_group: What each group was multiplied by.
        by_feature: What each feature was multiplied by, then.
        sizes: Elements behind a group and behind a feature.
        nu: See `PowerSlopes`.
        where: Mask.
        rate: Weight of the new component of the gradient.
    """

    x: Array
    by_group: Array
    by_feature: Array
    sizes: tuple[Array | float, Array | float]
    nu: Array
    where: Array | None
    rate: Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _power(
    static: _Static,
    x: Array,
    phi: Array,
    step: Array,
    nu: Array,
    where: Array | None,
    weights: tuple[Array, Array],
    rate: Array,
    epsilon: Array,
) -> tuple[Array, Array, Array]:
    return _forward(static, x, phi, step, nu, where, weights, rate, epsilon)[0]


def _forward(
    static: _Static,
    x: Array,
    phi: Array,
    step: Array,
    nu: Array,
    where: Array | None,
    weights: tuple[Array, Array],
    rate: Array,
    epsilon: Array,
) -> tuple[tuple[Array, Array, Array], _PowerResiduals]:
    wide = float32_or_wider(x)
    by_group, size = _of_groups(wide, static.within, where, epsilon)
    h = shown(wide * by_group, where)
    found = moments(h, static.over, where)
    psi, phi = aligned(found.var, phi)
    warm = step < static.warmup_steps
    by_feature = reciprocal_root(jnp.where(warm, psi, phi) + epsilon, epsilon)
    counted = jnp.asarray(found.count) > 1
    share = 1 / (step + 1).astype(wide.dtype)
    old, new = (jnp.where(warm, a, b) for a, b in zip((1 - share, share), weights, strict=True))
    condition, moved, kept = aligned(jnp.broadcast_to(counted, psi.shape), old * phi + new * psi, phi)
    after = jnp.where(condition, moved, kept), step + jnp.any(counted).astype(step.dtype)
    saved = _PowerResiduals(x, by_group, by_feature, (size, found.count), nu, where, rate)
    return (shown(h * by_feature, where), *after), saved


def _backward(static: _Static, saved: _PowerResiduals, cotangents: tuple[Array, Any, Any]) -> tuple[Any, ...]:
    x, by_group, by_feature, (size, count), nu, where, rate = saved
    h = shown(float32_or_wider(x) * by_group, where)
    z = h * by_feature
    t = shown(cotangents[0], where) - nu * z
    (along,) = means([t * z], static.over, where, count)
    dh = t * by_feature
    (within,) = means([dh * h], static.within, where, size)
    dx = shown(by_group * (dh - h * again(within)), where)
    nu = nu + rate * jnp.where(jnp.asarray(count) > 1, along, 0)
    return dx.astype(x.dtype), None, None, nu, None, None, None, None


_power.defvjp(_forward, _backward)


def _of_groups(x: Array, within: Reduction, where: Array | None, epsilon: Array | float) -> tuple[Array, Array | float]:
    """Return reciprocal root mean squares of groups, and the number of elements behind each."""
    found = moments(x, within, where)
    return reciprocal_root(found.var + epsilon, epsilon), found.count
