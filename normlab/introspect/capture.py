"""Capture the arrays whose statistics a norm inside a Linen model takes."""

from collections.abc import Callable, Mapping

from flax import linen as nn
from jax import Array

from normlab._core.reduction import canonical_axes
from normlab.functional.continual_norm import ContinualNormLayer
from normlab.introspect.statistics import Path
from normlab.linen import ContinualNorm

__all__ = ["inputs_of"]


def inputs_of(path: Path, call: Callable[[], object]) -> list[Array]:
    """Capture the arrays whose statistics the norm at `path` takes, one for each time `call` runs the norm.

    Args:
        path: Path of the module in the model.
        call: Applies the model.

    Returns:
        The first argument of the module; for a norm of this package, this argument as transformed before statistics
        are taken, for example by the group norm inside continual norm.
    """
    captured: list[Array] = []

    def intercept(
        method: Callable[..., Array],
        args: tuple[Array, ...],
        kwargs: Mapping[str, object],
        context: nn.module.InterceptorContext,
    ) -> Array:
        if context.module.path == path and context.method_name == "__call__":
            captured.append(_normalized(context.module, args[0], kwargs.get("mask")))
        return method(*args, **kwargs)

    with nn.intercept_methods(intercept):
        call()
    return captured


def _normalized(module: nn.Module, x: Array, mask: object) -> Array:
    """Return the array whose statistics a norm takes, given its input."""
    layer = module.layer() if isinstance(module, ContinualNorm) else None
    if not isinstance(layer, ContinualNormLayer):
        return x
    counted = mask if isinstance(mask, Array) else None
    return layer.normalized(x, canonical_axes(layer.axis, x.ndim), counted)
