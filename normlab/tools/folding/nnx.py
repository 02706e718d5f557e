"""Folds in NNX: a copy of a model in which folded norms are replaced."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.introspect.nnx_hook import modules
from normlab.tools.folding.layouts import KERNELS
from normlab.tools.folding.replacement import Replacement
from normlab.tools.folding.shift import Shift
from normlab.tools.folding.values import Values

__all__ = ["folded_copy", "reader", "takes_bias"]


def reader(model: nnx.Module) -> Callable[[str, str], np.ndarray | None]:
    """Return a function of a module's path and a variable's name, for the variable's value."""
    found = modules(model)

    def read(path: str, name: str) -> np.ndarray | None:
        variable = getattr(found[path], name, None)
        return np.asarray(variable[...]) if isinstance(variable, nnx.Variable) else None

    return read


def takes_bias(model: nnx.Module) -> Callable[[str], bool]:
    """Return a function of a layer's path: whether the layer can be given a bias."""
    found = modules(model)
    return lambda path: hasattr(found[path], "bias")


def folded_copy(model: nnx.Module, replacements: Mapping[str, Replacement], values: Mapping[str, Values]) -> nnx.Module:
    """Return a copy of a model with folded kernels, in which norms that are no longer run are replaced.

    Args:
        model: The model; it stays as it is.
        replacements: Replacements for the norms that are no longer run, by path.
        values: New values of variables by the path of their module and by name; see `normlab.tools.folding.values`.
    """
    twin = nnx.clone(model)
    found = modules(twin)
    for path, new in values.items():
        for name, value in new.items() if path not in replacements else ():
            _put(found[path], name, value)
    shifts = {
        id(found[path]): _shift(path, found[path], one, values.get(path, {})) for path, one in replacements.items()
    }
    return _swapped(twin, shifts) if id(twin) in shifts else _with_children(twin, shifts)


def _put(module: nnx.Module, name: str, value: np.ndarray) -> None:
    """Set a variable of a module; a layer without a bias is given one."""
    variable = getattr(module, name)
    if isinstance(variable, nnx.Variable):
        old = variable[...]
        variable.set_value(jax.device_put(jnp.asarray(value, old.dtype), old.sharding))
        return
    kernel = next(getattr(module, kernel) for kernel in KERNELS if hasattr(module, kernel))
    setattr(module, name, nnx.data(nnx.Param(jnp.asarray(value, kernel[...].dtype))))
    if hasattr(module, "use_bias"):
        setattr(module, "use_bias", True)  # noqa: B010 - no class says that it has one


def _shift(path: str, norm: nnx.Module, replacement: Replacement, values: Values) -> Shift:
    """Return what stands in the place of a norm."""
    dtype = getattr(norm, "param_dtype", jnp.float32)
    bias, scale = (None if (one := values.get(name)) is None else jnp.asarray(one, dtype) for name in ("bias", "scale"))
    return Shift(bias, scale, replacement=replacement, path=path)


def _with_children(model: nnx.Module, new: Mapping[int, nnx.Module]) -> nnx.Module:
    """Put modules in the place of others, wherever these are; shared ones stay shared."""
    for node in [node for _, node in nnx.iter_graph(model)]:
        for key, child in _children(node):
            after = _swapped(child, new)
            if after is not child:
                node.__setitem__(key, after) if _is_container(node) else setattr(node, key, after)
    return model


def _children(node: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a node of a model's graph, by name or index."""
    if isinstance(node, nnx.List | list):
        return list(enumerate(node))
    if isinstance(node, dict):
        return list(node.items())
    return list(vars(node).items()) if isinstance(node, nnx.Pytree) else []


def _is_container(node: object) -> bool:
    return isinstance(node, nnx.List | list | dict)


def _swapped(child: Any, new: Mapping[int, nnx.Module]) -> Any:
    if type(child) is tuple:
        parts = tuple(_swapped(part, new) for part in child)
        return parts if any(a is not b for a, b in zip(parts, child, strict=True)) else child
    return new.get(id(child), child)
