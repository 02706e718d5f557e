"""Let every norm of a model normalize by its batch, and dropout do nothing, without another model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from flax import linen as nn
from flax import nnx
from flax.linen.module import InterceptorContext

__all__ = ["linen", "nnx_copy"]

_PLAIN = {"r_max": 1.0, "d_max": 0.0, "initialize_from_first_batch": False}
"""Options by which a norm looks at its running statistics in training, and those by which it does not."""

_ONE_DEVICE = {"axis_name": None, "axis_index_groups": None}


@contextmanager
def linen(*, dropout: bool, devices: bool) -> Iterator[None]:
    """Within the context, norms of Linen normalize by the batch alone where they are told to train.

    Args:
        dropout: Whether dropout does what the call says; it does nothing otherwise.
        devices: Whether mapped axes that norms name are there; a batch is on one device otherwise.
    """

    def intercept(
        method: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        module = context.module
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        if isinstance(module, nn.Dropout) and not dropout:
            return args[0] if args else kwargs["inputs"]
        if changes := _changes(module, devices):
            assert module.scope is not None
            return module.clone(parent=module.scope, name=None, **changes)(*args, **kwargs)
        return method(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def nnx_copy(model: nnx.Module, *, train: bool, dropout: bool, devices: bool) -> nnx.Module:
    """Return a copy of an NNX model in which norms normalize by the batch alone where they train.

    Args:
        model: The model.
        train: Whether the copy is in training mode.
        dropout: Whether dropout is on in training; it is off otherwise.
        devices: Whether mapped axes that norms name are there; a batch is on one device otherwise.
    """
    twin = nnx.clone(model)
    (twin.train if train else twin.eval)()
    for _, module in nnx.iter_graph(twin):
        if isinstance(module, nnx.Dropout) and not dropout:
            module.deterministic = True
        elif isinstance(module, nnx.Module):
            for name, value in _changes(module, devices).items():
                setattr(module, name, value)
    return twin


def _changes(module: nn.Module | nnx.Module, devices: bool) -> dict[str, object]:
    """Return the options of a norm that have to be others; none for other modules."""
    if not hasattr(module, "use_running_average"):
        return {}
    wanted = _PLAIN if devices else {**_PLAIN, **_ONE_DEVICE}
    return {name: value for name, value in wanted.items() if getattr(module, name, value) is not value}
