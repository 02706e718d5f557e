"""Weight norm: length and direction of the weights that lead to an output feature are learned apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab.functional.kernels.kernel_norm import KernelNorm, inputs_of, scale_free, times, wide_kernel


def weight_norm(kernel: Array, g: Array | None = None) -> Array:
    """Give each output feature's weights a learned length (Salimans & Kingma, 2016).

    `kernel' = g * kernel / ||kernel||`

    Statistics: over all axes but the last, in float32 or wider; exact at every magnitude. Weights that are all zero
    stay zero and have a gradient of zero.

    Args:
        kernel: Raw kernel, `[..., out]`; only its direction counts.
        g: Lengths, `[out]`; `None` is 1.

    Returns:
        The kernel to use, with the shape and dtype of `kernel`.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0]))
        Array([[6.],
               [8.]], dtype=float32)

    References:
        Salimans, Kingma. Weight Normalization. NeurIPS 2016. https://arxiv.org/abs/1602.07868
    """
    kernel = jnp.asarray(kernel)
    unit, _ = scale_free(wide_kernel(kernel), inputs_of(kernel))
    square = lax.square(unit).sum(inputs_of(kernel), keepdims=True)
    there = square > 0
    new = jnp.where(there, unit * lax.rsqrt(jnp.where(there, square, 1)), 0)
    return times(new, "g", g).astype(output_dtype(kernel))


def column_norms(kernel: Array) -> Array:
    """Return the length of each output feature's weights, `[out]`, in the dtype of `kernel`.

    Args:
        kernel: Raw kernel, `[..., out]`.

    Example:
        >>> column_norms(jnp.array([[3.0, 0.0], [4.0, 0.0]]))
        Array([5., 0.], dtype=float32)
    """
    kernel = jnp.asarray(kernel)
    unit, size = scale_free(wide_kernel(kernel), inputs_of(kernel))
    square = lax.square(unit).sum(inputs_of(kernel), keepdims=True)
    return (size * jnp.sqrt(square)).reshape(-1).astype(output_dtype(kernel))


class Fitted(NamedTuple):
    """A layer's output for one batch, standardized, and what makes it so.

    Attributes:
        y: Output, `[..., *features]`.
        g: Lengths of the kernel.
        bias: Bias of the layer, or `None`.
    """

    y: Array
    g: Array
    bias: Array | None


def fit_to_batch(y: Array, g: Array, bias: Array | None = None) -> Fitted:
    """Choose `g` and `bias` so that the output has mean 0 and variance 1 over a batch (Salimans & Kingma, 2016).

    Without a bias the mean stays. A feature that is constant over the batch keeps its length.

    Args:
        y: Output with the present `g` and `bias`.
        g: Lengths of the kernel, flat.
        bias: Bias of the layer, of the shape of the output features.

    Returns:
        The output with the new values, and these.
    """
    flat = float32_or_wider(y).reshape(-1, g.size)
    mean, deviation = flat.mean(0, keepdims=True), flat.std(0, keepdims=True)
    mean = mean if bias is not None else jnp.zeros_like(mean)
    deviation = jnp.where(deviation > 0, deviation, 1)
    new = ((flat - mean) / deviation).reshape(y.shape).astype(y.dtype)
    if bias is not None:
        bias = ((bias.reshape(1, -1) - mean) / deviation).reshape(bias.shape).astype(bias.dtype)
    return Fitted(new, (g / deviation.reshape(g.shape)).astype(g.dtype), bias)


@dataclass(frozen=True, repr=False)
class WeightNorm(KernelNorm):
    """Weight norm; see `weight_norm`.

    Attributes:
        scale_init: First value of `g`. `norm`: the length of the kernel, so that nothing changes at the start. `ones`:
            1, as in Flax.
    """

    scale_init: Literal["norm", "ones"] = "norm"

    name: ClassVar[str] = "weight_norm"
    title: ClassVar[str] = "weight norm"
    parameter_names: ClassVar[tuple[str, ...]] = ("g",)
    formula: ClassVar[str] = "g · w / ‖w‖"
    over: ClassVar[str] = "weights of an output feature"
    paper: ClassVar[str] = "Salimans & Kingma 2016"
    url: ClassVar[str] = "https://arxiv.org/abs/1602.07868"

    def __post_init__(self) -> None:
        if self.scale_init not in ("norm", "ones"):
            raise ValueError(f"Expected `scale_init` to be 'norm' or 'ones', got {self.scale_init!r}.")

    def parameters(self, kernel: Array) -> dict[str, Array]:
        """Return the first lengths."""
        lengths = column_norms(kernel)
        return {"g": lengths if self.scale_init == "norm" else jnp.ones_like(lengths)}

    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Give a kernel its lengths; see `KernelNorm`."""
        return weight_norm(kernel, parameters["g"]), {}
