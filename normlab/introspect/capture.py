"""Capture the arrays whose statistics a norm inside a Linen model takes."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from jax import Array

from normlab.introspect.statistics import Path
from normlab.linen import BatchNorm

_NORMALIZED = BatchNorm.normalized.__name__


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
        inside = context.module.path == path
        if inside and context.method_name == "__call__":
            captured.append(args[0])
        result = method(*args, **kwargs)
        if inside and context.method_name == _NORMALIZED:
            captured[-1] = result
        return result

    with nn.intercept_methods(intercept):
        call()
    return captured
