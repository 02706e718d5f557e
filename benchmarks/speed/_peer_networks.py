"""The zoo's networks for images of 32 x 32 pixels as a user of Flax, or of PyTorch, would write them.

Convolutional networks have batch norm, the transformer has layer norm; sizes are those of `normlab.models`.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn

if TYPE_CHECKING:
    import torch

CLASSES = 10
CONV = ((16, 2), (16, 1), (32, 2))
"""Width and stride of each convolution of the conv net."""

BLOCKS = tuple((width, 2 if width > 16 and i == 0 else 1) for width in (16, 32, 64) for i in range(3))
"""Width and stride of each block of ResNet-20."""

VGG = ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2))
"""Width and number of convolutions of each stage of VGG-11."""

WIDTH, HEADS, HIDDEN, LAYERS, PATCH = 192, 3, 768, 12, 4
"""Sizes of the vision transformer."""


class FlaxNetwork(nn.Module):
    """One of the networks with the layers of Flax.

    Attributes:
        name_of_network: conv, resnet20, vgg11 or vit.
    """

    name_of_network: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images (batch, 32, 32, 3) to logits (batch, classes) as in training."""
        body = {"conv": _flax_conv, "resnet20": _flax_resnet, "vgg11": _flax_vgg, "vit": _flax_vit}
        return nn.Dense(CLASSES)(body[self.name_of_network](x))


def _flax_unit(x: jax.Array, width: int, stride: int = 1, *, bias: bool = True) -> jax.Array:
    x = nn.Conv(width, (3, 3), strides=stride, padding=1, use_bias=bias)(x)
    return nn.BatchNorm(use_running_average=False)(x)


def _flax_conv(x: jax.Array) -> jax.Array:
    for width, stride in CONV:
        x = nn.relu(_flax_unit(x, width, stride))
    return x.mean((1, 2))


def _flax_resnet(x: jax.Array) -> jax.Array:
    x = nn.relu(_flax_unit(x, 16, bias=False))
    for width, stride in BLOCKS:
        y = nn.relu(_flax_unit(x, width, stride, bias=False))
        y = _flax_unit(y, width, bias=False)
        shortcut = jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((0, width - x.shape[-1]),))
        x = nn.relu(y + shortcut)
    return x.mean((1, 2))


def _flax_vgg(x: jax.Array) -> jax.Array:
    for width, layers in VGG:
        for _ in range(layers):
            x = nn.relu(_flax_unit(x, width))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
    return x.mean((1, 2))


def _flax_vit(x: jax.Array) -> jax.Array:
    x = nn.Conv(WIDTH, (PATCH, PATCH), strides=PATCH)(x)
    x = x.reshape(len(x), -1, WIDTH)
    token = nn.Embed(1, WIDTH)(jnp.zeros((len(x), 1), int))
    x = jnp.concatenate([token, x], axis=1)
    x = x + nn.Embed(x.shape[1], WIDTH)(jnp.arange(x.shape[1]))
    for _ in range(LAYERS):
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        y = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.gelu(y, approximate=False))
    return nn.LayerNorm()(x)[:, 0]


def torch_network(name: str) -> "torch.nn.Module":
    """Build one of the networks, which maps images (batch, 3, 32, 32) to logits (batch, classes)."""
    import torch
    from torch.nn import functional

    def unit(wide: int, width: int, stride: int = 1, *, bias: bool = True) -> list[torch.nn.Module]:
        return [torch.nn.Conv2d(wide, width, 3, stride, padding=1, bias=bias), torch.nn.BatchNorm2d(width)]

    class Block(torch.nn.Module):
        def __init__(self, wide: int, width: int, stride: int) -> None:
            super().__init__()
            first, second = unit(wide, width, stride, bias=False), unit(width, width, bias=False)
            self.layers = torch.nn.Sequential(*first, torch.nn.ReLU(inplace=True), *second)
            self.stride, self.more = stride, width - wide

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return functional.relu(self.layers(x) + shortcut)

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
            self.positions = torch.nn.Parameter(torch.zeros(1, (32 // PATCH) ** 2 + 1, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedding(x).flatten(2).transpose(1, 2)
            return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions

    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0]

    average = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    layers: list[torch.nn.Module] = []
    if name == "conv":
        for wide, (width, stride) in zip((3, 16, 16), CONV, strict=True):
            layers += [*unit(wide, width, stride), torch.nn.ReLU(inplace=True)]
        return torch.nn.Sequential(*layers, *average, torch.nn.Linear(CONV[-1][0], CLASSES))
    if name == "resnet20":
        layers += [*unit(3, 16, bias=False), torch.nn.ReLU(inplace=True)]
        layers += [Block(wide, width, stride) for (wide, _), (width, stride) in pairwise(((16, 1), *BLOCKS))]
        return torch.nn.Sequential(*layers, *average, torch.nn.Linear(BLOCKS[-1][0], CLASSES))
    if name == "vgg11":
        wide = 3
        for width, count in VGG:
            for _ in range(count):
                layers += [*unit(wide, width), torch.nn.ReLU(inplace=True)]
                wide = width
            layers.append(torch.nn.MaxPool2d(2))
        return torch.nn.Sequential(*layers, *average, torch.nn.Linear(wide, CLASSES))
    encoders = [
        torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(LAYERS)
    ]
    norm, head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CLASSES)
    return torch.nn.Sequential(Tokens(), *encoders, norm, First(), head)
