"""Weight standardization: the weights that lead to an output feature get mean 0 and variance 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_epsilon, check_flags
from normlab._core.dtypes import output_dtype
from normlab._core.roots import reciprocal_root
from normlab.functional.kernels.centralize import centred
from normlab.functional.kernels.kernel_norm import KernelNorm, inputs_of, wide_kernel


def standardize(
    kernel: Array, *, epsilon: float = 1e-5, unbiased: bool = False, epsilon_outside: bool = False
) -> Array:
    """Standardize each output feature's weights (Qiao et al., 2019).

    `kernel' = (kernel - mean) / sqrt(var + epsilon)`

    Statistics: over all axes but the last, in float32 or wider. A filter of equal weights, also one of a single weight,
    gives zeros and finite gradients; weights whose squares overflow give NaN.

    Args:
        kernel: Raw kernel, `[..., out]`.
        epsilon: Added to the variance, inside the root.
        unbiased: Whether the variance counts n - 1, as in the authors' PyTorch code.
        epsilon_outside: Whether `epsilon` is added to the standard deviation, outside the root, as in the same code.

    Returns:
        The kernel to use, with the shape and dtype of `kernel`.

    Raises:
        ValueError: If `kernel` has fewer than two axes.

    Example:
        >>> standardize(jnp.array([[1.0], [3.0]])).round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)

    References:
        Qiao, Wang, Liu, Shen, Yuille. Micro-Batch Training with Batch-Channel Normalization and Weight Standardization.
        2019. https://arxiv.org/abs/1903.10520
    """
    kernel = jnp.asarray(kernel)
    centre, var = centre_and_variance(wide_kernel(kernel), unbiased)
    return (centre * _inverse(var, epsilon, epsilon_outside)).astype(output_dtype(kernel))


def centre_and_variance(kernel: Array, unbiased: bool = False) -> tuple[Array, Array]:
    """Return a wide kernel minus its means, and the variances, whose axes are kept."""
    centre = centred(kernel)
    count = kernel.size // kernel.shape[-1]
    count = max(count - 1, 1) if unbiased else count
    return centre, lax.square(centre).sum(inputs_of(kernel), keepdims=True) / count


def _inverse(var: Array, epsilon: float, outside: bool) -> Array:
    """Return the reciprocal of the standard deviation with its epsilon; any number where both are zero."""
    if not outside:
        square = var + epsilon
        return reciprocal_root(jnp.where(square > 0, square, 1), 1)
    there = var > 0
    deviation = jnp.where(there, 1 / reciprocal_root(jnp.where(there, var, 1), 1), 0) + epsilon
    return 1 / jnp.where(deviation == 0, 1, deviation)


@dataclass(frozen=True, repr=False)
class Standardize(KernelNorm):
    """Weight standardization; see `standardize`.

    Attributes:
        epsilon: Added to the variance, inside the root.
        unbiased: Whether the variance counts n - 1.
        epsilon_outside: Whether `epsilon` is outside the root.
    """

    epsilon: float = 1e-5
    unbiased: bool = False
    epsilon_outside: bool = False

    name: ClassVar[str] = "standardize"
    title: ClassVar[str] = "weight standardization"
    formula: ClassVar[str] = "(w - mean) / sqrt(var + ε)"
    over: ClassVar[str] = "weights of an output feature"
    paper: ClassVar[str] = "Qiao et al. 2019"
    url: ClassVar[str] = "https://arxiv.org/abs/1903.10520"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_flags(self, "unbiased", "epsilon_outside")

    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Standardize a kernel; see `KernelNorm`."""
        options = {"unbiased": self.unbiased, "epsilon_outside": self.epsilon_outside}
        return standardize(kernel, epsilon=self.epsilon, **options), {}
