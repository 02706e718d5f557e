"""Norms by the size of one example's features, with no mean: the base of SeeDNorm, BHyT and L2 norm."""

import math
from dataclasses import dataclass, replace
from typing import Self

from jax import Array

from normlab._core.checks import AxisName, check_epsilon
from normlab._core.layer import Layer
from normlab._core.reduction import Axes, Groups, Reduction, canonical_axes, check_more_than_one, reduction

__all__ = ["MagnitudeLayer"]


@dataclass(frozen=True)
class MagnitudeLayer(Layer):
    """A norm without state that divides by the size of the features of one position.

    Attributes:
        epsilon: Keeps the divisor from 0.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        reduction_axes: Axes reduced.
        feature_axes: Axes along which the parameters vary.
    """

    epsilon: float = 1e-6
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    reduction_axes: Axes = -1
    feature_axes: Axes = -1

    def __post_init__(self) -> None:
        """Check the options."""
        check_epsilon(self.epsilon)

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm of a single device."""
        return replace(self, axis_name=None, axis_index_groups=None), train

    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Describe the elements that share a size, and check that they are more than one."""
        over = reduction(
            canonical_axes(self.reduction_axes, x.ndim, "reduction_axes"),
            affine=features,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            center=False,
        )
        if math.prod(x.shape[a] for a in over.axis) == 1:
            check_more_than_one(x.shape, over, "Reduce over more axes or features, or leave the norm out")
        return over
