"""Which modules are norms, of which kind, and over which elements each takes its statistics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx
from normlab._core.reduction import canonical_axes
from normlab.catalogue import ROWS, Description
from normlab.functional import CellNorm
from normlab.introspect.calls import Module
from normlab.introspect.nnx_hook import plain

__all__ = [
    "Kind",
    "Library",
    "Recognised",
    "elements",
    "feature_axes",
    "is_dropout",
    "is_linear",
    "norm_inside_cell",
    "norm_kind",
]

Library: TypeAlias = Literal["flax", "normlab", "user"]
Recognised: TypeAlias = Sequence[tuple[type, str]]
"""Types of norms that neither library has, each with its kind."""

_FLAX = {
    "BatchNorm": "batch",
    "LayerNorm": "layer",
    "RMSNorm": "rms",
    "GroupNorm": "group",
    "InstanceNorm": "instance",
    "WeightNorm": "weight",
    "SpectralNorm": "weight",
}
_OF_KERNELS = ("Reparametrized", "StandardizedConv", "StandardizedDense", "StandardizedLinear")
_OURS = (normlab.linen, normlab.nnx)
_ROWS = {row.module: [other for other in ROWS if other.module == row.module] for row in ROWS if row.module}
_EMBEDDINGS = (nn.Embed, nnx.Embed)
_DROPOUTS = (nn.Dropout, nnx.Dropout)


class Kind(NamedTuple):
    """A kind of norm: the name of the registry where there is one, and whose class it is."""

    name: str
    library: Library


def norm_kind(module: Module, recognise: Recognised = ()) -> Kind | None:
    """Return the kind of a norm; `None` for a module that is no norm.

    Args:
        module: A module.
        recognise: Further types of norms, each with its kind.
    """
    kind = plain(type(module))
    for known, name in recognise:
        if isinstance(module, known):
            return Kind(name, "user")
    for base in kind.__mro__:
        if base.__module__.startswith(("flax.linen.normalization", "flax.nnx.nn.normalization")):
            name, library = _FLAX.get(base.__name__, ""), "flax"
        elif any(getattr(package, base.__name__, None) is base for package in _OURS):
            name, library = _name_of(base.__name__, module), "normlab"
        else:
            continue
        if name:
            return Kind(name, "user" if _overrides(kind, base) else library)
    return None


def norm_inside_cell(module: Module) -> CellNorm | None:
    """Return the norm inside a recurrent cell of this package that a module is about; `None` where there is none.

    Args:
        module: In NNX the cell; in Linen a module such as `norm_h` of the cell, with the variables of one of its paths.
    """
    norm = getattr(module, "norm", None)
    is_cell = isinstance(module, nn.RNNCellBase | nnx.RNNCellBase)
    return norm if isinstance(norm, CellNorm) and is_cell is isinstance(module, nnx.Module) else None


def _name_of(name: str, module: Module) -> str:
    """Return the name in the registry of a norm of this package; empty for a module that is no norm."""
    if name in _OF_KERNELS:
        return "weight"
    return next((row.name for row in _ROWS.get(name, ()) if _has(module, row)), "")


def _has(module: Module, row: Description) -> bool:
    return all(getattr(module, option, None) == value for option, value in row.fixed)


def _overrides(kind: type, base: type) -> bool:
    """Return whether a class of the user's, below one of a library, has a call of its own."""
    return any("__call__" in vars(one) for one in kind.__mro__[: kind.__mro__.index(base)])


def is_linear(module: Module) -> bool:
    """Return whether a module is a linear layer: its own parameters are `kernel`, and perhaps `bias`, none below.

    A layer that normalizes its own kernel and an embedding count, too.
    """
    if isinstance(module, (*_EMBEDDINGS, normlab.linen.StandardizedConv, normlab.linen.StandardizedDense)):
        return True
    if isinstance(module, normlab.nnx.StandardizedConv | normlab.nnx.StandardizedLinear):
        return True
    if isinstance(module, nn.Module):
        own = module.variables.get("params", {})
        names = {name for name, value in own.items() if not isinstance(value, Mapping)} if own else set()
        if len(names) < len(own):
            return False
    else:
        parts = vars(module).values()
        if any(isinstance(part, nnx.Module) for part in parts):
            return False
        names = {name for name, part in vars(module).items() if isinstance(part, nnx.Param)}
    return "kernel" in names and names <= {"kernel", "bias"}


def is_dropout(module: Module) -> bool:
    """Return whether a module is a dropout layer."""
    return isinstance(module, _DROPOUTS)


def feature_axes(module: Module, ndim: int) -> tuple[int, ...]:
    """Return the feature axes of the input of a norm, from 0 on; the last where the norm does not say."""
    if ndim == 0:
        return ()
    for name in ("feature_axes", "axis"):
        axes = getattr(module, name, None)
        if isinstance(axes, int | Iterable):
            return canonical_axes(axes if isinstance(axes, int) else tuple(axes), ndim, name)
    return (ndim - 1,)


def elements(module: Module, kind: str, shape: tuple[int, ...]) -> int:
    """Return how many elements one statistic of a norm covers in a call, on one device; 0 for no statistics.

    Args:
        module: The norm.
        kind: Its kind.
        shape: Shape of its input.
    """
    features = feature_axes(module, len(shape))
    others = [axis for axis in range(len(shape)) if axis not in features]
    positions = math.prod(shape[axis] for axis in others[1:])
    if kind in _OVER_POSITIONS:
        return positions
    if kind in _OVER_FEATURES:
        return math.prod(shape[axis] for axis in _reduced(module, len(shape), features))
    if kind in _OVER_GROUPS:
        return _of_groups(module, shape, features)
    if kind == "local_response":
        return min(getattr(module, "size", 1), shape[-1])
    if kind in _OVER_BATCH and others:
        batch = shape[others[0]]
        return min(getattr(module, "ghost_batch_size", None) or batch, batch) * positions
    return 0


def _reduced(module: Module, ndim: int, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    axes = getattr(module, "reduction_axes", None)
    return otherwise if axes is None else canonical_axes(axes, ndim, "reduction_axes")


def _of_groups(module: Module, shape: tuple[int, ...], features: tuple[int, ...]) -> int:
    """Return the elements of a group of features: its size, times the positions."""
    wide = math.prod(shape[axis] for axis in features)
    size = getattr(module, "group_size", None) or max(1, wide // (getattr(module, "num_groups", None) or 1))
    positions = _reduced(module, len(shape), tuple(range(1, len(shape))))
    return size * math.prod(shape[axis] for axis in positions if axis not in features)


_OVER_FEATURES = ("layer", "rms", "l2", "seednorm", "bhyt")
_OVER_POSITIONS = ("instance", "frn", "grn", "online", "streaming")
_OVER_GROUPS = ("group", "group_whiten", *(row.name for row in ROWS if row.module == "EvoNormSample"))
_OVER_BATCH = tuple(row.name for row in ROWS if row.needs_batch and row.module and row.name not in _OVER_POSITIONS)
