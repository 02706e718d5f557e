"""Small models that take a norm as a value.

Layers have explicit names, so that under one seed every parameter that is not the norm's starts at the same number for
every norm; for the same reason dense and convolutional layers keep their bias even where a norm makes it redundant.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from normlab.norms import Norm


class MLP(nn.Module):
    """A multilayer perceptron: dense, norm, ReLU for each hidden layer, then a dense layer to the classes.

    Attributes:
        norm: What stands before each ReLU.
        hidden: Widths of the hidden layers.
        classes: Number of outputs.
    """

    norm: Norm
    hidden: Sequence[int] = (100, 100)
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map inputs (batch, ...) to logits (batch, classes); `mask` (batch,) is True for examples that count."""
        x = x.reshape(x.shape[0], -1)
        counted = {} if mask is None else {"mask": mask[:, None]}
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, name=f"dense_{i}")(x)
            x = nn.relu(self.norm.linen(train=train, name=f"norm_{i}")(x, **counted))
        return nn.Dense(self.classes, name="head")(x)


class ConvNet(nn.Module):
    """3 x 3 convolutions, each with norm and ReLU, then a mean over positions and a dense layer to the classes.

    Attributes:
        norm: What stands before each ReLU.
        widths: Output channels of each convolution.
        strides: Stride of each convolution.
        classes: Number of outputs.
    """

    norm: Norm
    widths: Sequence[int] = (16, 16, 32)
    strides: Sequence[int] = (2, 1, 2)
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        for i, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            x = Conv3x3(width, stride, name=f"conv_{i}")(x)
            x = nn.relu(self.norm.linen(train=train, name=f"norm_{i}")(x))
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class Conv3x3(nn.Module):
    """A 3 x 3 convolution with a border of one zero, as nine shifted slices and one matrix product.

    XLA runs convolutions inside `lax.scan` several times slower than this on CPU. Parameters are those of `nn.Conv`;
    the output is that of `nn.Conv(features, (3, 3), strides=stride, padding=1)`.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features)."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return patches3x3(x, self.stride) @ kernel.reshape(-1, self.features) + bias


def patches3x3(x: jax.Array, stride: int) -> jax.Array:
    """Gather the 3 x 3 neighbourhood of every `stride`-th position: first columns, then rows, in three slices each.

    Args:
        x: Shape (batch, height, width, channels).
        stride: Step between positions, in both directions.

    Returns:
        Shape (batch, ceil(height / stride), ceil(width / stride), 9 * channels), rows of the neighbourhood first.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.concatenate([padded[:, :, j : j + width : stride] for j in range(3)], axis=-1)
    return jnp.concatenate([columns[:, i : i + height : stride] for i in range(3)], axis=-1)
