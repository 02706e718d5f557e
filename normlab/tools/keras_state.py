"""States of Keras 3 models in Flax models, and back.

Keras is not imported: a state is a mapping from paths to arrays, `{w.path: w.numpy() for w in model.weights}`. Axes
have the same order as in Flax, with channels last, and so have flattened features.
"""

import math
from collections.abc import Mapping

import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

from normlab.introspect.modules import Owner, is_norm
from normlab.tools.states.layout import SAME, Layout, Place, permuted, reshaped
from normlab.tools.states.matching import Names, check_known, gathered, items
from normlab.tools.states.transfer import Call, Imported, Library, exported, imported, name_of, paths_of

__all__ = ["from_keras", "to_keras"]

_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
_EPSILON = {"rms": 1e-6}
_RANDOM = frozenset({"seed_generator_state"})


def from_keras(
    state: Mapping[str, object],
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    names: Names | None = None,
    strict: bool = True,
    epsilon: float | Mapping[str, float] | None = None,
    momentum: float = 0.99,
    inplace: bool = False,
    **kwargs: object,
) -> Imported:
    """Put the state of a Keras model into a Flax model.

    Args:
        state: Arrays by path, `{w.path: w.numpy() for w in keras_model.weights}`.
        model: A model of Linen or NNX.
        variables: Variables of the Linen model, arrays or shapes; `None` for NNX.
        *args: Arguments of a call of the model; only shapes are computed.
        names: Paths of modules by names of layers; see `from_torch`.
        strict: Whether an array without a place, a place without an array and another epsilon are errors.
        epsilon: Epsilon of the norms, or of norms by name; otherwise the default, 1e-3, and 1e-6 for RMS norm.
        momentum: Momentum of the batch norms, the weight of the OLD value as in Flax.
        inplace: Whether an NNX model is changed and not a copy of it.
        **kwargs: Keyword arguments of the call, such as `train=False`.

    Raises:
        BadInput: If an array is left, there is a choice, or an epsilon differs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> state = {"dense/kernel": np.ones((2, 3)), "dense/bias": np.zeros(3)}
        >>> model, x = nn.Dense(3), jnp.ones((1, 2))
        >>> from_keras(state, model, model.init(jax.random.key(0), x), x).variables["params"]["bias"]
        Array([0., 0., 0.], dtype=float32)
    """
    call = Call(model, variables, args, kwargs)
    library, entries = _library(epsilon, momentum), gathered(items(state, "/"), counted=True)
    check_known("epsilon", epsilon, entries)
    return imported(library, entries, call, paths_of(names), strict=strict, inplace=inplace)


def to_keras(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    names: Names | None = None,
    **kwargs: object,
) -> dict[str, np.ndarray]:
    """Return the numbers of a Flax model by the paths of a Keras model, for `w.assign` of its weights.

    Args:
        model: A model of Linen or NNX.
        variables: Variables of the Linen model; `None` for NNX.
        *args: Arguments of a call of the model; only shapes are computed.
        names: Paths of modules by names of layers, as `Imported.names`, or a function from the path to the name.
        **kwargs: Keyword arguments of the call.

    Raises:
        BadInput: If the call does not reach an array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, x = nn.Sequential([nn.Dense(3), nn.LayerNorm()]), jnp.ones((1, 2))
        >>> list(to_keras(model, model.init(jax.random.key(0), x), x))
        ['layers_0/bias', 'layers_0/kernel', 'layers_1/beta', 'layers_1/gamma']
    """
    layers = exported(_library(None, 0.99), Call(model, variables, args, kwargs), name_of(names, "/"))
    return {
        f"{name}/{part}" if name else part: array for name, parts in layers.items() for part, array in parts.items()
    }


def _library(epsilon: float | Mapping[str, float] | None, momentum: float) -> Library:
    def of(name: str, kind: str) -> float:
        given = epsilon.get(name) if isinstance(epsilon, Mapping) else epsilon
        return _EPSILON.get(kind, 1e-3) if given is None else given

    return Library("Keras", lambda name, owner: _places(owner), _RANDOM, of, momentum)


def _places(owner: Owner) -> dict[str, Place]:
    return {name: Place(_key(owner, name), _layout(owner, name, shape)) for name, shape in owner.shapes.items()}


def _key(owner: Owner, name: str) -> str:
    if owner.kind == "embedding":
        return "embeddings"
    return _NORM.get(name, name) if is_norm(owner.kind) and owner.kind != "rms" else name


def _layout(owner: Owner, name: str, shape: tuple[int, ...]) -> Layout:
    if name != "kernel":
        return SAME
    if owner.kind == "conv_transpose" and not getattr(owner.module, "transpose_kernel", False):
        space = range(len(shape) - 2)
        return permuted((*space, len(shape) - 1, len(shape) - 2), tuple(space))
    return _depthwise(owner, shape) if owner.kind == "conv" else SAME


def _depthwise(owner: Owner, shape: tuple[int, ...]) -> Layout:
    """Return the layout of a convolution, which Keras keeps by channel if each channel has filters of its own."""
    channels = getattr(owner.module, "feature_group_count", 1)
    if channels == 1 or shape[-2] != 1:
        return SAME
    return reshaped((*shape[:-2], channels, math.prod(shape[-2:]) // channels), shape)
