"""Global response norm."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jax import Array

from normlab._core.checks import AxisName
from normlab._core.closed_form import recomputed
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Parameters, run
from normlab._core.per_example import PerExampleLayer
from normlab._core.reduction import Axes, Groups, Reduction, expand_affine, expand_where, moments, reduction


def grn(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Array:
    """Add to each feature its part in the response of all features (Woo et al., 2023).

    `y = x + x * n * scale + bias` with `n = g / (mean(g) + epsilon)` and `g = sqrt(sum(x^2))`

    Statistics: `g` over all axes but the first and `feature_axes`, then a mean over `feature_axes`, in float32 or
    wider. Without positions `g` is the size of `x`. A feature of zeros has a `g` of 0 and a gradient.

    Args:
        x: Activations, `[batch, *positions, features]`.
        scale: Gain of the response, of the shape of the feature axes of `x`; `None` is 1. Where it varies along other
            axes, it multiplies the whole output.
        bias: Shift, of the same shape; `None` is 0.
        feature_axes: Axes along which responses are compared; not the first.
        epsilon: Added to the mean response.
        where: True where an element counts, broadcastable to `x`. A feature without any is not part of the mean.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        ValueError: If a shape, an axis or `epsilon` does not fit.

    Example:
        >>> grn(jnp.array([[[3.0, 1.0], [0.0, 0.0]]]), epsilon=0.0)
        Array([[[7.5, 1.5],
                [0. , 0. ]]], dtype=float32)

    References:
        Woo et al. ConvNeXt V2. CVPR 2023. https://arxiv.org/abs/2301.00808
    """
    return run(GRNLayer(epsilon, axis_name, axis_index_groups, feature_axes=feature_axes), x, where, scale, bias)


@dataclass(frozen=True)
class GRNLayer(PerExampleLayer):
    """Global response norm with its options.

    Attributes:
        feature_axes: Axes along which responses are compared.
    """

    feature_axes: Axes = -1

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Reduce all axes but the first and the features; there may be none."""
        if 0 in features:
            raise ValueError(f"Expected `feature_axes` without the first axis, the batch, got {self.feature_axes}.")
        axis = tuple(a for a in range(1, x.ndim) if a not in features)
        over = reduction(axis, affine=features, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        return over._replace(center=False)

    def normalized(
        self, x: Array, over: Reduction, parameters: Parameters, features: tuple[int, ...], mask: Array | None
    ) -> Array:
        """Add the response; the output is in float32 or wider."""
        affine, where, wide = (
            expand_affine(parameters, x.shape, features),
            expand_where(mask, x.ndim),
            float32_or_wider(x),
        )
        responded = partial(_responded, over, features, self.epsilon)
        if not over.axis:  # without positions a response is as large as the input
            responded = recomputed(responded)
        return responded(without_hidden(wide, where), affine, where)


def _responded(
    over: Reduction,
    features: tuple[int, ...],
    epsilon: float,
    wide: Array,
    affine: Mapping[str, Array],
    where: Array | None,
) -> Array:
    m = moments(wide, over, where)
    square = m.var * m.count
    there = square != 0  # NaN, too, is there
    response = jnp.where(there, jnp.sqrt(jnp.where(there, square, 1)), 0)
    there = jnp.broadcast_to(jnp.asarray(m.count) > 0, response.shape)
    counted = there.sum(features, keepdims=True, dtype=response.dtype)
    mean = response.sum(features, keepdims=True) / jnp.maximum(counted, 1)
    share = response / (mean + epsilon)
    share = share * affine["scale"].astype(wide.dtype) if "scale" in affine else share
    y = wide * (1 + share)
    return y + affine["bias"].astype(wide.dtype) if "bias" in affine else y
