"""Dtypes of statistics and outputs."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


class FloatLimits(NamedTuple):
    """Limits of a dtype of floats.

    Attributes:
        bits: Size.
        tiny: Smallest normal number.
        least_square: Smallest square that has all its digits beside 1: `tiny` over the spacing at 1.
        exponent_bits: Bits of the exponent.
        mantissa_bits: Bits of the mantissa, without the leading one.
    """

    bits: int
    tiny: float
    least_square: float
    exponent_bits: int
    mantissa_bits: int


@functools.cache
def float_limits(dtype: DTypeLike) -> FloatLimits:
    """Return the limits of a dtype of floats."""
    info = cast(Any, jnp.finfo(dtype))
    tiny, eps = float(info.tiny), float(info.eps)
    return FloatLimits(int(info.bits), tiny, tiny / eps, int(info.nexp), int(info.nmant))


def float32_or_wider(x: Array) -> Array:
    """Return `x` in float32, or unchanged where it is wider."""
    return lax.convert_element_type(x, wide_dtype(x.dtype))


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Return float32, or `dtype` where it is a wider float."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def whole(step: Array) -> Array:
    """Return a count of updates as the whole number it is, whatever it was cast to."""
    return step if jnp.issubdtype(step.dtype, jnp.integer) else lax.convert_element_type(step, jnp.int32)


def output_dtype(x: Array) -> jnp.dtype:
    """Return the dtype of a norm's output: that of `x`, or float32 where `x` is of whole numbers."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else wide_dtype(x.dtype)
