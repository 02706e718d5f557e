"""Calls of the layers of a model, of Linen or of NNX, as a hook meets them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

__all__ = ["Call", "Hook", "Module", "variable_of"]

Module: TypeAlias = nn.Module | nnx.Module


def variable_of(module: Module, collection: str, name: str) -> jax.Array:
    """Return a variable of a module that is being called, out of its box."""
    if isinstance(module, nn.Module):
        return nn.unbox(module.get_variable(collection, name))
    return getattr(module, name)[...]


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a module inside a model.

    Attributes:
        path: Path of the module in the model, joined by `/`.
        module: The module, with its variables; a module of Linen is bound.
        args: Positional arguments.
        kwargs: Keyword arguments.
        run: Calls the module itself.
    """

    path: str
    module: Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    run: Callable[..., object]

    def proceed(self) -> object:
        """Call the module with the arguments as they are."""
        return self.run(*self.args, **self.kwargs)

    @property
    def input(self) -> object:
        """The array that goes in: the first argument, by whatever name it is given."""
        return self.args[0] if self.args else self.kwargs.get(self._name)

    def given(self, x: object) -> object:
        """Call the module with another array that goes in."""
        if self.args:
            return self.run(x, *self.args[1:], **self.kwargs)
        return self.run(**{**self.kwargs, self._name: x})

    @property
    def mask(self) -> jax.Array | None:
        """The mask of a norm's call, given by name or as an array of bools after the first argument."""
        others = [one for one in self.args[1:] if getattr(one, "dtype", None) == np.dtype(bool)]
        mask = self.kwargs.get("mask", next(iter(others), None))
        return jnp.asarray(mask) if isinstance(mask, jax.Array | np.ndarray) else None

    @property
    def further(self) -> tuple[str, ...]:
        """Names of the arrays that are given beside the first argument."""
        arrays = {name for name, value in self.kwargs.items() if isinstance(value, jax.Array | np.ndarray)}
        first = set() if self.args else {self._name}
        return tuple(sorted(arrays - first | ({"mask"} if self.mask is not None else set())))

    @property
    def _name(self) -> str:
        """Name of the first argument, where it is given by name."""
        known = [name for name in ("x", "inputs") if name in self.kwargs]
        return next(iter([*known, *self.kwargs]), "")


class Hook(Protocol):
    """A function that stands around each call of a module, and returns its output."""

    def __call__(self, call: Call, /) -> object:
        """Return the output of the call."""
        ...
