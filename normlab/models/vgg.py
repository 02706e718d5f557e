"""VGG networks for small images that take a norm as a value.

References:
    Simonyan, Zisserman. Very Deep Convolutional Networks. ICLR 2015. https://arxiv.org/abs/1409.1556
"""

import jax
from flax import linen as nn

from normlab.models.convolution import HE_NORMAL, Conv, halved
from normlab.norms import Norm

_LAYERS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of convolutions in each stage, by depth."""

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """3 x 3 convolutions, each with norm and ReLU, in five stages that halve the image, and one dense layer.

    This is the variant commonly used for CIFAR-10: 32 x 32 pixels end as 1 x 1. Other sizes work too: halves are
    rounded up, and the remaining positions are averaged. Convolutions are initialized by `HE_NORMAL` and keep their
    bias, as published; layers have explicit names, so that all parameters except the norm's start the same for every
    norm.

    Attributes:
        norm: Norm before each ReLU.
        depth: Layers with weights in the original network, three of them dense: 11, 13, 16 or 19.
        classes: Number of outputs.
    """

    norm: Norm
    depth: int = 16
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        if self.depth not in _LAYERS:
            raise ValueError(f"Expected `depth` to be one of {', '.join(map(str, _LAYERS))}, got {self.depth}.")
        for stage, (layers, width) in enumerate(zip(_LAYERS[self.depth], _WIDTHS, strict=True)):
            for i in range(layers):
                x = Conv(width, kernel_init=HE_NORMAL, name=f"conv_{stage}_{i}")(x)
                x = self.norm.activate(self.norm.linen(train=train, name=f"norm_{stage}_{i}")(x), nn.relu)
            x = halved(x)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))
