"""Residual networks (He et al., 2016) that take a norm as a value.

Convolutions are initialized by `HE_NORMAL` and have no bias; norms and the dense layer keep their default initializers.
Layers have explicit names, so that under one seed all parameters except the norm's start the same for every norm.
A norm that is an activation, too, stands for norm and ReLU, and is without its activation where a branch ends.

References:
    He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. https://arxiv.org/abs/1512.03385
    He, Zhang, Ren, Sun. Identity Mappings in Deep Residual Networks. ECCV 2016. https://arxiv.org/abs/1603.05027
    Goyal et al. Accurate, Large Minibatch SGD. 2017 (scales of zero). https://arxiv.org/abs/1706.02677
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from normlab import norms
from normlab.models.convolution import HE_NORMAL, Conv
from normlab.models.residual import Residual, check_residual, weighted
from normlab.norms import Norm

Placement = Literal["post", "pre"]
convolution = partial(Conv, use_bias=False, kernel_init=HE_NORMAL)


class ConvLayer(NamedTuple):
    """A convolution of a block."""

    features: int
    size: int = 3
    stride: int = 1


class ResNet(nn.Module):
    """Residual network for images of 32 x 32 pixels: three stages of 16, 32 and 64 channels.

    A block has two 3 x 3 convolutions; where it changes the shape, the shortcut skips positions and pads the channels
    with zeros (option A), without parameters.

    Attributes:
        norm: Norm after (`post`) or before (`pre`) each convolution.
        depth: 6n + 2, with n blocks a stage: 20, 32, 44, 56, 110.
        classes: Number of outputs.
        placement: `post`: convolution, norm, ReLU, with the last ReLU after the addition (first paper). `pre`: norm,
            ReLU, convolution, with a norm and a ReLU after the last block (second paper).
        zero_last_scale: Whether the scale of each block's last norm starts at 0, so that a block starts as its
            shortcut; only for `post`. It has no effect on a norm without `scale_init`, such as `none`.
        residual: Learned factor of each branch, with which the network trains without norms: `skipinit` and `rezero`
            have a number that starts at 0, and convolutions of blocks a bias with `skipinit`; `layer_scale` has a
            number for each channel, from 1e-5 on.
    """

    norm: Norm
    depth: int = 20
    classes: int = 10
    placement: Placement = "post"
    zero_last_scale: bool = False
    residual: Residual = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        x = convolution(16, name="stem")(x)
        if self.placement == "post":
            x = self.norm.activate(self.norm.linen(train=train, name="norm_stem")(x), nn.relu)
        return _blocks_and_head(self, x, basic_blocks(self.depth), train)


class ResNet50(nn.Module):
    """Residual network of 50 layers for ImageNet, 224 x 224 pixels.

    A block has a 1 x 1, a 3 x 3 and a 1 x 1 convolution; where it changes the shape, the shortcut is a 1 x 1
    convolution, in `post` with a norm. The 3 x 3 convolution halves the image, as in most published results, not the
    first 1 x 1 convolution as in the paper; the parameters are the same.

    Attributes:
        norm: See `ResNet`.
        classes: Number of outputs.
        placement: See `ResNet`.
        zero_last_scale: See `ResNet`.
        residual: See `ResNet`.
    """

    norm: Norm
    classes: int = 1000
    placement: Placement = "post"
    zero_last_scale: bool = False
    residual: Residual = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        x = convolution(64, 7, 2, name="stem")(x)
        if self.placement == "post":
            x = self.norm.activate(self.norm.linen(train=train, name="norm_stem")(x), nn.relu)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        return _blocks_and_head(self, x, _bottleneck_blocks(), train)


class _Block(nn.Module):
    """Residual block of either placement.

    Attributes:
        norm: See `ResNet`.
        layers: Convolutions of the block; the first 3 x 3 convolution has the stride.
        placement: See `ResNet`.
        zero_last_scale: See `ResNet`.
        first: Whether the block is the network's first, whose shortcut in `pre` starts after norm and ReLU.
        residual: See `ResNet`.
    """

    norm: Norm
    layers: Sequence[ConvLayer]
    placement: Placement
    zero_last_scale: bool
    first: bool
    residual: Residual = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features)."""
        return self._post(x, train) if self.placement == "post" else self._pre(x, train)

    def _post(self, x: jax.Array, train: bool) -> jax.Array:
        *inner, last = range(len(self.layers))
        y = x
        for i in inner:
            y = self._activated(i, self._conv(i)(y), train)
        norm = starting_at_zero(self.norm.linear) if self.zero_last_scale else self.norm.linear
        y = norm.linen(train=train, name=f"norm_{last}")(self._conv(last)(y))
        return nn.relu(weighted(self, self.residual, "residual", y) + self._shortcut(x, train))

    def _pre(self, x: jax.Array, train: bool) -> jax.Array:
        y = self._activated(0, x, train)
        shortcut = self._shortcut(y if self.first or self._projects(x) else x, train)
        y = self._conv(0)(y)
        for i in range(1, len(self.layers)):
            y = self._conv(i)(self._activated(i, y, train))
        return weighted(self, self.residual, "residual", y) + shortcut

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        features, stride = self.layers[-1].features, self._stride()
        if not self._projects(x):
            return padded(x[:, ::stride, ::stride], features)
        x = convolution(features, 1, stride, name="shortcut")(x)
        return x if self.placement == "pre" else self.norm.linear.linen(train=train, name="norm_shortcut")(x)

    def _projects(self, x: jax.Array) -> bool:
        changes = self._stride() > 1 or x.shape[-1] != self.layers[-1].features
        return changes and len(self.layers) == 3

    def _stride(self) -> int:
        return max(layer.stride for layer in self.layers)

    def _conv(self, i: int) -> Conv:
        return convolution(*self.layers[i], use_bias=self.residual == "skipinit", name=f"conv_{i}")

    def _activated(self, i: int, x: jax.Array, train: bool) -> jax.Array:
        return self.norm.activate(self.norm.linen(train=train, name=f"norm_{i}")(x), nn.relu)


