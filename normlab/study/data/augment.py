"""Random changes of images in training, on the device."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

PADDING = 4
"""Black pixels that `crop` puts around an image."""


def augment(ways: Sequence[str], key: jax.Array, images: jax.Array) -> jax.Array:
    """Change every image of a batch at random, each by its own draws.

    Args:
        ways: Names of `WAYS`, applied in this order.
        key: Random key of all draws.
        images: Shape (batch, height, width, channels), of any type.
    """
    for way, own in zip(ways, jax.random.split(key, len(ways)), strict=True):
        images = WAYS[way](own, images)
    return images


def crop(key: jax.Array, images: jax.Array) -> jax.Array:
    """Cut an image of the same size out of each padded one (He et al., 2016).

    Args:
        key: Random key of the places.
        images: Shape (batch, height, width, channels).
    """
    border = (PADDING, PADDING)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * PADDING + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror images left to right, each with a chance of one half.

    Args:
        key: Random key of the choice.
        images: Shape (batch, height, width, channels).
    """
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


WAYS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"crop": crop, "flip": flip}
