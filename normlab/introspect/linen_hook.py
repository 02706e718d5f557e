"""Stand around the calls of the modules of a Linen model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from flax import linen as nn
from flax.linen.module import InterceptorContext

from normlab.introspect.calls import Call, Hook

__all__ = ["hooked"]


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Let a hook stand around each call of a Linen module, inside lifted transforms, too.

    A call that a method makes of the method of the same name of its base class belongs to the same call.

    Args:
        hook: Called with each call of a module.
    """
    running: list[nn.Module] = []

    def intercept(
        method: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        module = context.module
        if context.method_name != "__call__" or any(module is one for one in running):
            return method(*args, **kwargs)
        running.append(module)
        try:
            return hook(Call("/".join(module.path), module, args, kwargs, method))
        finally:
            running.pop()

    with nn.intercept_methods(intercept):
        yield
