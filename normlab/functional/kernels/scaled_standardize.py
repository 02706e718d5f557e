"""Scaled weight standardization: weights that keep the variance of activations, with a learned gain."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_epsilon
from normlab._core.dtypes import output_dtype
from normlab.functional.kernels.kernel_norm import KernelNorm, times, wide_kernel
from normlab.functional.kernels.standardize import centre_and_variance
from normlab.notation import unknown

ACTIVATION_GAINS: Mapping[str, float] = MappingProxyType(
    {
        "identity": 1.0,
        "relu": 1.7139588594436646,
        "gelu": 1.7015043497085571,
        "silu": 1.7881293296813965,
        "tanh": 1.5939117670059204,
        "elu": 1.2716004848480225,
        "leaky_relu": 1.70590341091156,
    }
)
"""Reciprocals of the standard deviation of a nonlinearity's output, where its input is standard normal."""


def scaled_standardize(
    kernel: Array, gain: Array | None = None, *, activation_gain: float = 1.0, epsilon: float = 1e-4
) -> Array:
    """Standardize each output feature's weights to variance 1 / fan-in (Brock et al., 2021).

    `kernel' = gain * activation_gain * (kernel - mean) / sqrt(max(var * fan_in, epsilon))`

    Statistics: over all axes but the last, in float32 or wider. The epsilon is a bound and no summand: below it the
    divisor is constant.

    Args:
        kernel: Raw kernel, `[..., out]`.
        gain: Learned gain, `[out]`; `None` is 1.
        activation_gain: Constant factor, that of the nonlinearity before the layer; see `ACTIVATION_GAINS`.
        epsilon: Least value of `var * fan_in`.

    Returns:
        The kernel to use, with the shape and dtype of `kernel`.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> scaled_standardize(jnp.array([[1.0], [3.0]]), jnp.array([2.0])).round(3)
        Array([[-1.414],
               [ 1.414]], dtype=float32)

    References:
        Brock, De, Smith. Characterizing signal propagation to close the performance gap in unnormalized ResNets. ICLR
        2021. https://arxiv.org/abs/2101.08692
    """
    kernel = jnp.asarray(kernel)
    centre, var = centre_and_variance(wide_kernel(kernel))
    square = jnp.maximum(var * (kernel.size // kernel.shape[-1]), epsilon)
    new = centre * jnp.where(square < jnp.inf, lax.rsqrt(square), jnp.nan) * activation_gain
    return times(new, "gain", gain).astype(output_dtype(kernel))


@dataclass(frozen=True, repr=False)
class ScaledStandardize(KernelNorm):
    """Scaled weight standardization; see `scaled_standardize`.

    Attributes:
        activation_gain: Constant factor, or the name of a nonlinearity of `ACTIVATION_GAINS`.
        epsilon: Least value of `var * fan_in`.
    """

    activation_gain: float | str = 1.0
    epsilon: float = 1e-4

    name: ClassVar[str] = "scaled_standardize"
    title: ClassVar[str] = "scaled weight standardization"
    parameter_names: ClassVar[tuple[str, ...]] = ("gain",)
    formula: ClassVar[str] = "gain · (w - mean) / sqrt(max(var · fan-in, ε))"
    over: ClassVar[str] = "weights of an output feature"
    paper: ClassVar[str] = "Brock et al. 2021"
    url: ClassVar[str] = "https://arxiv.org/abs/2101.08692"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        gain = self.activation_gain
        if isinstance(gain, str):
            if gain not in ACTIVATION_GAINS:
                raise unknown(gain, "a nonlinearity", ACTIVATION_GAINS)
        elif isinstance(gain, bool) or not isinstance(gain, Real):
            raise TypeError(f"Expected `activation_gain` to be a number or a nonlinearity's name, got {gain!r}.")

    def parameters(self, kernel: Array) -> dict[str, Array]:
        """Return a gain of 1."""
        return {"gain": jnp.ones(kernel.shape[-1:], output_dtype(kernel))}

    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Standardize a kernel; see `KernelNorm`."""
        given = self.activation_gain
        factor = ACTIVATION_GAINS[given] if isinstance(given, str) else given
        return scaled_standardize(kernel, parameters["gain"], activation_gain=factor, epsilon=self.epsilon), {}
