"""Kernels of an NNX model, normalized outside of it."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from normlab.functional.kernels import WeightNorm, fit_to_batch
from normlab.nnx._norm import read, write
from normlab.nnx._reparametrized import Reparametrized, Standardized


def normalized(model: nnx.Module, *, update_stats: bool) -> Any:
    """Return a model whose kernels are normalized, and which shares all other variables.

    A `Reparametrized` layer becomes the layer.

    Args:
        model: The model.
        update_stats: Whether the state of norms is replaced, in `model`.
    """

    def plain(path: object, node: object) -> object:
        if isinstance(node, Reparametrized):
            return node.plain(update_stats)
        return node.plain() if isinstance(node, Standardized) else node

    return nnx.recursive_map(plain, model)


def initialize(model: nnx.Module, inputs: tuple[object, ...], options: Mapping[str, Any]) -> None:
    """Give each layer with weight norm an output of mean 0 and variance 1.

    Args:
        model: The model, whose `g` and `bias` are replaced.
        inputs: A batch.
        options: Keyword arguments of the call.

    Raises:
        ValueError: If a layer is called twice.
    """
    twin = nnx.clone(model)  # running statistics and random streams of the model stay as they are
    nnx.recursive_map(_fitting, twin)(*inputs, **options)
    nnx.update(model, nnx.state(twin, nnx.Param))


def _fitting(path: object, node: object) -> object:
    wrapped = isinstance(node, Reparametrized | Standardized) and isinstance(node.norm, WeightNorm)
    return _Fitting(node) if wrapped else node


class _Fitting(nnx.Module):
    """A layer with weight norm, which fits itself to its first batch."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.called = inner, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.called:
            raise ValueError(
                "Expected each layer with weight norm to be called once, got two calls of one. Set its `g` and `bias` "
                "yourself."
            )
        self.called = True
        layer: Any = self.inner.layer if isinstance(self.inner, Reparametrized) else self.inner
        bias = None if getattr(layer, "bias", None) is None else read(layer.bias)
        lengths: nnx.Param[jax.Array] = getattr(self.inner, "g")  # noqa: B009  (made by the norm)
        fitted = fit_to_batch(self.inner(*args, **kwargs), read(lengths), bias)
        write(lengths, fitted.g)
        if fitted.bias is not None:
            write(layer.bias, fitted.bias)
        return fitted.y
