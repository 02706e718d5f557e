"""Stand around the calls of the modules of an NNX model, which has no hook of its own."""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx

from normlab.introspect.calls import Call, Hook

__all__ = ["hooked", "modules", "plain", "tap"]

_TAP = "_normlab_tap"


@dataclass(frozen=True, eq=False)
class _Tap:
    """A static attribute of a module; as no two are equal, nothing that was compiled before is used again."""

    path: str
    hook: Hook


def hooked(model: nnx.Module, hook: Hook, chosen: Callable[[nnx.Module], bool]) -> nnx.Module:
    """Return a clone of a model in which a hook stands around the calls of chosen modules.

    Args:
        model: The model; it stays as it is.
        hook: Called with each call of a chosen module.
        chosen: Whether a module is to have the hook.

    Returns:
        The clone: the chosen modules are of a subclass of their class, and have the same variables.
    """
    twin = nnx.clone(model)
    tap(twin, hook, chosen)
    return twin


def tap(model: nnx.Module, hook: Hook, chosen: Callable[[nnx.Module], bool]) -> None:
    """Let a hook stand around the calls of chosen modules of a model, which is changed; see `hooked`."""
    for path, module in modules(model).items():
        if chosen(module):
            setattr(module, _TAP, _Tap(path, hook))
            module.__class__ = _tapped(type(module))


def modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """Return the modules of a model by path, each once, the model itself first."""
    found = [("/".join(map(str, path)), node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
    return dict(sorted(found, key=lambda one: one[0].count("/") + bool(one[0])))


def plain(kind: type) -> type:
    """Return the class of a module as it is without a hook."""
    return kind.__mro__[1] if _TAP in vars(kind) else kind


@functools.cache
def _tapped(kind: type[nnx.Module]) -> type[nnx.Module]:
    """Return the subclass of a class of modules whose call is in the hands of a hook."""

    def call(self: nnx.Module, *args: object, **kwargs: object) -> object:
        tap: _Tap = getattr(self, _TAP)
        return tap.hook(Call(tap.path, self, args, kwargs, functools.partial(kind.__call__, self)))

    names = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__, _TAP: None}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(names))
