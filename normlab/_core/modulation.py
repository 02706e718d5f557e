"""Scale and bias that a call gives for each example or position, applied after a norm's own."""

import importlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array

from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.hidden import without_hidden

__all__ = [
    "BareNorm",
    "Modulation",
    "bare",
    "check_condition",
    "conditioned",
    "modulated",
    "modulated_alone",
    "separated",
    "spread",
]


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


def modulated(y: Array, by: Modulation, features: tuple[int, ...], where: Array | None = None) -> Array:
    """Return `y * scale + bias`, in the dtype of `y`.

    Args:
        y: Normalized activations, of the shape of `x`.
        by: Arrays of the shape of the features; `[batch, features]`; or broadcastable to `y`, of its rank.
        features: Feature axes, canonical.
        where: True where an element counts: NaN elsewhere is 0, so that gradients of the arrays do not see it.

    Raises:
        ValueError: If a shape does not fit.
    """
    if by.scale is not None:
        y = without_hidden(y, where)
    for name, array in by._asdict().items():
        if array is not None:
            array = spread(name, array, y.shape, features).astype(y.dtype)
            y = y * array if name == "scale" else y + array
    return y


def modulated_alone(x: Array, by: Modulation, where: Array | None) -> Array:
    """Return `x * scale + bias` with features on the last axis, in float32 or wider inside, in the dtype of `x`."""
    if by.scale is None and by.bias is None:
        return x
    return modulated(float32_or_wider(x), by, (x.ndim - 1,), where).astype(output_dtype(x))


@runtime_checkable
class BareNorm(Protocol):
    """A norm as a value, `normlab.norms.Norm`, as far as `Modulated` needs it."""

    @property
    def stateful(self) -> bool:
        """True if the norm keeps running statistics."""
        ...

    @property
    def bare(self) -> "BareNorm":
        """The norm without scale and bias of its own."""
        ...

    def linen(self, *, train: bool, **overrides: object) -> Any:
        """Return the Linen module."""
        ...

    def nnx(self, num_features: int | tuple[int, ...], *, rngs: Any, **overrides: object) -> Any:
        """Return the NNX module."""
        ...


def bare(norm: BareNorm | str) -> BareNorm:
    """Return a norm without scale and bias of its own, from a norm or the registry's string of one.

    Raises:
        TypeError: If `norm` is neither.
    """
    if isinstance(norm, str):  # the registry knows the modules, and not the other way around
        norm = importlib.import_module("normlab.norms").get(norm)
    if not isinstance(norm, BareNorm):
        kind = type(norm).__name__
        raise TypeError(f"Expected `norm` to be a norm or its string, got {kind}. Pass `normlab.norms.get('layer')`.")
    return norm.bare


def check_condition(condition: Array, shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless there is a condition for each example of `x` of `shape`, or for each position."""
    rank, ndim = condition.ndim, len(shape)
    positions = zip(condition.shape[1:-1], shape[1:-1], strict=False)
    if rank not in (2, ndim) or condition.shape[0] != shape[0] or any(n not in (1, size) for n, size in positions):
        raise ValueError(
            f"Expected `condition` of shape [batch, d] or [batch, *positions, d] for `x` of shape {shape}, got "
            f"{condition.shape}."
        )


def conditioned(given: Array, parts: int, offset: float, ndim: int) -> tuple[Modulation, Array | None]:
    """Return what a layer made of a condition: gain and shift, in float32 or wider, and a gate, of the rank of `x`.

    Args:
        given: `[batch, parts * features]`, or with positions: shift, gain, and the gate where there are three parts.
        parts: 2 or 3.
        offset: Added to the gain.
        ndim: Rank of `x`.
    """
    shape = given.shape if given.ndim == ndim else (given.shape[0], *(1,) * (ndim - 2), given.shape[-1])
    shift, gain, *gate = jnp.split(float32_or_wider(given).reshape(shape), parts, axis=-1)
    return Modulation(gain + offset, shift), gate[0] if gate else None


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
