"""Scale and bias that a call gives for each example or position, applied after a norm's own."""

from typing import NamedTuple

from jax import Array

from normlab._core.dtypes import float32_or_wider, output_dtype

__all__ = ["Modulation", "modulated", "modulated_alone", "separated", "spread"]


class Modulation(NamedTuple):
    """Scale and bias for each example or position; `None` is 1 and 0."""

    scale: Array | None = None
    bias: Array | None = None


def separated(
    scale: Array | None, bias: Array | None, shape: tuple[int, ...], features: tuple[int, ...]
) -> tuple[dict[str, Array | None], Modulation]:
    """Return scale and bias as far as they vary along the features alone, and the rest, which comes after them.

    Args:
        scale: Gain of a call.
        bias: Shift of a call.
        shape: Shape of `x`.
        features: Feature axes, canonical.
    """
    own = tuple(
        a is None or a.shape == tuple(shape[f] for f in features) or a.ndim <= len(features) for a in (scale, bias)
    )
    if own[0] and own[1]:
        return {"scale": scale, "bias": bias}, Modulation()
    return ({"scale": scale}, Modulation(bias=bias)) if own[0] else ({}, Modulation(scale, bias))


def modulated(y: Array, by: Modulation, features: tuple[int, ...]) -> Array:
    """Return `y * scale + bias`, in the dtype of `y`.

    Args:
        y: Normalized activations, of the shape of `x`.
        by: Arrays of the shape of the features; `[batch, features]`; or broadcastable to `y`, of its rank.
        features: Feature axes, canonical.

    Raises:
        ValueError: If a shape does not fit.
    """
    for name, array in by._asdict().items():
        if array is not None:
            array = spread(name, array, y.shape, features).astype(y.dtype)
            y = y * array if name == "scale" else y + array
    return y


def modulated_alone(x: Array, by: Modulation) -> Array:
    """Return `x * scale + bias` with features on the last axis, in float32 or wider inside, in the dtype of `x`."""
    if by.scale is None and by.bias is None:
        return x
    return modulated(float32_or_wider(x), by, (x.ndim - 1,)).astype(output_dtype(x))


def spread(name: str, array: Array, shape: tuple[int, ...], features: tuple[int, ...]) -> Array:
    """Give an array of a call the rank of `x`.

    Args:
        name: Name of the argument, for the message.
        array: Of the shape of the features; `[batch, features]`; or broadcastable to `x`, of its rank.
        shape: Shape of `x`.
        features: Feature axes, canonical.

    Raises:
        ValueError: If the shape does not fit.
    """
    per_feature = [size if a in features else 1 for a, size in enumerate(shape)]
    if array.shape == tuple(shape[a] for a in features):
        return array.reshape(per_feature)
    rank = array.shape
    if array.ndim == 1 + len(features) < len(shape) and 0 not in features:
        sizes = iter(array.shape[1:])
        rank = (array.shape[0], *(next(sizes) if a in features else 1 for a in range(1, len(shape))))
    if len(rank) != len(shape) or any(n != 1 and n != size for n, size in zip(rank, shape, strict=True)):
        raise ValueError(
            f"Expected `{name}` with one value for each feature, for each example and feature, or broadcastable to `x` "
            f"of shape {shape}, got {array.shape}. Its first axis is the batch, its last ones are the features."
        )
    return array.reshape(rank)
