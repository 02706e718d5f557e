"""A vision transformer that takes a norm as a value.

References:
    Dosovitskiy et al. An Image is Worth 16x16 Words. ICLR 2021. https://arxiv.org/abs/2010.11929
    Touvron et al. Training data-efficient image transformers. ICML 2021 (DeiT-Ti). https://arxiv.org/abs/2012.12877
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from normlab.models.residual import Residual
from normlab.models.transformer import INITIAL, Placement, Stack
from normlab.norms import Norm

_WIDTH, _HEADS = 192, 3
_dense = partial(nn.Dense, kernel_init=INITIAL)


class ViTTiny(nn.Module):
    """DeiT-Ti: patches as tokens of width 192, a class token, learned positions, and 12 layers with 3 heads.

    The norm is applied to (batch, tokens, 192): before attention, before each MLP, and before the last dense layer, or
    where `placement` says. Weights start from a normal distribution of standard deviation 0.02, biases at 0. No
    dropout, no stochastic depth.

    Attributes:
        norm: Norm in place of layer norm.
        classes: Number of outputs.
        patch: Height and width of a patch: 16 for 224 x 224 pixels, 4 for 32 x 32.
        depth: Number of layers.
        placement: Places of the norms; see [`Stack`][normlab.models.transformer.Stack].
        residual: Learned factors of the branches, likewise.
        qk_norm: Norm of queries and keys, likewise.
    """

    norm: Norm
    classes: int = 1000
    patch: int = 16
    depth: int = 12
    placement: Placement = "pre"
    residual: Residual = "none"
    qk_norm: Norm | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, classes)."""
        x = _dense(_WIDTH, name="embedding")(squares(x, self.patch))
        token = self.param("class_token", INITIAL, (1, 1, _WIDTH))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, _WIDTH)), x], axis=1)
        x = x + self.param("positions", INITIAL, (1, *x.shape[1:]))
        stack = Stack(
            norm=self.norm,
            depth=self.depth,
            heads=_HEADS,
            placement=self.placement,
            residual=self.residual,
            qk_norm=self.qk_norm,
        )
        x = stack.apply(x, train=train)
        return _dense(self.classes, name="head")(x[:, 0])


def squares(x: jax.Array, size: int) -> jax.Array:
    """Cut images into squares, row by row.

    Args:
        x: Shape (batch, height, width, channels).
        size: Height and width of a square.

    Returns:
        Shape (batch, squares, size^2 * channels).

    Raises:
        ValueError: If `size` does not divide the images.
    """
    batch, height, width, channels = x.shape
    if height % size or width % size:
        raise ValueError(f"Expected images that `patch` = {size} divides, got {height} x {width} pixels.")
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)
