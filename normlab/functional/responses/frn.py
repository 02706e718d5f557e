"""Filter response norm and its thresholded linear unit."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from normlab._core.checks import AxisName, check_flags
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, run
from normlab._core.per_example import PerExampleLayer
from normlab._core.reduction import (
    Axes,
    Groups,
    Reduction,
    check_more_than_one,
    expand,
    expand_affine,
    expand_where,
    moments,
    reduction,
)
from normlab._core.roots import reciprocal_root
from normlab.errors import StatisticsError


def frn(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    tau: Array | None = None,
    e: Array | None = None,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Array:
    """Divide each feature of each example by its root mean square, then threshold (Singh & Krishnan, 2020).

    `y = max(x / sqrt(mean(x^2) + epsilon + abs(e)) * scale + bias, tau)`

    Statistics: over all axes but the first and `feature_axes`, in float32 or wider. No mean is subtracted.

    Args:
        x: Activations, `[batch, *positions, features]`.
        scale: Gain, of the shape of the feature axes of `x`; `None` is 1.
        bias: Shift, of the same shape; `None` is 0.
        tau: Threshold of the thresholded linear unit, of the same shape; `None` is no threshold.
        e: Learned part of epsilon, a scalar or of the same shape; its size counts. `None` is 0. With it one position is
            enough: `y` is near `sign(x) * scale` where `x` is large beside the root of epsilon.
        feature_axes: Axes that keep statistics of their own; not the first.
        epsilon: Added to the mean square, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If there are no positions, or a single one, and no `e`.
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> x = jnp.array([[[3.0], [-4.0], [0.0], [0.0]]])
        >>> frn(x, tau=jnp.array([-0.5]), epsilon=0.0).ravel()
        Array([ 1.2, -0.5,  0. ,  0. ], dtype=float32)

    References:
        Singh, Krishnan. Filter Response Normalization Layer. CVPR 2020. https://arxiv.org/abs/1911.09737
    """
    layer = FRNLayer(epsilon, axis_name, axis_index_groups, feature_axes=feature_axes, learn_epsilon=e is not None)
    return run(layer, x, where, scale, bias, tau=tau, e=e)


@dataclass(frozen=True)
class FRNLayer(PerExampleLayer):
    """Filter response norm with its options.

    Attributes:
        feature_axes: Axes with statistics of their own.
        nonlinear: Whether the threshold `tau` follows scale and bias.
        learn_epsilon: Whether `abs(e)` is added to epsilon, a parameter for all features or one for each.
    """

    feature_axes: Axes = -1
    nonlinear: bool = True
    learn_epsilon: bool | Literal["per_feature"] = False

    parameters: ClassVar[tuple[str, ...]] = ("tau", "e")
    switches: ClassVar[dict[str, str]] = {"tau": "nonlinear", "e": "learn_epsilon"}
    activates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_flags(self, "nonlinear", *([] if self.learn_epsilon == "per_feature" else ["learn_epsilon"]))

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return a threshold of 0, or 1e-4 for the learned part of epsilon."""
        if name == "tau":
            return jnp.zeros(shape, dtype)
        return jnp.full(shape if self.learn_epsilon == "per_feature" else (), 1e-4, dtype)

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Reduce all axes but the first and the features."""
        if 0 in features:
            raise ValueError(f"Expected `feature_axes` without the first axis, the batch, got {self.feature_axes}.")
        axis = tuple(a for a in range(1, x.ndim) if a not in features)
        over = reduction(axis, affine=features, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        if not self.learn_epsilon:
            if not axis:
                raise StatisticsError(
                    "Expected `x` with positions between batch and features, such as [batch, height, width, features], "
                    f"got {x.shape}: the output would be the sign of `x`. Learn epsilon (`learn_epsilon=True`, or `e`)."
                )
            check_more_than_one(x.shape, over, "Learn epsilon (`learn_epsilon=True`, or `e`)")
        return over._replace(center=False)

    def normalized(
        self, x: Array, over: Reduction, parameters: Parameters, features: tuple[int, ...], mask: Array | None
    ) -> Array:
        """Divide by the root mean square, then scale and shift."""
        own = {name: parameters.get(name) for name in ("scale", "bias")}
        e = parameters.get("e")
        if e is None:
            return super().normalized(x, over, own, features, mask)
        affine, where, wide = expand_affine(own, x.shape, features), expand_where(mask, x.ndim), float32_or_wider(x)
        e = jnp.abs(e.astype(wide.dtype))
        epsilon = self.epsilon + (expand_affine({"e": e}, x.shape, features)["e"] if e.ndim else e)
        wide = without_hidden(wide, where)
        factor = reciprocal_root(moments(wide, over, where).var + epsilon, self.epsilon)
        factor = factor * affine["scale"].astype(wide.dtype) if "scale" in affine else factor
        y = wide * factor
        return y + affine["bias"].astype(wide.dtype) if "bias" in affine else y

    def activated(self, y: Array, parameters: Parameters, features: tuple[int, ...]) -> Array:
        """Return the larger of `y` and `tau`."""
        tau = expand("tau", parameters.get("tau"), y.shape, features)
        return y if tau is None else jnp.maximum(y, tau.astype(y.dtype))