def _blocks_and_head(
    net: ResNet | ResNet50, x: jax.Array, blocks: Sequence[Sequence[ConvLayer]], train: bool
) -> jax.Array:
    """Apply everything after the stem, as submodules of `net`."""
    _check(net.placement, net.zero_last_scale)
    check_residual(net.residual)
    block = partial(_Block, net.norm, placement=net.placement, zero_last_scale=net.zero_last_scale)
    for i, layers in enumerate(blocks):
        x = block(layers, residual=net.residual, first=i == 0, name=f"block_{i}")(x, train=train)
    if net.placement == "pre":
        x = net.norm.activate(net.norm.linen(train=train, name="norm_last")(x), nn.relu)
    return nn.Dense(net.classes, name="head")(x.mean(axis=(1, 2)))


def basic_blocks(depth: int) -> list[list[ConvLayer]]:
    """Return the blocks of a network for 32 x 32 pixels.

    Raises:
        ValueError: If `depth` is not 6n + 2.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"Expected `depth` to be 6n + 2 with n of at least 1, such as 20 or 56, got {depth}.")
    stages = [(width, i) for width in (16, 32, 64) for i in range(n)]
    return [[ConvLayer(width, stride=2 if width > 16 and i == 0 else 1), ConvLayer(width)] for width, i in stages]


def _bottleneck_blocks() -> list[list[ConvLayer]]:
    stages = [(width, i) for width, n in ((64, 3), (128, 4), (256, 6), (512, 3)) for i in range(n)]
    return [
        [ConvLayer(width, 1), ConvLayer(width, stride=2 if width > 64 and i == 0 else 1), ConvLayer(4 * width, 1)]
        for width, i in stages
    ]


def padded(x: jax.Array, features: int) -> jax.Array:
    """Append channels of zeros until there are `features` channels."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, features - x.shape[-1])])


def starting_at_zero(norm: Norm) -> Norm:
    """Return the norm with a scale that starts at zero; the norm itself if its module has no `scale_init`."""
    module = norm.linen(train=True, parent=None)
    if not hasattr(module, "scale_init"):
        return norm
    offset = getattr(module, "scale_offset", 0.0)
    return norms.get(norm, scale_init=nn.initializers.constant(-offset) if offset else nn.initializers.zeros)


def _check(placement: str, zero_last_scale: bool) -> None:
    if placement not in ("post", "pre"):
        raise ValueError(f"Expected `placement` to be 'post' or 'pre', got {placement!r}.")
    if zero_last_scale and placement == "pre":
        raise ValueError(
            "Expected `placement='post'` with `zero_last_scale`, got 'pre', where each norm is followed by a ReLU: a "
            "scale of zero would let no gradient through. Leave `zero_last_scale` out."
        )
