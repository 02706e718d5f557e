"""Let every norm of a model normalize by its batch, and dropout do nothing, without another model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flax import linen as nn
from flax import nnx
from flax.linen.module import InterceptorContext

from normlab.nnx._stream import StreamNorm

__all__ = ["ALONE", "ONE_DEVICE", "linen", "nnx_copy"]

ONE_DEVICE: Mapping[str, object] = {"axis_name": None, "axis_index_groups": None}
"""Options by which a norm takes the batch of a call as the whole batch; sharded under `jax.jit` they are one batch."""

_NEVER = 2**31 - 1

ALONE: Mapping[str, object] = {
    "r_max": 1.0,
    "d_max": 0.0,
    "initialize_from_first_batch": False,
    "warmup_steps": _NEVER,
    "clip_from": _NEVER,
    **ONE_DEVICE,
}
"""Options by which a norm looks neither at its running statistics in training nor at other calls."""


@contextmanager
def linen(*, dropout: bool, options: Mapping[str, object] = ALONE) -> Iterator[None]:
    """Within the context, norms of Linen normalize by the batch of this call alone in training mode.

    Args:
        dropout: Whether dropout does what the call says; it does nothing otherwise.
        options: Options of the norms, by which they do.
    """

    def intercept(
        method: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: InterceptorContext,
    ) -> object:
        module = context.module
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        if isinstance(module, nn.Dropout) and not dropout:
            return args[0] if args else kwargs["inputs"]
        if changes := _changes(module, module, options):
            twin: Callable[..., object] = module.clone(parent=module.scope, name=None, **changes)
            return twin(*args, **kwargs)
        return method(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def nnx_copy(model: nnx.Module, *, train: bool, dropout: bool, options: Mapping[str, object] = ALONE) -> nnx.Module:
    """Return a copy of an NNX model in which norms normalize by the batch of a call alone where they train.

    Args:
        model: The model.
        train: Whether the copy is in training mode.
        dropout: Whether dropout is on in training; it is off otherwise.
        options: Options of the norms, by which they do.
    """
    twin = nnx.clone(model)
    (twin.train if train else twin.eval)()
    for _, module in nnx.iter_graph(twin):
        if isinstance(module, nnx.Dropout) and not dropout:
            module.deterministic = True
        elif isinstance(module, StreamNorm):
            module.set_options(**_changes(module, module.layer(), options))
        elif isinstance(module, nnx.Module):
            for name, value in _changes(module, module, options).items():
                setattr(module, name, value)
    return twin


def _changes(module: nn.Module | nnx.Module, owner: object, options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options of a norm, which `owner` holds, that have to be others; none for other modules."""
    if not hasattr(module, "use_running_average"):
        return {}
    return {name: value for name, value in options.items() if getattr(owner, name, value) is not value}
