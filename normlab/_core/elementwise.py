"""Functions of one element with learned numbers, then scale and bias: the base of dynamic tanh and erf."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from normlab._core.checks import AxisName
from normlab._core.dtypes import float32_or_wider
from normlab._core.hidden import without_hidden
from normlab._core.layer import Layer, Parameters, State
from normlab._core.reduction import Axes, expand_affine
from normlab._core.standardize import scaled

__all__ = ["ElementwiseLayer"]


@dataclass(frozen=True)
class ElementwiseLayer(Layer):
    """A function of one element that stands where a norm would; `parameters` are scalars.

    Attributes:
        feature_axes: Axes along which scale and bias vary.
        alpha_init: Initial value of the parameter `alpha`.
        axis_name: Without effect, since there are no statistics; a network gives it to all norms alike.
    """

    feature_axes: Axes = -1
    alpha_init: float = 0.5
    axis_name: AxisName | None = None

    @abstractmethod
    def squashed(self, x: Array, parameters: Mapping[str, Array]) -> Array:
        """Return the function of `x`, which is in float32 or wider, as the parameters are."""

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
        """Squash `x`, then scale and shift; see `Layer`."""
        affine = expand_affine({name: parameters.get(name) for name in ("scale", "bias")}, x.shape, features)
        wide = without_hidden(float32_or_wider(x), mask)
        scalars = {name: jnp.asarray(parameters[name], wide.dtype) for name in self.parameters}
        return scaled(self.squashed(wide, scalars), affine.get("scale"), affine.get("bias")), state
