"""A residual network that trains without norms of activations: scaled weight standardization.

References:
    Brock, De, Smith. Characterizing signal propagation to close the performance gap in unnormalized ResNets. ICLR 2021.
    https://arxiv.org/abs/2101.08692
    Brock, De, Smith, Simonyan. High-Performance Large-Scale Image Recognition Without Normalization. ICML 2021.
    https://arxiv.org/abs/2102.06171
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from flax import linen as nn

from normlab.functional.kernels import ACTIVATION_GAINS, scaled_standardize
from normlab.models.convolution import HE_NORMAL, convolve
from normlab.models.residual import check_no_norm
from normlab.models.resnet import ConvLayer, basic_blocks
from normlab.norms import Norm

if TYPE_CHECKING:
    import optax

__all__ = ["NFResNet", "nf_optimizer"]

STEP = 0.2
"""Factor of a branch: the variance of the residual stream grows by its square with each block."""


class NFResNet(nn.Module):
    """Residual network for images of 32 x 32 pixels, without norms: three stages of 16, 32 and 64 channels.

    A block is `x + 0.2 a f(x / b)`. The variance of `x` at initialization is `b^2`, computed by hand: 1 after the stem
    and after a shortcut with weights, 0.04 more with each block. `a` is a scalar that starts at 0. In `f` a ReLU, with
    the gain that restores variance 1, stands before each of two 3 x 3 convolutions, whose kernels are standardized to
    variance 1 / fan-in and have a learned gain. A block that changes the shape takes its shortcut after the first ReLU,
    by a 1 x 1 convolution. `nf_optimizer` is the authors'.

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
        x = _StandardizedConv(ConvLayer(16), name="stem")(x)
        variance = 1.0
        for i, layers in enumerate(basic_blocks(self.depth)):
            opens = layers[-1].features != x.shape[-1]
            x = _Block(layers, variance**-0.5, opens, name=f"block_{i}")(x)
            variance = (1.0 if opens else variance) + STEP**2
        return nn.Dense(self.classes, name="head")(_rectified(x).mean(axis=(1, 2)))


class _Block(nn.Module):
    """Two convolutions, each after a ReLU, and a shortcut.

    Attributes:
        layers: The convolutions.
        shrink: Factor that brings the input to variance 1.
        opens: Whether the block changes the shape.
    """

    layers: Sequence[ConvLayer]
    shrink: float
    opens: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features)."""
        first, last = self.layers
        y = _rectified(x) * self.shrink
        if self.opens:
            x = _StandardizedConv(ConvLayer(last.features, 1, first.stride), name="shortcut")(y)
        y = _StandardizedConv(first, name="conv_0")(y)
        y = _StandardizedConv(last, name="conv_1")(_rectified(y))
        return x + STEP * self.param("alpha", nn.initializers.zeros_init(), ()) * y


class _StandardizedConv(nn.Module):
    """A convolution whose kernel has variance 1 / fan-in.

    Attributes:
        layer: Features, size and stride.
    """

    layer: ConvLayer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, height, width, channels) to (batch, height / stride, width / stride, features)."""
        features, size, stride = self.layer
        kernel = self.param("kernel", HE_NORMAL, (size, size, x.shape[-1], features))
        gain = self.param("gain", nn.initializers.ones_init(), (features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        return convolve(x, scaled_standardize(kernel, gain), stride) + bias


def _rectified(x: jax.Array) -> jax.Array:
    """Return the ReLU with the gain that gives variance 1 for a standard normal input."""
    return nn.relu(x) * ACTIVATION_GAINS["relu"]


def nf_optimizer(
    learning_rate: "optax.ScalarOrSchedule",
    *,
    clipping: float = 0.01,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> "optax.GradientTransformation":
    """Return SGD with adaptive gradient clipping (Brock et al., 2021), which leaves the last layer alone.

    Args:
        learning_rate: A number or a schedule.
        clipping: Largest ratio of a gradient's norm to its weights', for each output feature: 0.01 is for batches of
            4096; smaller batches take larger ones.
        weight_decay: Added to clipped gradients as a multiple of the parameters.
        momentum: Of Nesterov.
    """
    import optax

    clip = optax.masked(optax.adaptive_grad_clip(clipping, eps=1e-3), _all_but_head)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(clip, decay, optax.sgd(learning_rate, momentum=momentum, nesterov=True))


def _all_but_head(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: jax.tree.map(lambda _, said=name != "head": said, part) for name, part in params.items()}
