"""Small models that take a norm as a value.

Layers have explicit names, so that under one seed all parameters except the norm's start the same for every norm; for
the same reason dense and convolutional layers keep their bias even where a norm makes it redundant.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
from flax import linen as nn

from normlab.models.convolution import Conv
from normlab.norms import Norm

_ACTIVATIONS = {"relu": nn.relu, "sigmoid": nn.sigmoid}


class MLP(nn.Module):
    """A multilayer perceptron: dense, norm, activation for each hidden layer, then a dense layer to the classes.

    Attributes:
        norm: Norm before each activation.
        hidden: Widths of the hidden layers.
        classes: Number of outputs.
        activation: `relu`, or `sigmoid` as in the first experiment of Ioffe & Szegedy (2015).
        placement: Whether the norm stands `before` the activation or `after` it.
        every: Only every so many layers have a norm: with 2 the second, the fourth, and so on.
        dropout: Share of activations that dropout leaves out in training, after norm and activation.
        kernel_scale: Factor of LeCun's standard deviation of the initial kernels of hidden layers; sqrt(2) is He's.
    """

    norm: Norm
    hidden: Sequence[int] = (100, 100)
    classes: int = 10
    activation: Literal["relu", "sigmoid"] = "relu"
    placement: Literal["before", "after"] = "before"
    every: int = 1
    dropout: float = 0.0
    kernel_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map inputs (batch, ...) to logits (batch, classes); `mask` (batch,) is True for examples that count."""
        activate = activation(self.activation)
        x = x.reshape(x.shape[0], -1)
        counted = {} if mask is None else {"mask": mask[:, None]}
        kernel_init = nn.initializers.variance_scaling(self.kernel_scale**2, "fan_in", "truncated_normal")
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, kernel_init=kernel_init, name=f"dense_{i}")(x)
            if (i + 1) % self.every:
                x = activate(x)
            else:
                norm = self.norm.linen(train=train, name=f"norm_{i}")
                x = norm(activate(x), **counted) if self.after else self.norm.activate(norm(x, **counted), activate)
            x = nn.Dropout(self.dropout, deterministic=not train)(x) if self.dropout else x
        return nn.Dense(self.classes, name="head")(x)

    @property
    def after(self) -> bool:
        """Whether the norm stands after the activation.

        Raises:
            ValueError: If `placement` is neither `before` nor `after`.
        """
        if self.placement not in ("before", "after"):
            raise ValueError(f"Expected `placement` to be 'before' or 'after', got {self.placement!r}.")
        return self.placement == "after"


class ConvNet(nn.Module):
    """3 x 3 convolutions, each with norm and ReLU, then a mean over positions and a dense layer to the classes.

    Attributes:
        norm: Norm before each ReLU.
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
            x = Conv(width, stride=stride, name=f"conv_{i}")(x)
            x = self.norm.activate(self.norm.linen(train=train, name=f"norm_{i}")(x), nn.relu)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return an activation of `MLP` by its name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"Expected `activation` to be 'relu' or 'sigmoid', got {name!r}.")
    return _ACTIVATIONS[name]
