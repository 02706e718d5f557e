"""Centred kernels: the mean of the weights that lead to an output feature is subtracted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.dtypes import output_dtype
from normlab.functional.kernels.kernel_norm import KernelNorm, inputs_of, wide_kernel


def centralize(kernel: Array) -> Array:
    """Subtract the mean of each output feature's weights (Yan et al., 2020).

    `kernel' = kernel - mean`

    Statistics: over all axes but the last, in float32 or wider. A filter of equal weights gives exact zeros.

    Args:
        kernel: Raw kernel, `[..., out]`.

    Returns:
        The kernel to use, with the shape and dtype of `kernel`.

    Raises:
        ValueError: If `kernel` has fewer than two axes.

    Example:
        >>> centralize(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
        Array([[-1.,  0.],
               [ 1.,  0.]], dtype=float32)

    References:
        Yan, Wan, Zhang, Zhang, Wei, Sun. Towards Stabilizing Batch Statistics in Backward Propagation of Batch
        Normalization. ICLR 2020. https://arxiv.org/abs/2001.06838
    """
    kernel = jnp.asarray(kernel)
    return centred(wide_kernel(kernel)).astype(output_dtype(kernel))


def centred(kernel: Array) -> Array:
    """Subtract the means of a kernel in its own dtype, about one of the weights: equal weights leave no rounding."""
    first = lax.stop_gradient(kernel[(slice(0, 1),) * (kernel.ndim - 1)])
    shifted = kernel - first
    return shifted - shifted.mean(inputs_of(kernel), keepdims=True)


@dataclass(frozen=True, repr=False)
class Centralize(KernelNorm):
    """Centred kernels; see `centralize`."""

    name: ClassVar[str] = "centralize"
    title: ClassVar[str] = "centred weights"
    formula: ClassVar[str] = "w - mean"
    over: ClassVar[str] = "weights of an output feature"
    paper: ClassVar[str] = "Yan et al. 2020"
    url: ClassVar[str] = "https://arxiv.org/abs/2001.06838"

    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Centre a kernel; see `KernelNorm`."""
        return centralize(kernel), {}
