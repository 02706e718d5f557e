"""L2 norm: vectors of unit length."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from normlab._core.checks import AxisName, check_flag
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, State, run
from normlab._core.magnitude import MagnitudeLayer
from normlab._core.reduction import Axes, Groups, canonical_axes, expand_affine, expand_where, means
from normlab._core.roots import reciprocal_root


def l2_norm(
    x: Array,
    scale: Array | None = None,
    *,
    temperature: ArrayLike | None = None,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-12,
    additive: bool = False,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Array:
    """Divide each example by the Euclidean length of its features.

    `y = x / max(sqrt(sum(x^2)), epsilon) * scale * temperature`, or `x / sqrt(sum(x^2) + epsilon)` if `additive`

    Statistics: over `axis`, per remaining position, in float32 or wider, so that float16 does not overflow. Vectors of
    zeros, such as padding, give zeros and have no gradient; a formula would have `1 / epsilon`, or NaN, there.

    Args:
        x: Activations, `[..., features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        temperature: A single number; `None` is 1.
        axis: Axes reduced.
        feature_axes: Axes along which `scale` varies; `None` means `axis`.
        epsilon: Smallest divisor; where `additive`, added to the sum of squares.
        additive: Whether `epsilon` is added inside the root and no limit; it is 1e-6 in most code that does so.
        where: True where an element counts, broadcastable to `x`; the others are divided by the same length.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a length would be that of one element.
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> l2_norm(jnp.array([3.0, 4.0])).round(3)
        Array([0.6, 0.8], dtype=float32)

    References:
        Ranjan, Castillo, Chellappa. L2-constrained Softmax Loss. 2017. https://arxiv.org/abs/1703.09507
        Henry, Dachapally, Pawar, Chen. Query-Key Normalization. EMNLP 2020. https://arxiv.org/abs/2010.04245
    """
    x = jnp.asarray(x)
    axis = canonical_axes(axis, x.ndim)
    features = axis if feature_axes is None else canonical_axes(feature_axes, x.ndim, "feature_axes")
    layer = L2NormLayer(epsilon, axis_name, axis_index_groups, axis, features, additive)
    return run(layer, x, where, scale, temperature=None if temperature is None else jnp.asarray(temperature))


@dataclass(frozen=True)
class L2NormLayer(MagnitudeLayer):
    """L2 norm with its options.

    Attributes:
        additive: Whether `epsilon` is added to the sum of squares, and no smallest length.
        use_temperature: Whether to multiply by a learned scalar, `temperature`.
        temperature_init: Its initial value.
    """

    epsilon: float = 1e-12
    additive: bool = False
    use_temperature: bool = False
    temperature_init: float = 1.0

    parameters: ClassVar[tuple[str, ...]] = ("temperature",)
    switches: ClassVar[dict[str, str]] = {"temperature": "use_temperature"}

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_flag("additive", self.additive)
        check_flag("use_temperature", self.use_temperature)

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `temperature_init`, a scalar."""
        return jnp.asarray(self.temperature_init, dtype)

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
        """Divide by the length; see `Layer`."""
        affine = expand_affine({"scale": parameters.get("scale")}, x.shape, features)
        wide, where = without_hidden(float32_or_wider(x), mask), expand_where(mask, x.ndim)
        (square,) = means([lax.square(wide)], self.over(x, features), where, count=1.0)  # which is the sum
        y = wide * self._reciprocal(square)
        y = y * affine["scale"].astype(y.dtype) if affine else y
        temperature = parameters.get("temperature")
        return y if temperature is None else y * temperature.astype(y.dtype), state

    def _reciprocal(self, square: Array) -> Array:
        """Return one over the length, and 0 for a vector of zeros, whose direction is none."""
        least = self.epsilon if self.additive else self.epsilon**2
        positive = jnp.where(square == 0, 1, square)  # so that no derivative is taken of the root of 0
        divisor = positive + least if self.additive else jnp.maximum(positive, least)
        return jnp.where(square == 0, 0, reciprocal_root(divisor, least))
