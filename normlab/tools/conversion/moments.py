"""The state of an optimizer for a model whose norms were converted."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from normlab.tools.conversion.report import Path, Report

__all__ = ["new_moments"]

State = TypeVar("State")
Moments = Mapping[str, object] | nnx.State


def new_moments(opt_state: State, report: Report) -> State:
    """Return the state of an optimizer whose trees of moments are those of the new parameters.

    Args:
        opt_state: State for the parameters before.
        report: Of the conversion.
    """

    def meant(node: object) -> bool:
        return isinstance(node, Mapping) and set(node) == report.names

    def edited(node: object) -> object:
        return _edited(cast(Moments, node), report) if meant(node) else node

    return jax.tree.map(edited, opt_state, is_leaf=meant)


def _edited(moments: Moments, report: Report) -> Moments:
    """Return a tree of moments for the new parameters."""
    if isinstance(moments, nnx.State):
        return nnx.from_flat_state(_edited_flat(dict(nnx.to_flat_state(moments)), report))
    plain = flatten_dict(
        unfreeze(cast("dict[str, object]", moments)), is_leaf=lambda _, value: not isinstance(value, dict)
    )
    new = unflatten_dict(_edited_flat(plain, report))
    return freeze(new) if isinstance(moments, FrozenDict) else new


def _edited_flat(flat: Mapping[Path, object], report: Report) -> dict[Path, object]:
    new = {path: leaf for path, leaf in flat.items() if path not in report.dropped}
    for path, shape in report.fresh.items():
        beside = (leaf for other, leaf in flat.items() if other[:-1] == path[:-1])
        like = flat[path] if path in flat else next(beside, None)
        new[path] = _zeros(like, shape, path in flat)
    return new


def _zeros(like: Any, shape: jax.ShapeDtypeStruct, same: bool) -> object:
    """Return moments of zero of the kind of others, which a mask may leave out."""
    if isinstance(like, nn.meta.AxisMetadata):
        zeros = jnp.zeros(shape.shape, nn.unbox(like).dtype)
        return like.replace_boxed(zeros) if same else zeros
    if isinstance(like, nnx.Variable):
        return like.replace(jnp.zeros(shape.shape, like.dtype))
    if like is None or hasattr(like, "dtype"):
        return jnp.zeros(shape.shape, shape.dtype if like is None else like.dtype)
    return like
