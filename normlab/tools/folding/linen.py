"""Folds in Linen: new variables, and a model in which folded norms run no more."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict, freeze, unfreeze
from flax.linen.module import InterceptorContext
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import VariableDict

from normlab.introspect.replaced import Standing, replacing
from normlab.tools.folding.calls import evaluates
from normlab.tools.folding.plan import Decision
from normlab.tools.folding.replacement import Replacement, in_training
from normlab.tools.folding.values import Values

__all__ = ["FoldedModel", "Held", "folded_model", "folded_variables", "reader"]


@dataclass(frozen=True)
class Held:
    """A model that no module adopts as a part of its own."""

    model: nn.Module


class FoldedModel(Standing):
    """A model in which some norms are replaced; its variables have the paths that they had.

    Public methods of the model are methods of this one, too.

    Attributes:
        held: The model.
        replacements: Replacements by the paths of norms.
    """

    held: Held
    replacements: Mapping[str, Replacement]

    @property
    def original(self) -> nn.Module:
        """The model."""
        return self.held.model

    @nn.nowrap
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the model."""
        return self._run("__call__", args, kwargs)

    def __getattr__(self, name: str) -> object:
        """Return a method of the model, in which the norms are replaced, too."""
        held = self.__dict__.get("held")
        if held is None or name.startswith("_") or not callable(getattr(type(held.model), name, None)):
            return super().__getattr__(name)
        return MethodType(lambda self, *args, **kwargs: self._run(name, args, kwargs), self)

    @cached_property
    def _bound(self) -> nn.Module:
        """The model, with the variables of this module as its own."""
        return self.held.model.clone(parent=self.scope)

    @nn.nowrap
    def _run(self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        gone = [(*self.path, *_parts(path)) for path in self.replacements]
        with replacing(gone), nn.intercept_methods(_replacing(self.replacements, len(self.path))):
            return getattr(self._bound, name)(*args, **kwargs)


def _replacing(replacements: Mapping[str, Replacement], depth: int) -> Callable[..., object]:
    """Return an interceptor that runs replacements; the model is at a path of `depth` names."""

    def intercept(
        method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], context: InterceptorContext
    ) -> Any:
        module = context.module
        path = "/".join(module.path[depth:])
        if path not in replacements or context.method_name != "__call__":
            return method(*args, **kwargs)
        return _replaced(module, path, replacements[path], *args, **kwargs)

    return intercept


def _replaced(
    module: nn.Module,
    path: str,
    replacement: Replacement,
    x: jax.Array,
    use_running_average: bool | None = None,
    **_: object,
) -> jax.Array:
    """Run what stands in the place of a norm, by the parameters at its path."""
    if hasattr(module, "use_running_average") and not evaluates(module, use_running_average):
        raise in_training(path)
    parameters = nn.unbox(module.variables.get("params", {}))
    return replacement(x, parameters.get("scale"), parameters.get("bias"))


def folded_model(model: nn.Module, replacements: Mapping[str, Replacement]) -> nn.Module:
    """Return the model with replacements for the norms that are no longer run, by path."""
    return FoldedModel(Held(model), FrozenDict(replacements)) if replacements else model


def reader(variables: VariableDict) -> Callable[[str, str], np.ndarray | None]:
    """Return a function of a module's path and a variable's name, for the variable's value."""
    flat = _flat(variables)
    collections = ("params", *(name for name in variables if name != "params"))

    def read(path: str, name: str) -> np.ndarray | None:
        for collection in collections:
            value = flat.get((collection, *_parts(path), name))
            if value is not None:
                return np.asarray(nn.unbox(value))
        return None

    return read


def folded_variables(
    variables: VariableDict, decisions: Collection[Decision], values: Mapping[str, Values]
) -> VariableDict:
    """Return variables with folded kernels, and without those of norms that are no longer run.

    Args:
        variables: As they were; they stay.
        decisions: Fates of the norms.
        values: New values of variables by the path of their module and by name; see `normlab.tools.folding.values`.
    """
    flat = _flat(variables)
    norms = {one.site.path: one.site.module for one in decisions}
    gone = {_parts(one.site.path) for one in decisions if one.is_gone}
    kept = {key: value for key, value in flat.items() if key[1:-1] not in gone}
    for path, new in values.items():
        own = {key[-1]: key for key in flat if key[1:-1] == _parts(path)}
        for name, value in new.items():
            key = own.get(name, ("params", *_parts(path), name))
            kept[key] = _like(flat[key], value) if key in flat else jnp.asarray(value, norms[path].param_dtype)
    new = unflatten_dict(kept)
    return freeze(new) if isinstance(variables, FrozenDict) else new


def _like(old: object, value: np.ndarray) -> object:
    """Return a value as the old one was kept: its dtype, devices and metadata."""
    raw = nn.unbox(old)
    new = jnp.asarray(value, raw.dtype)
    if isinstance(raw, jax.Array):
        new = jax.device_put(new, raw.sharding)
    return old.replace_boxed(new) if isinstance(old, nn.meta.AxisMetadata) else new


def _flat(variables: VariableDict) -> dict[tuple[str, ...], Any]:
    return flatten_dict(unfreeze({**variables}))


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")) if path else ()
