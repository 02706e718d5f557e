"""Arithmetic in the place of a norm that was folded."""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normlab.errors import BadInput
from normlab.tools.sites import Site

__all__ = ["Replacement", "in_training"]


@dataclass(frozen=True)
class Replacement:
    """Multiply by a scale and add a bias, each only if there is one, in the place of a norm.

    Attributes:
        axes: Feature axes, counted from the end.
        dtype: Dtype of the output; `None` promotes input and parameters.
        parameters: Dtypes of the parameters that the norm had.
    """

    axes: tuple[int, ...] = (-1,)
    dtype: DTypeLike | None = None
    parameters: tuple[DTypeLike, ...] = ()

    @classmethod
    def of(cls, site: Site) -> Self:
        """Return the replacement of a norm."""
        module, ndim = site.module, len(site.shape)
        parameters = (jnp.dtype(module.param_dtype),) if _has(module, "scale") or _has(module, "bias") else ()
        if isinstance(module, nnx.BatchNorm):  # which promotes with its statistics, too
            parameters = (*parameters, jnp.dtype(jnp.float32))
        dtype = getattr(module, "dtype", None)
        axes = tuple(axis - ndim for axis in site.features)
        return cls(axes, None if dtype is None else jnp.dtype(dtype), parameters)

    def __call__(self, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        """Return `x * scale + bias`, in the dtype that the norm had."""
        dtype = self.dtype or jnp.result_type(x.dtype, *self.parameters)
        if scale is None and bias is None:
            return x.astype(dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide)
        if scale is not None:
            y = y * self._along(scale, x.ndim).astype(wide)
        if bias is not None:
            y = y + self._along(bias, x.ndim).astype(wide)
        return y.astype(dtype)

    def _along(self, values: jax.Array, ndim: int) -> jax.Array:
        shape = [1] * ndim
        for size, axis in zip(values.shape, self.axes, strict=True):
            shape[axis] = size
        return values.reshape(shape)


def _has(module: object, name: str) -> bool:
    """Return whether a norm of Linen or NNX has a parameter."""
    used = getattr(module, f"use_{name}", None)
    return used if isinstance(used, bool) else getattr(module, name, None) is not None


def in_training(path: str) -> BadInput:
    """Return the error for a norm in training mode."""
    return BadInput(
        f"Expected a model that evaluates by running statistics, got train=True for `{path}`: a fold is exact only at "
        "evaluation."
    )
