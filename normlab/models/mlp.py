"""Small models that take a norm as a value.

Layers have explicit names, so that under one seed all parameters except the norm's start the same for every norm; for
the same reason dense and convolutional layers keep their bias even where a norm makes it redundant.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
from flax import linen as nn

from normlab.models.convolution import Conv
from normlab.norms import Norm

Activation = Callable[[jax.Array], jax.Array]
Placement = Literal["before", "after"]
_ACTIVATIONS: dict[str, Activation] = {"relu": nn.relu, "sigmoid": nn.sigmoid}


class MLP(nn.Module):
    """A multilayer perceptron: dense, norm, activation for each hidden layer, then a dense layer to the classes.

    Attributes:
        norm: Norm before each activation.
        hidden: Widths of the hidden layers.
        classes: Number of outputs.
        activation: `relu`, or `sigmoid` as in the first experiment of Ioffe & Szegedy (2015).
        placement: Whether the norm stands `before` the activation or `after` it.
        every: Only every so many layers have a norm, at least 1: with 2 the second, the fourth, and so on.
        dropout: Share of activations that dropout leaves out in training, after norm and activation, in [0, 1).
        kernel_scale: Factor of LeCun's standard deviation of the initial kernels of hidden layers; sqrt(2) is He's.
        residual: Whether each layer is added to its input, if both have one width.
        use_bias: Whether hidden layers have a bias.
    """

    norm: Norm
    hidden: Sequence[int] = (100, 100)
    classes: int = 10
    activation: Literal["relu", "sigmoid"] = "relu"
    placement: Placement = "before"
    every: int = 1
    dropout: float = 0.0
    kernel_scale: float = 1.0
    residual: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map inputs (batch, ...) to logits (batch, classes); `mask` (batch,) is True for examples that count."""
        _check(self)
        activate = activation(self.activation)
        x = x.reshape(x.shape[0], -1)
        counted = {} if mask is None else {"mask": mask[:, None]}
        kernel_init = scaled_kernels(self.kernel_scale)
        for i, width in enumerate(self.hidden):
            y = nn.Dense(width, self.use_bias, kernel_init=kernel_init, name=f"dense_{i}")(x)
            y = _activated(self, i, y, activate, train, **counted)
            x = x + y if self.residual and x.shape == y.shape else y
        return nn.Dense(self.classes, name="head")(x)


class ConvNet(nn.Module):
    """3 x 3 convolutions, each with norm and ReLU, then a mean over positions and a dense layer to the classes.

    Attributes:
        norm: Norm before each ReLU.
        widths: Output channels of each convolution.
        strides: Stride of each convolution.
        classes: Number of outputs.
        placement: See `MLP`.
        every: See `MLP`.
        dropout: See `MLP`; single activations, at each position.
        kernel_scale: See `MLP`.
    """

    norm: Norm
    widths: Sequence[int] = (16, 16, 32)
    strides: Sequence[int] = (2, 1, 2)
    classes: int = 10
    placement: Placement = "before"
    every: int = 1
    dropout: float = 0.0
    kernel_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        _check(self)
        kernel_init = scaled_kernels(self.kernel_scale)
        for i, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            x = Conv(width, stride=stride, kernel_init=kernel_init, name=f"conv_{i}")(x)
            x = _activated(self, i, x, nn.relu, train)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


def _check(net: MLP | ConvNet) -> None:
    """Check the fields that both networks have.

    Raises:
        ValueError: If a field has no value of those that are documented.
    """
    if net.placement not in get_args(Placement):
        raise ValueError(f"Expected `placement` to be 'before' or 'after', got {net.placement!r}.")
    if net.every < 1 or net.every % 1:
        raise ValueError(f"Expected `every` to be a whole number from 1 on, got {net.every!r}. Pass 1 for every layer.")
    if not 0 <= net.dropout < 1:
        raise ValueError(f"Expected `dropout` to lie in [0, 1), got {net.dropout!r}. Pass 0 for no dropout.")


def _activated(
    net: MLP | ConvNet, i: int, x: jax.Array, activate: Activation, train: bool, **counted: jax.Array
) -> jax.Array:
    """Apply norm, activation and dropout of layer i, as submodules of `net`."""
    if (i + 1) % net.every:
        x = activate(x)
    else:
        norm = net.norm.linen(train=train, name=f"norm_{i}")
        after = net.placement == "after"
        x = norm(activate(x), **counted) if after else net.norm.activate(norm(x, **counted), activate)
    return nn.Dropout(net.dropout, deterministic=not train)(x) if net.dropout else x


def scaled_kernels(scale: float) -> nn.initializers.Initializer:
    """Return LeCun's normal initializer with its standard deviation times `scale`."""
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


def activation(name: str) -> Activation:
    """Return an activation of `MLP` by its name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"Expected `activation` to be 'relu' or 'sigmoid', got {name!r}.")
    return _ACTIVATIONS[name]
