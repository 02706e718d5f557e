"""Mark the inputs and outputs of norms, linear layers and dropout in the jaxpr of a model, and note what was called."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from normlab.functional import CellNorm
from normlab.introspect.calls import Call, Module
from normlab.introspect.kinds import (
    Kind,
    Recognised,
    elements,
    feature_axes,
    is_dropout,
    is_linear,
    norm_inside_cell,
    norm_kind,
)

__all__ = ["Layer", "Markers", "Role", "inside_cell"]

Role: TypeAlias = Literal["norm", "linear", "dropout", "weight"]
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Layer:
    """A call of a norm, a linear layer or dropout while a model was traced.

    Attributes:
        path: Path of the module.
        role: How the walk over the jaxpr treats it; `weight` is a norm of kernels, which values pass as if it were not
            there.
        module: The module, without variables where it is of Linen.
        kind: Kind of the norm, also of a linear layer that normalizes its own kernel; `None` for others.
        shape: Shape of the input, as the module saw it.
        dtype: Dtype of the input.
        features: Feature axes of the input.
        count: Elements that one statistic covers.
        variables: Names in the model of the module's own variables, by role, such as `params/norm/scale` for `scale`.
        shapes: Their shapes as the module saw them, by role.
        running: Whether a norm with running statistics used them.
        given: Names of further arrays of the call, such as `mask`.
    """

    path: str
    role: Role
    module: Module
    kind: Kind | None
    shape: tuple[int, ...]
    dtype: np.dtype
    features: tuple[int, ...] = ()
    count: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    running: bool | None = None
    given: tuple[str, ...] = ()


class Markers:
    """A hook that names the inputs and outputs of layers in the jaxpr.

    Attributes:
        layers: What was called, by number of the marker, in the order in which calls were traced.
        inside: Norms inside recurrent cells, by path, of which only variables are known.
        modules: Paths of all modules that were called.
    """

    def __init__(self, recognise: Recognised = ()) -> None:
        """Make a hook.

        Args:
            recognise: Further types of norms, each with its kind.
        """
        self.layers: dict[int, Layer] = {}
        self.inside: dict[str, Layer] = {}
        self.modules: dict[str, None] = {}
        self._recognise = recognise
        self._prefix = f"normlab {next(_numbers)} "

    def __call__(self, call: Call, /) -> object:
        """Mark the input and the output of a call, if it is of a layer."""
        self.modules[call.path] = None
        if norm := norm_inside_cell(call.module):
            evaluates = not call.input if isinstance(call.input, bool) else None
            self.inside[call.path] = inside_cell(call.path, call.module, norm, evaluates)
        role, kind = self._role(call.module)
        x = call.input
        if role is None or not isinstance(x, jax.Array | np.ndarray):
            return call.proceed()
        x, number = jnp.asarray(x), next(_numbers)
        marked = checkpoint_name(x, self._name(number, "in"))
        y = call.given(marked)
        if role == "dropout" and y is marked:  # off: the layer is not there
            return x
        self.layers[number] = _layer(call, role, kind, x)
        return jax.tree.map(lambda part: checkpoint_name(part, self._name(number, "out")), y)

    def read(self, name: str) -> tuple[Layer, bool] | None:
        """Return the layer that a name marks, and whether it marks the layer's output; `None` for other names."""
        if not name.startswith(self._prefix):
            return None
        number, side = name.removeprefix(self._prefix).split()
        layer = self.layers.get(int(number))
        return None if layer is None else (layer, side == "out")

    def _name(self, number: int, side: Literal["in", "out"]) -> str:
        return f"{self._prefix}{number} {side}"

    def _role(self, module: Module) -> tuple[Role | None, Kind | None]:
        kind = norm_kind(module, self._recognise)
        if is_linear(module):  # perhaps one that normalizes its own kernel
            return "linear", kind
        if kind is not None:
            return ("weight" if kind.name == "weight" else "norm"), kind
        return ("dropout" if is_dropout(module) else None), None


def _layer(call: Call, role: Role, kind: Kind | None, x: jax.Array) -> Layer:
    module = call.module
    unbound = _unbound(module)
    if kind is None:
        return Layer(call.path, role, unbound, kind, x.shape, x.dtype)
    own = _own(call.path, module)
    return Layer(
        call.path,
        role,
        unbound,
        kind,
        x.shape,
        x.dtype,
        feature_axes(module, x.ndim),
        elements(module, kind.name, x.shape),
        {name: f"{collection}{name}" for name, (collection, _) in own.items()},
        {name: shape for name, (_, shape) in own.items()},
        _running(call),
        call.further,
    )


def inside_cell(path: str, module: Module, norm: CellNorm, evaluates: bool | None) -> Layer:
    """Return a norm inside a recurrent cell of this package.

    Args:
        path: Path of the module.
        module: The module with the norm's variables.
        norm: The norm.
        evaluates: Whether the cell evaluates, if this is known.
    """
    own = _own(path, module)
    return Layer(
        path,
        "norm",
        _unbound(module),
        Kind(norm.kind, "normlab"),
        (),
        np.dtype(np.float32),
        variables={name: f"{place}{name}" for name, (place, _) in own.items()},
        running=evaluates if norm.stateful else None,
    )


def _unbound(module: Module) -> Module:
    """Return a module without variables where it is of Linen."""
    return module.copy(parent=None) if isinstance(module, nn.Module) else module


def _own(path: str, module: Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return where the variables are that belong to a module itself, and their shapes, by role."""
    prefix = f"{path}/" if path else ""
    if not isinstance(module, nn.Module):
        own = {name: value for name, value in vars(module).items() if isinstance(value, nnx.Variable)}
        return {name: (prefix, jnp.shape(value[...])) for name, value in own.items()}
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for collection in sorted(module.variables, key="params".__ne__):
        for name, value in module.variables[collection].items():
            if not isinstance(value, Mapping):
                found.setdefault(name, (f"{collection}/{prefix}", jnp.shape(nn.unbox(value))))
    return found


def _running(call: Call) -> bool | None:
    """Return whether a norm evaluates by running statistics; `None` for one that keeps none."""
    attribute = getattr(call.module, "use_running_average", None)
    given = call.kwargs.get("use_running_average", call.args[1] if len(call.args) > 1 else None)
    chosen = attribute if given is None else given
    return chosen if isinstance(chosen, bool) else None
