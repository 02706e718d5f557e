"""SeeDNorm: RMS norm with a scale that depends on the input."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab._core.closed_form import Formula, Operands, closed_form
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, State, run
from normlab._core.magnitude import MagnitudeLayer
from normlab._core.reduction import Axes, Groups, Reduction, canonical_axes, expand_affine, expand_where, means, moments
from normlab._core.standardize import in_taylor_mode, product, reciprocal_deviation


def seednorm(
    x: Array,
    scale: Array | None = None,
    *,
    alpha: Array | None = None,
    beta: Array | None = None,
    num_heads: int = 1,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Array:
    """Divide each example by the root mean square of its features, and scale it by what it is (Cai et al., 2025).

    `y = x / sqrt(mean(x^2) + epsilon) * (tanh(sum(x * beta)) * alpha + scale)`

    Statistics: over `axis`, per remaining position, in float32 or wider. The input enters the tangent as it is, neither
    divided nor centred: where it is large the tangent saturates, and `beta` has no gradient.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        alpha: Size of the gain that depends on `x`, of the same shape; `None` is 1.
        beta: Direction of `x` that it depends on, of the same shape; `None` is 0, which gives RMS norm.
        num_heads: Groups of neighbouring features, each with a sum of its own.
        axis: Axes reduced.
        feature_axes: Axes along which the parameters vary; `None` means `axis`.
        epsilon: Added to the mean square, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis, `num_heads` or `epsilon` does not fit.

    Example:
        >>> y = seednorm(jnp.array([1.0, 7.0]), beta=jnp.array([1.0, 0.0]))  # tanh(1) + 1 times as large
        >>> jnp.allclose(y, 1.7616 * jnp.array([0.2, 1.4]), atol=1e-3)
        Array(True, dtype=bool)

    References:
        Cai et al. SeeDNorm: Self-Rescaled Dynamic Normalization. ICLR 2026. https://arxiv.org/abs/2510.22777
    """
    x = jnp.asarray(x)
    axis = canonical_axes(axis, x.ndim)
    features = axis if feature_axes is None else canonical_axes(feature_axes, x.ndim, "feature_axes")
    layer = SeeDNormLayer(epsilon, axis_name, axis_index_groups, axis, features, num_heads)
    return run(layer, x, where, scale, alpha=alpha, beta=beta)


@dataclass(frozen=True)
class SeeDNormLayer(MagnitudeLayer):
    """SeeDNorm with its options.

    Attributes:
        num_heads: Groups of neighbouring features, each with a sum of its own within the tangent.
    """

    num_heads: int = 1

    parameters: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return ones for `alpha` and zeros for `beta`: RMS norm."""
        return jnp.full(shape, float(name == "alpha"), dtype)

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
        """Divide by the root mean square, then multiply by the gain; see `Layer`."""
        wide, where = without_hidden(float32_or_wider(x), mask), expand_where(mask, x.ndim)
        given = {name: a.astype(wide.dtype) for name, a in expand_affine(parameters, x.shape, features).items()}
        over = self.over(x, features)
        m = moments(wide, over, where)
        kind = _Kind(over, None if "beta" not in given else self._heads(x, over))
        scale, alpha, beta = map(given.get, ("scale", "alpha", "beta"))
        along = None
        if kind.heads is not None:
            (along,) = means([wide * given["beta"]], kind.heads, where, count=1.0)  # which is the sum
            along = jnp.tanh(along)
        by: Formula = _formula if any(map(in_taylor_mode, (wide, scale, alpha, beta))) else _scaled
        rstd = reciprocal_deviation(m, self.epsilon)
        return by(kind, wide, rstd, along, scale, alpha, beta, jnp.asarray(m.count), where), state

    def _heads(self, x: Array, over: Reduction) -> Reduction:
        """Describe the elements whose products with `beta` are added up."""
        if self.num_heads == 1:
            return over
        last = x.ndim - 1
        if over.axis != (last,) or over.devices is not None:
            raise ValueError(
                f"Expected `num_heads=1` where other axes than the last are reduced or devices share them, got "
                f"{self.num_heads}. Leave it out."
            )
        if self.num_heads < 1 or x.shape[-1] % self.num_heads:
            raise ValueError(
                f"Expected `num_heads` to divide the {x.shape[-1]} features of `x`, got {self.num_heads}. Choose a "
                "divisor."
            )
        return Reduction((), pool=x.shape[-1] // self.num_heads)


class _Kind(NamedTuple):
    """Reductions; hashable.

    Attributes:
        over: The elements of a mean square.
        heads: The elements of a sum; `None` where there is none.
    """

    over: Reduction
    heads: Reduction | None


def _gain(along: Array | None, scale: Array | None, alpha: Array | None) -> Array | float:
    start = 1.0 if scale is None else scale
    if along is None:
        return start
    return (along if alpha is None else along * alpha) + start


def _formula(
    kind: _Kind,
    x: Array,
    rstd: Array,
    along: Array | None,
    scale: Array | None,
    alpha: Array | None,
    beta: Array | None,
    count: Array,
    where: Array | None,
) -> Array:
    return x * rstd * _gain(along, scale, alpha)


def _tangent(kind: _Kind, primals: Operands, tangents: Operands) -> Array:
    """Return the tangent; the tangents of `rstd` and of the tangent of the sum, `along`, follow from `dx`."""
    (x, rstd, along, scale, alpha, beta, count, where), (dx, _, _, dscale, dalpha, dbeta, *_) = primals, tangents
    assert x is not None and rstd is not None and count is not None and dx is not None
    (square,) = means([x * dx], kind.over, where, count)
    fall = -rstd * (rstd * (rstd * square))
    outer = partial(product, kind.over)
    slope = outer(fall, scale) if dscale is None else outer(fall, scale) + outer(rstd, dscale)
    if kind.heads is not None and along is not None and beta is not None:
        products = dx * beta if dbeta is None else dx * beta + x * dbeta
        (total,) = means([products], kind.heads, where, count=1.0)
        slope = slope + outer(fall * along + rstd * ((1 - lax.square(along)) * total), alpha)
        slope = slope if dalpha is None else slope + outer(rstd * along, dalpha)
    return dx * (rstd * _gain(along, scale, alpha)) + x * slope


_scaled = closed_form(_formula, _tangent)
