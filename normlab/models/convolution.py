"""Convolutions that are fast on every platform, and the pooling between them.

Inside `lax.scan`, in which runs train, a convolution takes XLA:CPU 5 to 30 times as long as gathering patches and
taking one matrix product, so `convolve` does the latter there. Patches that exceed the processor's cache cost time and
are stored for the backward pass, so large batches are processed in blocks whose patches fit and are gathered again when
needed.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

_AT_ONCE = 8 * 2**20
"""Bytes of patches up to which a batch is processed whole."""

_BLOCK = 2 * 2**20
"""Bytes of the patches of a block, unless a single example has more."""

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
    if jax.default_backend() == "cpu":
        return _by_patches(x, kernel, stride)
    border = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(border, border)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve by one matrix product of patches and kernel; see `convolve`."""
    size, features = kernel.shape[0], kernel.shape[-1]

    def product(x: jax.Array) -> jax.Array:
        return patches(x, size, stride) @ kernel.reshape(-1, features)

    each = jax.eval_shape(lambda x: patches(x, size, stride), x[0])
    bytes_each = each.size * each.dtype.itemsize
    n = len(x)
    if size == 1 or bytes_each * n <= _AT_ONCE:
        return product(x)
    most = max(1, _BLOCK // bytes_each)
    blocks = next(count for count in range(-(-n // most), n + 1) if n % count == 0)
    # A block contains every `blocks`-th example, so that examples stay on their device if devices share the batch.
    apart = x.reshape(n // blocks, blocks, *x.shape[1:]).swapaxes(0, 1)
    y = lax.map(jax.checkpoint(product, prevent_cse=False), apart).swapaxes(0, 1)
    return y.reshape(n, *y.shape[2:])


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Gather the neighbourhood of every `stride`-th position: first columns, then rows, in `size` slices each.

    Args:
        x: Shape (..., height, width, channels).
        size: Height and width of a neighbourhood, odd.
        stride: Step between positions, in both directions.

    Returns:
        Shape (..., ceil(height / stride), ceil(width / stride), size^2 * channels), rows of the neighbourhood first.
    """
    height, width, _ = x.shape[-3:]
    border = (size // 2,) * 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [border, border, (0, 0)])
    columns = jnp.concatenate([padded[..., j : j + width : stride, :] for j in range(size)], axis=-1)
    return jnp.concatenate([columns[..., i : i + height : stride, :, :] for i in range(size)], axis=-1)


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
