"""A call of a model, of Linen or of NNX, as a pure function of arrays, with a hook around the calls of its modules."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

from normlab.errors import BadInput
from normlab.expect import refusal
from normlab.introspect import linen_hook, nnx_hook
from normlab.introspect.calls import Hook, Module
from normlab.introspect.kinds import Recognised, is_dropout, is_linear, norm_kind
from normlab.introspect.modes import Method

__all__ = ["Applied", "Static", "Variables", "applied", "check_model", "is_layer", "partitioned"]

Variables: TypeAlias = VariableDict | nnx.State
"""Variables of a Linen model, or the state of one of NNX."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Applied:
    """A model as a pure function.

    Attributes:
        variables: Variables of a Linen model; the state of an NNX model.
        call: `(variables, args, kwargs, rngs) -> (output, variables after the call)`; Linen returns the collections
            that were mutable.
    """

    variables: Variables
    call: Callable[..., tuple[object, Variables]]


def applied(
    model: Module,
    variables: VariableDict | None,
    hook: Hook,
    *,
    method: Method = None,
    train: bool | None = None,
    recognise: Recognised = (),
) -> Applied:
    """Return a model as a pure function, with a hook around the calls of its modules.

    The function is traced again each time: what `nn.jit` has traced before would not call the hook.

    Args:
        model: The model; it stays as it is.
        variables: Variables of a Linen model; `None` for NNX.
        hook: Stands around each call of a module; in NNX, of a norm, a linear layer or dropout.
        method: The method to be called.
        train: The mode of an NNX model; `None` leaves it.
        recognise: Further types of norms, each with its kind.

    Raises:
        BadInput: If the model is no Flax module, or variables are missing or in excess.
    """
    check_model(model)
    if isinstance(model, nn.Module):
        if variables is None:
            raise BadInput("Expected the variables of a Linen model, got None. Give those of `model.init`.")
        return _linen(model, variables, hook, method)
    if variables is not None:
        raise BadInput("Expected `variables=None` for an NNX model, which has its own, got some. Leave them out.")
    return _nnx(model, hook, method, train, recognise)


def _linen(model: nn.Module, variables: VariableDict, hook: Hook, method: Method) -> Applied:
    mutable = [name for name in variables if name != "params"]
    token = str(next(_numbers))

    def call(
        variables: VariableDict,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        rngs: Mapping[str, Array] | None,
    ) -> tuple[object, VariableDict]:
        options: dict[str, Any] = {"mutable": mutable, "method": method, "rngs": rngs}
        with linen_hook.hooked(hook), set_xla_metadata(normlab=token):
            return model.apply(variables, *args, **kwargs, **options)

    return Applied(variables, call)


def _nnx(model: nnx.Module, hook: Hook, method: Method, train: bool | None, recognise: Recognised) -> Applied:
    twin = nnx_hook.hooked(model, hook, lambda one: is_layer(one, recognise))
    if train is not None:
        (twin.train if train else twin.eval)()
    graph, state = nnx.split(twin)
    token = str(next(_numbers))

    def call(
        state: nnx.State, args: tuple[object, ...], kwargs: Mapping[str, object], rngs: object
    ) -> tuple[object, nnx.State]:
        del rngs  # which an NNX model has inside
        module: object = nnx.merge(graph, state)
        function = partial(method, module) if callable(method) else getattr(module, method or "__call__")
        with set_xla_metadata(normlab=token):
            output = function(*args, **kwargs)
        return output, nnx.state(module)

    return Applied(state, call)


def is_layer(module: nnx.Module, recognise: Recognised = ()) -> bool:
    """Return whether a module of NNX is a norm, a linear layer or dropout, around whose calls a hook stands."""
    return norm_kind(module, recognise) is not None or is_linear(module) or is_dropout(module)


def check_model(model: object) -> None:
    """Refuse a model that is no instance of a Flax module.

    Raises:
        BadInput: If it is a function, a class, or a module of another library.
    """
    if isinstance(model, nn.Module | nnx.Module):
        return
    bases = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    for name, title in (("equinox", "an Equinox"), ("haiku", "a Haiku")):
        if name in bases:
            raise BadInput(
                f"Expected a Flax module, got {title} one. Only states are converted, see `from_haiku` in "
                "`normlab.tools`."
            )
    if callable(model) and not isinstance(model, type):
        raise BadInput("Expected a Flax module, got a function. Pass the module; the call is built from it.")
    raise refusal("a Flax module", model, "Pass an instance of `nn.Module` or `nnx.Module`.")


def partitioned(tree: object) -> tuple[list[Array], Callable[[list[Array]], Any], tuple[object, ...]]:
    """Split a tree into its arrays and what is static.

    Args:
        tree: Arguments of a call, with arrays, abstract arrays, and values such as flags.

    Returns:
        The arrays; a function that puts others in their places; and a key that is equal for equal static parts.
    """
    leaves, structure = jax.tree.flatten(tree)
    dynamic = [_is_array(leaf) for leaf in leaves]
    static = tuple(None if yes else leaf for leaf, yes in zip(leaves, dynamic, strict=True))

    def joined(arrays: list[Array]) -> object:
        given = iter(arrays)
        parts = [next(given) if yes else leaf for leaf, yes in zip(static, dynamic, strict=True)]
        return jax.tree.unflatten(structure, parts)

    arrays = [leaf for leaf, yes in zip(leaves, dynamic, strict=True) if yes]
    return arrays, joined, (structure, tuple(dynamic), static)


@dataclass(frozen=True, eq=False)
class Static:
    """Static parts of the arguments of a call, from `partitioned`; equal keys make them equal.

    Attributes:
        key: The key.
        joined: Puts arrays in their places among the static parts.
    """

    key: tuple[object, ...]
    joined: Callable[[list[Array]], Any]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
