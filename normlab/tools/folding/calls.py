"""How a model calls its modules at evaluation, as far as a fold has to know."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import linen as nn
from flax.linen.module import InterceptorContext
from flax.typing import VariableDict

from normlab.introspect.applied import applied, partitioned
from normlab.introspect.calls import Call, Module
from normlab.tools.folding.layouts import KERNELS, normalizes_kernel

__all__ = ["Seen", "evaluates", "seen"]

_OF_A_CALL = ("mask", "scale", "bias")


@dataclass
class Seen:
    """Calls of one module.

    Attributes:
        module: The module; a module of Linen was bound while the model ran.
        calls: Number of calls.
        wrapped: Whether it ran inside of a module that normalizes its kernel, or is one.
        given: Names of the further arrays of its calls: a mask, or scale and bias.
        kernel: Shape of its kernel inside of the call; `None` where it has none.
    """

    module: Module
    calls: int = 0
    wrapped: bool = False
    given: tuple[str, ...] = ()
    kernel: tuple[int, ...] | None = None


@dataclass
class _Record:
    """Calls of all modules by path, and the modules that are running."""

    seen: dict[str, Seen] = field(default_factory=dict)
    running: list[Module] = field(default_factory=list)

    def attending(
        self,
        method: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        """Note that a table of embeddings is used as a kernel, too."""
        if context.method_name == "attend":
            self.seen.setdefault("/".join(context.module.path), Seen(context.module)).calls += 1
        return method(*args, **kwargs)

    def __call__(self, call: Call, /) -> object:
        """Run a module and note the call."""
        self.running.append(call.module)
        seen = self.seen.setdefault(call.path, Seen(call.module))
        seen.calls += 1
        seen.wrapped |= any(normalizes_kernel(one) for one in self.running)
        seen.kernel = _kernel_of(call.module)
        seen.given += tuple(name for name in _OF_A_CALL if call.kwargs.get(name) is not None)
        try:
            return call.proceed()
        finally:
            self.running.pop()


def seen(
    model: Module, variables: VariableDict | None, args: tuple[object, ...], kwargs: Mapping[str, Any]
) -> dict[str, Seen]:
    """Return the calls of the modules of a model by path; only shapes are computed.

    Args:
        model: A module of Linen, or of NNX, of which norms, linear layers and dropout are found.
        variables: Variables of a Linen model; `None` for NNX.
        args: Arguments of a call of the model.
        kwargs: Keyword arguments, with those that say that it evaluates; perhaps `method` and `rngs`.
    """
    record, options = _Record(), dict(kwargs)
    method, rngs = options.pop("method", None), options.pop("rngs", None)
    call = applied(model, variables, record, method=method, train=False)
    arrays, joined, _ = partitioned((args, options))

    def run(variables: Any, arrays: list[Any]) -> object:
        given, options = joined(arrays)
        return call.call(variables, given, options, rngs)[0]

    with nn.intercept_methods(record.attending):
        jax.eval_shape(run, call.variables, arrays)
    return record.seen


def _kernel_of(module: Module) -> tuple[int, ...] | None:
    """Return the shape of the kernel of a module, which is a part of what the model keeps under `nn.vmap`."""
    own = nn.unbox(module.variables.get("params", {})) if isinstance(module, nn.Module) else vars(module)
    kernel = next((own[name] for name in KERNELS if own.get(name) is not None), None)
    return None if kernel is None else kernel.shape


def evaluates(module: object, use_running_average: bool | None) -> bool:
    """Return whether a norm normalizes by running statistics, given the argument of its call."""
    if getattr(module, "frozen", False) or getattr(module, "statistics", "auto") == "running":
        return True
    return bool(getattr(module, "use_running_average", None) if use_running_average is None else use_running_average)
