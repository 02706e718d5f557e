"""Convolutions that are fast on every platform, and the pooling between them.

XLA:CPU hands a convolution to a fast library only if its axes have one order, which this module calls canonical: images
(batch, height, width, channels), kernels (height, width, channels, features). Other orders, such as those of JAX's
gradients, are put into this order outside of loops alone; inside `lax.scan`, in which runs train, a gradient takes 20
to 50 times as long. So on CPU `convolve` has derivatives whose transposes, which are the backward pass, are canonical.

On accelerators XLA's convolution serves one model. `jax.vmap` over models would make convolutions in groups, with
windows as large as an image for the gradients of kernels. So models that are stacked (see `models.stacking`) convolve
by batched matrix products.
"""

import itertools
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.custom_derivatives import SymbolicZero

from normlab.models.stacking import stacked

PRODUCTS = "stacked_convolution"
"""Name of the matrix products of stacked convolutions in a lowered program."""

_FEW = 32
"""Numbers of a neighbourhood up to which a matrix product of patches is faster than the library, as for RGB images."""

_AT_ONCE = 2 * 2**20
"""Numbers of all patches up to which they are gathered."""

_VECTOR = 8
"""Examples whose multiples the library loads as vectors where it contracts over the batch."""

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. (2015), fan out, as in their ResNet (2016): standard deviation sqrt(2 / (k^2 * features))."""


class Conv(nn.Module):
    """A convolution with a border of zeros; see `convolve`. Parameters are those of `nn.Conv`.

    Attributes:
        features: Output channels.
        size: Height and width of the kernel, odd.
        stride: Step between positions, in both directions.
        use_bias: Whether there is a bias.
        kernel_init: Initializer of the kernel.
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features), rounded up."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        y = convolve(x, kernel, self.stride)
        return y + self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else y


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve images with a border of zeros half as wide as the kernel.

    Args:
        x: Shape (batch, height, width, channels).
        kernel: Shape (size, size, channels, features), size odd.
        stride: Step between positions, in both directions.

    Returns:
        Shape (batch, ceil(height / stride), ceil(width / stride), features), in the wider dtype of both.
    """
    x, kernel = promote_dtype(x, kernel)
    if jax.default_backend() != "cpu":
        if not stacked():
            return _by_xla(x, kernel, stride)
        with jax.named_scope(PRODUCTS):
            return _by_products(x, kernel, stride)
    height, width = (-(-length // stride) for length in x.shape[1:3])
    if len(kernel) == 1 or height * width < len(kernel) ** 2:  # XLA would exchange the images and a larger kernel
        return _by_patches(x, kernel, stride)
    return _in_loops(x, kernel, stride)


def _by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return patches(x, len(kernel), stride) @ kernel.reshape(-1, kernel.shape[-1])


def _by_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Multiply every position by the whole kernel, and add up the products that belong to one position.

    XLA sums as it takes the statistics of the norm that follows. In the backward pass one gathering of patches serves
    the gradients of images and kernel, and `x` is all that is saved. Products at every position are too many where
    positions are left out, and patches are smaller where there are few channels.
    """
    size, _, channels, features = kernel.shape
    if stride > 1 or channels < features:
        return _by_patches(x, kernel, stride)
    height, width = x.shape[1:3]
    border, wide = size // 2, jnp.promote_types(x.dtype, jnp.float32)
    products = jnp.matmul(x, kernel.transpose(2, 0, 1, 3).reshape(channels, -1), preferred_element_type=wide)
    products = jnp.pad(products, [(0, 0), (border, border), (border, border), (0, 0)])
    places = itertools.product(range(size), repeat=2)
    terms = [
        products[:, row : row + height, column : column + width, i * features : (i + 1) * features]
        for i, (row, column) in enumerate(places)
    ]
    return reduce(jnp.add, terms).astype(x.dtype)


def _by_xla(x: jax.Array, kernel: jax.Array, stride: int, axes: str = "HWIO") -> jax.Array:
    """Convolve with a kernel of some order of axes: height, width, input (channels), output (features)."""
    border = len(kernel) // 2
    borders = [(border, border)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), borders, dimension_numbers=("NHWC", axes, "NHWC"))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _in_loops(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve with derivatives that are fast in loops; see `convolve`."""
    size, _, channels, _ = kernel.shape
    gather = size * size * channels <= _FEW and x.size * size * size <= _AT_ONCE * stride * stride
    return (_by_patches if gather else _by_xla)(x, kernel, stride)


@partial(_in_loops.defjvp, symbolic_zeros=True)
def _derivative(
    stride: int, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array | SymbolicZero, ...]
) -> tuple[jax.Array, jax.Array]:
    """Differentiate by `x` and by `kernel`, each only if it changes."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _in_loops(x, kernel, stride)
    terms = [] if isinstance(dx, SymbolicZero) else [_of_images(dx, kernel, stride)]
    terms += [] if isinstance(dkernel, SymbolicZero) else [_of_kernels(x, dkernel, stride)]
    return y, reduce(jnp.add, terms)


def _of_images(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve such that the transpose to `x` is canonical: a kernel with features first becomes one with them last."""
    return _by_xla(x, kernel.swapaxes(2, 3), stride, "HWOI")


def _of_kernels(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve such that the transpose to `kernel` is canonical: its images are channels, its channels the batch.

    A batch that is no multiple of a vector is first cut into rows, which have their neighbours as channels.
    """
    batch, (size, *_, features), border = len(x), kernel.shape, len(kernel) // 2
    steps, borders = [stride, stride], [(border, border)] * 2
    if batch % _VECTOR:
        x = _neighbours(x, size, stride, axis=1)
        x = x.reshape(-1, 1, *x.shape[2:])
        kernel = kernel.swapaxes(0, 1).reshape(1, size, -1, features)
        steps[0], borders[0] = 1, (0, 0)
    y = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        kernel.transpose(2, 0, 1, 3),
        steps,
        borders,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )
    y = y.transpose(2, 0, 1, 3)
    return y.reshape(batch, -1, *y.shape[2:])


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Gather the neighbourhood of every `stride`-th position: first columns, then rows, in `size` slices each.

    Args:
        x: Shape (..., height, width, channels).
        size: Height and width of a neighbourhood, odd.
        stride: Step between positions, in both directions.

    Returns:
        Shape (..., ceil(height / stride), ceil(width / stride), size^2 * channels), rows of the neighbourhood first.
    """
    return _neighbours(_neighbours(x, size, stride, -2), size, stride, -3)


def _neighbours(x: jax.Array, size: int, stride: int, axis: int) -> jax.Array:
    """Append the channels of the neighbours along an axis, at every `stride`-th position."""
    length, border = x.shape[axis], size // 2
    padding = [(0, 0)] * x.ndim
    padding[axis] = (border, border)
    padded = jnp.pad(x, padding)
    shifted = [lax.slice_in_dim(padded, i, i + length, stride, axis) for i in range(size)]
    return jnp.concatenate(shifted, axis=-1)


def halved(x: jax.Array) -> jax.Array:
    """Max-pool windows of 2 x 2 positions; windows at the far border of an odd size are smaller.

    Equal maxima share the gradient. On XLA:CPU this takes a fifth of the time of a window reduction.

    Args:
        x: Shape (batch, height, width, channels).

    Returns:
        Shape (batch, ceil(height / 2), ceil(width / 2), channels).
    """
    batch, height, width, channels = x.shape
    border = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    x = jnp.pad(x, border, constant_values=-jnp.inf) if height % 2 or width % 2 else x
    return x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).max(axis=(2, 4))
