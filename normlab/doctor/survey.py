"""Find the norms of a model in one mode, also of a model whose call fails at some of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax.typing import VariableDict
from jax import Array

from normlab.introspect.applied import applied, partitioned
from normlab.introspect.calls import Call, Module
from normlab.introspect.kinds import Kind, elements, norm_kind
from normlab.introspect.modes import Method
from normlab.tools import Sites, sites

__all__ = ["Failure", "Survey", "survey"]


@dataclass(frozen=True)
class Failure:
    """A norm whose call failed.

    Attributes:
        path: Its path.
        kind: Its kind.
        module: The norm.
        count: Elements that one of its statistics covers.
        error: The error.
    """

    path: str
    kind: Kind
    module: Module
    count: int
    error: Exception

    @property
    def unbound(self) -> bool:
        """Whether the norm reduces over an axis of devices that is not there."""
        return bool(self.axes) and isinstance(self.error, NameError)

    @property
    def axes(self) -> set[str]:
        """Names of the axes of devices that the norm reduces over."""
        name = getattr(self.module, "axis_name", None) or ()
        return {name} if isinstance(name, str) else set(name)


@dataclass(frozen=True)
class Survey:
    """The norms of a model in one mode.

    Attributes:
        sites: The norms; empty where the call fails.
        failures: The norms whose calls failed.
    """

    sites: Sites
    failures: tuple[Failure, ...] = ()


def survey(
    model: Module,
    variables: VariableDict | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    *,
    mode: Mapping[str, object],
    train: bool,
    method: Method,
    rngs: Mapping[str, Array],
) -> Survey:
    """Find the norms of a model.

    Args:
        model: The model; of NNX one in the right mode already.
        variables: Variables of a Linen model.
        args: Arguments of a call.
        kwargs: Keyword arguments of the call, but for those that say the mode.
        mode: Keyword arguments that say the mode.
        train: The mode.
        method: The method to be called.
        rngs: Random streams of the call.

    Raises:
        Exception: That of the call, where it fails at something else than a norm.
    """
    try:
        options: dict[str, Any] = {"train": mode, "method": method, "rngs": rngs, **kwargs}
        return Survey(sites(model, variables, *args, **options))
    except Exception:
        failures = _failures(model, variables, args, {**kwargs, **mode}, train, method, rngs)
        if not failures:
            raise
        return Survey(Sites([]), failures)


def _failures(
    model: Module,
    variables: VariableDict | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    train: bool,
    method: Method,
    rngs: Mapping[str, Array],
) -> tuple[Failure, ...]:
    """Return the norms whose calls fail, each of which is left out of the call."""
    found: dict[str, Failure] = {}

    def passing(call: Call, /) -> object:
        kind = norm_kind(call.module)
        if kind is None:
            return call.proceed()
        try:
            return call.proceed()
        except Exception as error:
            shape: tuple[int, ...] = getattr(call.input, "shape", ())
            count = elements(call.module, kind.name, shape)
            found.setdefault(call.path, Failure(call.path, kind, call.module, count, error))
            return call.input

    called = applied(model, variables, passing, method=method, train=train)
    arrays, joined, _ = partitioned((args, kwargs))

    def output(variables: object, arrays: list[Array]) -> object:
        args, kwargs = joined(arrays)
        return called.call(variables, args, kwargs, rngs)[0]

    try:
        jax.eval_shape(output, called.variables, arrays)
    except Exception:
        return ()
    return tuple(found.values())
