"""Capture the arrays whose statistics a norm inside a Linen model takes."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from jax import Array

from normlab._core.reduction import canonical_axes
from normlab.functional.continual_norm import ContinualNormLayer
from normlab.introspect.statistics import Path
from normlab.linen import ContinualNorm


def inputs_of(path: Path, call: Callable[[], object]) -> list[Array]:
    """Capture what the norm at `path` takes statistics of, each time `call` runs it.

    Args:
        path: Of the module in the model.
        call: Applies the model.

    Returns:
        The first argument of the module; for a norm of this package what it makes of that before it takes statistics,
        such as the output of continual norm's group norm.
    """
    captured: list[Array] = []

    def intercept(
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.module.path == path and context.method_name == "__call__":
            captured.append(_normalized(context.module, args[0], kwargs.get("mask")))
        return method(*args, **kwargs)

    with nn.intercept_methods(intercept):
        call()
    return captured


def _normalized(module: nn.Module, x: Array, mask: Array | None) -> Array:
    """Return the array whose statistics a norm takes, given its input."""
    layer = module.layer() if isinstance(module, ContinualNorm) else None
    if not isinstance(layer, ContinualNormLayer):
        return x
    return layer.normalized(x, canonical_axes(layer.axis, x.ndim), mask)
