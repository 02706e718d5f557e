"""Norms within one example, with their options: the base of layer, RMS, group and instance norm."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import jax.numpy as jnp
from jax import Array

from normlab._core.checks import AxisName, check_epsilon, check_flags
from normlab._core.dtypes import float32_or_wider
from normlab._core.layer import Layer, Parameters, State
from normlab._core.reduction import Groups, Reduction, expand_affine, expand_where, moments
from normlab._core.standardize import standardize


@dataclass(frozen=True)
class PerExampleLayer(Layer):
    """A norm without state, whose statistics are those of one example; a subclass says over what.

    Attributes:
        epsilon: Added to the variance, inside the root.
        axis_name: Mapped axes over which the reduced axes are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
    """

    epsilon: float = 1e-6
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    use_fast_variance: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if type(self.epsilon) is not float or not 0 <= self.epsilon < 1:
            check_epsilon(self.epsilon)
        if type(self.use_fast_variance) is not bool:
            check_flags(self, "use_fast_variance")

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm of a single device."""
        return replace(self, axis_name=None, axis_index_groups=None), train

    @abstractmethod
    def over(self, x: Array, features: tuple[int, ...]) -> Reduction:
        """Describe the elements that share a statistic, and check that they are more than one."""

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
        """Standardize each example; see `Layer`."""
        return self.normalized(x, self.over(x, features), parameters, features, mask), state

    def normalized(
        self,
        x: Array,
        over: Reduction,
        parameters: Parameters,
        features: tuple[int, ...],
        mask: Array | None,
    ) -> Array:
        """Standardize over a reduction; the output is in float32 or wider."""
        affine = expand_affine(parameters, x.shape, features)
        where = mask if mask is None else expand_where(mask, x.ndim)
        wide = x if x.dtype == jnp.float32 else float32_or_wider(x)
        m = moments(wide, over, where, use_fast_variance=self.use_fast_variance)
        return standardize(over, wide, m, self.epsilon, **affine, where=where)
