"""Parameters and state of Haiku networks in Flax models, and back.

Haiku is not imported: parameters and state come as one mapping, `hk.data_structures.merge(params, state)`, or
`{**params, **state}`. Haiku counts modules of one name (`linear`, `linear_1`); JAX sorts mappings, so the numbers, and
not the order of the mapping, are the order in which modules were made.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

from normlab.errors import BadInput
from normlab.expect import refusal
from normlab.introspect.modules import Owner, is_norm
from normlab.tools.states.layout import SAME, Layout, Place, permuted, reshaped
from normlab.tools.states.matching import Entry, Item, Names, check_known, gathered, in_order
from normlab.tools.states.transfer import Call, Imported, Library, exported, imported, name_of, paths_of

__all__ = ["from_haiku", "to_haiku"]

_NORM = {"scale": "scale", "bias": "offset", "mean": "mean_ema.average", "var": "var_ema.average"}
_PLAIN = {"kernel": "w", "bias": "b", "embedding": "embeddings"}
_AVERAGES = ("mean_ema", "var_ema")
_LONG_AGO = 2**30
"""Updates after which nothing is left of the start of an average."""


def from_haiku(
    state: Mapping[str, Mapping[str, object]],
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    names: Names | None = None,
    strict: bool = True,
    eps: float | Mapping[str, float] | None = None,
    decay_rate: float | None = None,
    inplace: bool = False,
    **kwargs: object,
) -> Imported:
    """Put parameters and state of a Haiku network into a Flax model.

    Args:
        state: Arrays by module and name, `hk.data_structures.merge(params, state)`.
        model: A model of Linen or NNX.
        variables: Variables of the Linen model, arrays or shapes; `None` for NNX.
        *args: Arguments of a call of the model; only shapes are computed.
        names: Paths of Flax's modules by names of Haiku's; see `from_torch`.
        strict: Whether an array without a place, a place without an array and another epsilon are errors.
        eps: `eps` of the norms, or of norms by name; otherwise the default, 1e-5.
        decay_rate: `decay_rate` of the batch norms, the weight of the OLD value as Flax's momentum. Necessary where
            running values were saved as `hidden` alone, whose start from zero it corrects.
        inplace: Whether an NNX model is changed and not a copy of it.
        **kwargs: Keyword arguments of the call, such as `train=False`.

    Raises:
        BadInput: If an array is left, there is a choice, or an epsilon differs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"linear": {"w": np.ones((2, 3)), "b": np.zeros(3)}}
        >>> model, x = nn.Dense(3), jnp.ones((1, 2))
        >>> from_haiku(params, model, model.init(jax.random.key(0), x), x).variables["params"]["bias"]
        Array([0., 0., 0.], dtype=float32)
    """
    call = Call(model, variables, args, kwargs)
    library, entries = _library(eps, decay_rate), _entries(state, decay_rate)
    check_known("eps", eps, entries)
    return imported(library, entries, call, paths_of(names), strict=strict, inplace=inplace)


def to_haiku(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    names: Names | None = None,
    **kwargs: object,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the numbers of a Flax model as parameters and state of a Haiku network, in one mapping.

    `hk.data_structures.partition(lambda module, name, value: "_ema" not in module, ...)` takes the two apart.

    Args:
        model: A model of Linen or NNX.
        variables: Variables of the Linen model; `None` for NNX.
        *args: Arguments of a call of the model; only shapes are computed.
        names: Paths of Flax's modules by names of Haiku's, as `Imported.names`, or a function from path to name.
        **kwargs: Keyword arguments of the call.

    Raises:
        BadInput: If the call does not reach an array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, x = nn.Sequential([nn.Dense(3), nn.LayerNorm()]), jnp.ones((1, 2))
        >>> {name: list(arrays) for name, arrays in to_haiku(model, model.init(jax.random.key(0), x), x).items()}
        {'layers_0': ['b', 'w'], 'layers_1': ['offset', 'scale']}
    """
    layers = exported(_library(None, None), Call(model, variables, args, kwargs), name_of(names, "/"))
    state: dict[str, dict[str, np.ndarray]] = {}
    for name, parts in layers.items():
        for part, array in parts.items():
            average, _, last = part.rpartition(".")
            state.setdefault(f"{name}/~/{average}" if average else name, {})[last] = array
    return state


def _entries(state: Mapping[str, Mapping[str, object]], decay_rate: float | None) -> list[Entry]:
    """Return the modules of a state, each batch norm with its averages."""
    items: list[Item] = []
    for path, held in state.items():
        if not isinstance(held, Mapping):
            raise refusal(f"arrays by name under `{path}` of `state`", held, "Pass Haiku's parameters and state.")
        name, _, last = path.rpartition("/~/")
        name, prefix = (name, f"{last}.") if last in _AVERAGES else (path, "")
        arrays = _averaged(path, held, decay_rate) if prefix else held
        items += [Item(name, f"{prefix}{part}", f"{path}/{part}", value) for part, value in arrays.items()]
    return in_order(gathered(items, counted=True))


def _averaged(path: str, held: Mapping[str, Any], decay_rate: float | None) -> dict[str, Any]:
    """Return the average alone, corrected for its start from zero if only the uncorrected one is there."""
    if "average" in held:
        return {"average": held["average"]}
    if decay_rate is None:
        raise BadInput(
            f"Expected `decay_rate` to correct `{path}/hidden`, which has no `average` beside it, got None. Give the "
            "value of the batch norm."
        )
    hidden, counter = np.asarray(held["hidden"]), int(held["counter"])
    started = 1 - decay_rate**counter if counter else 1.0
    return {"average": (hidden / started).astype(hidden.dtype)}


def _library(eps: float | Mapping[str, float] | None, decay_rate: float | None) -> Library:
    def epsilon(name: str, kind: str) -> float:
        given = eps.get(name) if isinstance(eps, Mapping) else eps
        return 1e-5 if given is None else given

    return Library(
        title="Haiku",
        places=lambda name, owner: _places(owner),
        optional=frozenset(),
        epsilon=epsilon,
        momentum="unknown" if decay_rate is None else decay_rate,
        added=lambda owner, parts: _started(parts),
    )


def _started(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parts of averages that Haiku updates, as after so many updates that there is nothing to correct."""
    found: dict[str, np.ndarray] = {}
    for average in _AVERAGES:
        if (value := parts.get(f"{average}.average")) is not None:
            found |= {f"{average}.hidden": value, f"{average}.counter": np.asarray(_LONG_AGO, np.int32)}
    return found


def _places(owner: Owner) -> dict[str, Place]:
    names = _NORM if is_norm(owner.kind) else _PLAIN
    return {name: Place(names.get(name, name), _layout(owner, name, shape)) for name, shape in owner.shapes.items()}


def _layout(owner: Owner, name: str, shape: tuple[int, ...]) -> Layout:
    if owner.kind == "batch":  # over all axes but the features
        return reshaped((*[1] * (len(owner.inputs) - len(shape)), *shape), shape)
    if owner.kind == "conv_transpose" and name == "kernel":
        space = range(len(shape) - 2)
        backwards = tuple(space) if getattr(owner.module, "transpose_kernel", False) else ()
        axes = (*space, len(shape) - 2, len(shape) - 1) if backwards else (*space, len(shape) - 1, len(shape) - 2)
        return permuted(axes, backwards)
    return SAME
