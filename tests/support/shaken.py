"""Variables with random statistics, scales and biases, as of a model that was trained."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

_DRAWN = {
    "mean": lambda z: 0.3 * z,
    "var": lambda z: np.exp(z / 2),
    "std": lambda z: np.exp(z / 4),
    "scale": lambda z: 1 + 0.2 * z,
    "bias": lambda z: 0.2 * z,
}


def drawn(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, Any]:
    """Return random variables of a Linen model; nothing is compiled."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **options))
    rng = np.random.default_rng(0)

    def kernel(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        wide = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        return jnp.asarray(rng.normal(size=leaf.shape) * np.sqrt(2 / wide), leaf.dtype)

    return shaken(jax.tree_util.tree_map_with_path(kernel, shapes))


def shaken(variables: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return variables of a Linen model with random statistics, scales and biases."""
    rng = np.random.default_rng(seed)

    def shaken(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        draw = _DRAWN.get(next(key.key for key in reversed(path) if hasattr(key, "key")))
        return leaf if draw is None else jnp.asarray(draw(rng.normal(size=leaf.shape)), leaf.dtype)

    return jax.tree_util.tree_map_with_path(shaken, variables)


def shake(model: nnx.Module, seed: int = 0) -> None:
    """Give the norms of an NNX model random statistics, scales and biases."""
    rng = np.random.default_rng(seed)
    for _, module in nnx.iter_modules(model):
        for name, draw in _DRAWN.items():
            variable = getattr(module, name, None)
            if isinstance(variable, nnx.Variable):
                old = variable[...]
                variable.set_value(jnp.asarray(draw(rng.normal(size=old.shape)), old.dtype))


def fingerprint(tree: object) -> list[tuple[str, bytes]]:
    """Return the bytes of all arrays of a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]
