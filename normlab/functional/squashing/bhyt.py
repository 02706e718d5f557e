"""BHyT: a hyperbolic tangent of RMS norm, whose input never saturates it."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from normlab._core.checks import AxisName, check_flag
from normlab._core.closed_form import Operands, again, closed_form
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, State, run
from normlab._core.magnitude import MagnitudeLayer
from normlab._core.reduction import Axes, Groups, Reduction, canonical_axes, expand_affine, expand_where, means, moments
from normlab._core.standardize import in_taylor_mode, reciprocal_deviation


def bhyt(
    x: Array,
    scale: Array | None = None,
    *,
    lam: ArrayLike = 2.0,
    bound: float = 0.1,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Array:
    """Squash each example, divided by the root mean square of its features, by a tangent (Byun et al., 2026).

    `y = tanh(lam * bound * x / sqrt(mean(x^2) + epsilon)) * scale`

    Statistics: over `axis`, per remaining position, in float32 or wider.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        lam: A single number.
        bound: A constant; the paper's 1 / kappa.
        axis: Axes reduced.
        feature_axes: Axes along which `scale` varies; `None` means `axis`.
        epsilon: Added to the mean square, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a statistic would be over one element.
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> jnp.allclose(bhyt(jnp.array([1.0, 7.0]), lam=10.0, bound=0.1), jnp.array([0.197, 0.885]), atol=1e-3)
        Array(True, dtype=bool)

    References:
        Byun et al. ICML 2026. https://arxiv.org/abs/2601.09719
    """
    x = jnp.asarray(x)
    axis = canonical_axes(axis, x.ndim)
    features = axis if feature_axes is None else canonical_axes(feature_axes, x.ndim, "feature_axes")
    layer = BHyTLayer(epsilon, axis_name, axis_index_groups, axis, features, bound=bound)
    return run(layer, x, where, scale, lam=jnp.asarray(lam))


@dataclass(frozen=True)
class BHyTLayer(MagnitudeLayer):
    """BHyT with its options.

    Attributes:
        bound: Constant factor within the tangent.
        lam_init: Initial value of `lam`.
        learn_lam: Whether `lam` is a parameter, and not the constant `lam_init`.
    """

    bound: float = 0.1
    lam_init: float = 2.0
    learn_lam: bool = True

    parameters: ClassVar[tuple[str, ...]] = ("lam",)
    switches: ClassVar[dict[str, str]] = {"lam": "learn_lam"}

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_flag("learn_lam", self.learn_lam)

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `lam_init`, a scalar."""
        return jnp.asarray(self.lam_init, dtype)

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
        """Divide by the root mean square, then squash; see `Layer`."""
        affine = expand_affine({"scale": parameters.get("scale")}, x.shape, features)
        wide, where = without_hidden(float32_or_wider(x), mask), expand_where(mask, x.ndim)
        scale = affine["scale"].astype(wide.dtype) if affine else None
        over = self.over(x, features)
        m = moments(wide, over, where)
        factor = jnp.asarray(parameters.get("lam", self.lam_init), wide.dtype) * self.bound
        by = _formula if any(map(in_taylor_mode, (wide, factor, scale))) else _squashed
        return by(over, wide, reciprocal_deviation(m, self.epsilon), factor, scale, jnp.asarray(m.count), where), state


def _formula(
    over: Reduction, x: Array, rstd: Array, factor: Array, scale: Array | None, count: Array, where: Array | None
) -> Array:
    y = jnp.tanh(x * (rstd * factor))
    return y if scale is None else y * scale


def _tangent(over: Reduction, primals: Operands, tangents: Operands) -> Array:
    """Return the tangent, with the tangent of `rstd` as it follows from `dx`: `-rstd^3 mean(x dx)`."""
    (x, rstd, factor, scale, count, where), (dx, _, dfactor, dscale, *_) = primals, tangents
    assert x is not None and rstd is not None and factor is not None and count is not None
    assert dx is not None and dfactor is not None
    (along,) = means([x * dx], over, where, count)
    slope = -rstd * (rstd * (rstd * along)) * factor + rstd * dfactor
    rise = 1 - lax.square(jnp.tanh(x * (rstd * factor)))
    dy = (dx * (rstd * factor) + x * slope) * (rise if scale is None else rise * scale)
    return dy if dscale is None else dy + jnp.tanh(again(x) * (rstd * factor)) * dscale


_squashed = closed_form(_formula, _tangent)
