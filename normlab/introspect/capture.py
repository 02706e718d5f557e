"""Capture the arrays whose statistics a norm inside a Linen model takes."""

from collections.abc import Callable, Mapping

from flax import linen as nn
from jax import Array

from normlab.introspect.statistics import Path
from normlab.linen import BatchNorm

__all__ = ["inputs_of"]

_NORMALIZED = BatchNorm.normalized.__name__


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
