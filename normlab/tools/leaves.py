"""Arrays of a tree of variables by `/`-joined paths, the same for Linen's collections and for a state of NNX."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.tree_util import DictKey, FlattenedIndexKey, SequenceKey
from jax.typing import ArrayLike

from normlab.errors import BadInput, nearest

__all__ = ["by_path", "mapped", "replaced", "statistics"]

Tree = TypeVar("Tree")

COLLECTION = "batch_stats"


def by_path(tree: object) -> dict[str, Array | np.ndarray]:
    """Return the arrays of a tree by their paths, boxes of metadata opened."""
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def mapped(function: Callable[..., ArrayLike], tree: Tree, *others: Tree) -> Tree:
    """Map `function(path, leaf, *leaves of others)` over a tree; containers and boxes stay as they are."""
    return jax.tree_util.tree_map_with_path(lambda keys, *leaves: function(_path(keys), *leaves), tree, *others)


def statistics(tree: object) -> dict[str, dict[str, str]]:
    """Return the paths of running statistics, by the path of their norm and by name.

    Args:
        tree: Variables of Linen, whose collection `batch_stats` is read, or a state of NNX with its `nnx.BatchStat`.
    """
    found: dict[str, dict[str, str]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))[
        0
    ]:
        path = _path(keys)
        if isinstance(leaf, nnx.BatchStat) if isinstance(leaf, nnx.Variable) else path.startswith(f"{COLLECTION}/"):
            norm, _, name = path.removeprefix(f"{COLLECTION}/").rpartition("/")
            found.setdefault(norm, {})[name] = path
    return found


def replaced(tree: Tree, values: Mapping[str, np.ndarray]) -> Tree:
    """Return the tree with other values at some paths, in float32 or wider, placed on devices as the leaves there.

    Args:
        tree: Variables, of which nothing changes.
        values: New values by path.

    Raises:
        BadInput: If the tree has no such path, or another shape there.
    """
    there = by_path(tree)
    for path, value in values.items():
        if path not in there:
            raise BadInput(
                f"Expected variables with `{path}`, got none. {nearest(path, there, 'Take the same model.')}"
            )
        if (shape := np.shape(there[path])) != value.shape:
            raise BadInput(
                f"Expected `{path}` of shape {value.shape}, got {shape}. Take the variables of the same model."
            )
    return mapped(lambda path, leaf: _like(leaf, values[path]) if path in values else leaf, tree)


def _like(leaf: Array | np.ndarray, value: np.ndarray) -> Array | np.ndarray:
    dtype = jnp.promote_types(leaf.dtype, jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    value = value.astype(dtype)
    if not isinstance(leaf, Array):
        return value
    return jax.device_put(value, leaf.sharding if leaf.committed else None)  # else JAX may still move it


def _path(keys: tuple[Any, ...]) -> str:
    """Join the keys of containers; the attributes of boxes are no part of a path."""
    parts: list[object] = []
    for key in keys:
        if isinstance(key, SequenceKey):
            parts.append(key.idx)
        elif isinstance(key, DictKey | FlattenedIndexKey):
            parts.append(key.key)
    return "/".join(map(str, parts))
