"""A residual network that trains without norms: Fixup initialization.

References:
    Zhang, Dauphin, Ma. Fixup Initialization: Residual Learning Without Normalization. ICLR 2019.
    https://arxiv.org/abs/1901.09321
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from normlab.models.convolution import HE_NORMAL, Conv
from normlab.models.residual import check_no_norm
from normlab.models.resnet import ConvLayer, basic_blocks, padded
from normlab.norms import Norm

if TYPE_CHECKING:
    import optax

__all__ = ["FixupResNet", "fixup_optimizer"]

_zeros, _ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
_conv = partial(Conv, use_bias=False)


class FixupResNet(nn.Module):
    """Residual network for images of 32 x 32 pixels: three stages of 16, 32 and 64 channels, and no norm.

    A block of two 3 x 3 convolutions has a scalar bias before each convolution and each ReLU, and a scalar scale after
    the last convolution, which starts at 0, as the dense layer does. The first convolution of each of the L blocks
    starts from `HE_NORMAL` times L^(-1/2), the stem from `HE_NORMAL`. `fixup_optimizer` is the
    authors'. The shortcut is that of `normlab.models.resnet.ResNet`.

    Attributes:
        norm: There for networks to be made alike; only `none`.
        depth: 6n + 2, with n blocks a stage: 20, 32, 44, 56, 110.
        classes: Number of outputs.
    """

    norm: Norm
    depth: int = 20
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes).

        Raises:
            ValueError: If `norm` is one, or `depth` is not 6n + 2.
        """
        check_no_norm(self.norm)
        x = _conv(16, kernel_init=HE_NORMAL, name="stem")(x)
        x = nn.relu(x + self.param("bias_stem", _zeros, ()))
        blocks = basic_blocks(self.depth)
        for i, layers in enumerate(blocks):
            x = _Block(layers, len(blocks), name=f"block_{i}")(x)
        x = x.mean(axis=(1, 2)) + self.param("bias_head", _zeros, ())
        return nn.Dense(self.classes, kernel_init=_zeros, name="head")(x)


class _Block(nn.Module):
    """Two convolutions between scalar biases, a scalar scale, and a shortcut.

    Attributes:
        layers: The convolutions.
        blocks: Number of blocks of the network.
    """

    layers: Sequence[ConvLayer]
    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features)."""
        first, last = self.layers
        shifted = x + self.param("bias_0", _zeros, ())
        y = _conv(*first, kernel_init=self._shrunk, name="conv_0")(shifted)
        y = nn.relu(y + self.param("bias_1", _zeros, ())) + self.param("bias_2", _zeros, ())
        y = _conv(*last, kernel_init=_zeros, name="conv_1")(y)
        y = y * self.param("scale", _ones, ()) + self.param("bias_3", _zeros, ())
        shortcut = x if first.stride == 1 else padded(shifted[:, :: first.stride, :: first.stride], last.features)
        return nn.relu(y + shortcut)

    def _shrunk(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = float) -> jax.Array:
        return HE_NORMAL(key, tuple(shape), dtype) * self.blocks**-0.5


def fixup_optimizer(
    learning_rate: "optax.ScalarOrSchedule", *, momentum: float = 0.9
) -> "optax.GradientTransformation":
    """Return SGD with a tenth of the learning rate for scalars, as the authors train.

    Args:
        learning_rate: A number or a schedule.
        momentum: Weight of the old update.
    """
    import optax

    return optax.chain(optax.sgd(learning_rate, momentum=momentum), optax.masked(optax.scale(0.1), _scalars))


def _scalars(params: "optax.Params") -> "optax.Params":
    return jax.tree.map(lambda parameter: parameter.ndim == 0, params)
