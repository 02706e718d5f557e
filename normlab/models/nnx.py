"""Some of the networks in NNX, with the parameters and outputs of the Linen networks.

Attributes are named after the Linen modules, so that parameters have the same tree.
"""

from collections.abc import Sequence
from typing import Literal

import jax
from flax import nnx

from normlab.models.convolution import HE_NORMAL, convolve
from normlab.models.mlp import activation
from normlab.models.resnet import ConvLayer, basic_blocks, padded
from normlab.norms import Norm

__all__ = ["MLP", "ResNet"]


class MLP(nnx.Module):
    """A multilayer perceptron; see `normlab.models.mlp.MLP`."""

    def __init__(
        self,
        norm: Norm,
        inputs: int,
        hidden: Sequence[int] = (100, 100),
        classes: int = 10,
        activation: Literal["relu", "sigmoid"] = "relu",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers; `inputs` is the size of an example."""
        self.depth, self.activation, self.norm = len(hidden), activation, norm
        for i, (wide, width) in enumerate(zip((inputs, *hidden), hidden, strict=False)):
            setattr(self, f"dense_{i}", nnx.Linear(wide, width, rngs=rngs))
            setattr(self, f"norm_{i}", norm.nnx(width, rngs=rngs))
        self.head = nnx.Linear((inputs, *hidden)[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Map inputs (batch, ...) to logits (batch, classes); `mask` (batch,) is True for examples that count."""
        activate = activation(self.activation)
        x = x.reshape(x.shape[0], -1)
        counted = {} if mask is None else {"mask": mask[:, None]}
        for i in range(self.depth):
            x = self.norm.activate(getattr(self, f"norm_{i}")(getattr(self, f"dense_{i}")(x), **counted), activate)
        return self.head(x)


class ResNet(nnx.Module):
    """Residual network for images of 32 x 32 pixels; see `normlab.models.resnet.ResNet`, placement `post`."""

    def __init__(self, norm: Norm, depth: int = 20, classes: int = 10, channels: int = 3, *, rngs: nnx.Rngs) -> None:
        """Make the layers; `channels` is the number of channels of the images."""
        self.norm, self.stem = norm, Conv(channels, ConvLayer(16), rngs=rngs)
        self.norm_stem = norm.nnx(16, rngs=rngs)
        blocks = basic_blocks(depth)
        self.blocks = len(blocks)
        wide = 16
        for i, layers in enumerate(blocks):
            setattr(self, f"block_{i}", _Block(norm, wide, layers, rngs=rngs))
            wide = layers[-1].features
        self.head = nnx.Linear(wide, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        x = self.norm.activate(self.norm_stem(self.stem(x)), nnx.relu)
        for i in range(self.blocks):
            x = getattr(self, f"block_{i}")(x)
        return self.head(x.mean(axis=(1, 2)))


class _Block(nnx.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, norm: Norm, channels: int, layers: Sequence[ConvLayer], *, rngs: nnx.Rngs) -> None:
        first, second = layers
        self.norm = norm
        self.conv_0 = Conv(channels, first, rngs=rngs)
        self.norm_0 = norm.nnx(first.features, rngs=rngs)
        self.conv_1 = Conv(first.features, second, rngs=rngs)
        self.norm_1 = norm.linear.nnx(second.features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features)."""
        y = self.norm_1(self.conv_1(self.norm.activate(self.norm_0(self.conv_0(x)), nnx.relu)))
        stride = self.conv_0.stride
        return nnx.relu(y + padded(x[:, ::stride, ::stride], y.shape[-1]))


class Conv(nnx.Module):
    """A convolution without bias, initialized by `HE_NORMAL`; see `normlab.models.convolution.convolve`."""

    def __init__(self, channels: int, layer: ConvLayer, *, rngs: nnx.Rngs) -> None:
        """Make the kernel; `channels` is the number of channels of the input."""
        shape = (layer.size, layer.size, channels, layer.features)
        self.kernel = nnx.Param(HE_NORMAL(rngs.params(), shape))
        self.stride = layer.stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve images; see `convolve`."""
        return convolve(x, self.kernel[...], self.stride)
