"""Which parameters of a model are those of norms: labels and masks for optimizers, by the types of modules."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import jax
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array

from normlab.expect import refusal
from normlab.introspect.applied import check_model
from normlab.introspect.owners import Owner, Path, is_boxed, linen_owners, nnx_owners, path_of
from normlab.nnx import FrozenParam

__all__ = ["decay_mask", "labels", "nnx_filter", "norm_parameters"]

Tree = Mapping[str, object] | nnx.State
"""Parameters, or a value for each of them: in Linen as in `variables["params"]`, in NNX a state of `nnx.Param`."""

Said = TypeVar("Said", str, bool)


def labels(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    norm: str = "norm",
    bias: str = "bias",
    other: str = "other",
    frozen: str = "frozen",
) -> Tree:
    """Return a label for each parameter, for `optax.multi_transform`.

    Modules are told apart by type, not by name: the parameters of a norm are `norm`, whatever its attribute is called.

    Args:
        model: A model of Linen or NNX.
        variables: Of a Linen model, as from `model.init`; `None` for NNX.
        *args: Inputs of a call of a Linen model; only shapes are computed.
        norm: Label of the parameters of norms.
        bias: Label of the biases of other modules.
        other: Label of the remaining parameters, such as kernels, embeddings and the gains of weight norm.
        frozen: Label of the parameters of frozen norms, for `optax.set_to_zero()`.

    Returns:
        The tree of `variables["params"]`, or of `nnx.as_pure(nnx.state(model, nnx.Param))`, with labels for arrays.

    Raises:
        BadInput: If the model is no module, or the call leaves out modules that have parameters.

    Example:
        >>> import optax
        >>> model, x = nn.Sequential([nn.Dense(2), nn.LayerNorm()]), jax.numpy.ones((1, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> found = labels(model, variables, x)
        >>> found["layers_0"], found["layers_1"]
        ({'bias': 'bias', 'kernel': 'other'}, {'bias': 'norm', 'scale': 'norm'})
        >>> rates = {"norm": optax.sgd(0.01), "bias": optax.sgd(0.1), "other": optax.sgd(0.1)}
        >>> optimizer = optax.multi_transform({**rates, "frozen": optax.set_to_zero()}, found)
    """

    def label(owner: Owner, role: str) -> str:
        if owner.is_norm:
            return frozen if owner.frozen else norm
        return bias if role == "bias" else other

    return _said(model, variables, args, label)


def decay_mask(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    biases: bool = False,
    norms: bool = False,
    embeddings: bool = True,
) -> Tree:
    """Return a mask that is True for parameters that weight decay shrinks.

    Args:
        model: A model of Linen or NNX.
        variables: Of a Linen model, as from `model.init`; `None` for NNX.
        *args: Inputs of a call of a Linen model; only shapes are computed.
        biases: Whether the biases of modules that are no norms decay.
        norms: Whether the parameters of norms decay; those of frozen norms never do.
        embeddings: Whether the tables of embeddings decay.

    Returns:
        The tree of `variables["params"]`, or of `nnx.as_pure(nnx.state(model, nnx.Param))`, with bools for arrays.

    Raises:
        BadInput: If the model is no module, or the call leaves out modules that have parameters.

    Example:
        >>> import optax
        >>> model, x = nn.Sequential([nn.Dense(2), nn.LayerNorm()]), jax.numpy.ones((1, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> decay_mask(model, variables, x)["layers_0"]
        {'bias': False, 'kernel': True}
        >>> optimizer = optax.adamw(1e-3, mask=decay_mask(model, variables, x))
    """

    def decays(owner: Owner, role: str) -> bool:
        if owner.is_norm:
            return norms and not owner.frozen
        if owner.embeds:
            return embeddings
        return biases or role != "bias"

    return _said(model, variables, args, decays)


def norm_parameters(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    roles: Collection[str] = ("scale", "bias"),
) -> dict[str, Array]:
    """Return the parameters of norms by their paths.

    Args:
        model: A model of Linen or NNX.
        variables: Of a Linen model, as from `model.init`; `None` for NNX.
        *args: Inputs of a call of a Linen model; only shapes are computed.
        roles: Names of parameters within a norm.

    Returns:
        Arrays by paths such as `block_0/norm/scale`; in NNX also those of frozen norms.

    Raises:
        BadInput: If the model is no module, or the call leaves out modules that have parameters.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.RMSNorm(2, rngs=nnx.Rngs(0)))
        >>> norm_parameters(model)
        {'layers/1/scale': Array([1., 1.], dtype=float32)}
    """
    owners, leaves = _owners(model, variables, args), _leaves(model, variables)
    return {
        "/".join(map(str, path)): leaf
        for path, leaf in leaves.items()
        if owners.get(path[:-1], Owner()).is_norm and _role(path) in roles
    }


@dataclass(frozen=True)
class _OfNorms:
    """A filter of NNX, equal to others for the same variables, so that nothing is compiled again."""

    paths: frozenset[Path]

    def __call__(self, path: tuple[object, ...], value: object) -> bool:
        return path in self.paths


def nnx_filter(
    model: nnx.Module, *, roles: Collection[str] = ("scale", "bias"), kinds: Collection[str] | None = None
) -> Callable[[tuple[object, ...], object], bool]:
    """Return a filter of NNX for the variables of the norms of a model.

    Args:
        model: The model; its paths are those that the filter accepts.
        roles: Names of variables within a norm, such as `scale`, `bias`, `mean` and `var`.
        kinds: Kinds of norms, by their names in `normlab.norms`; `weight` is weight norm; `None` is all but `weight`.

    Returns:
        `(path, variable) -> bool`, for `nnx.state`, `nnx.split`, `nnx.DiffState` and `nnx.Optimizer(..., wrt=...)`.

    Raises:
        BadInput: If the model is no module of NNX.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.RMSNorm(2, rngs=nnx.Rngs(0)))
        >>> [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx_filter(model)))]
        [('layers', 1, 'scale')]
    """
    if not isinstance(model, nnx.Module):
        raise refusal("a module of NNX", model, "Linen models have `norm_parameters` and `labels`.")
    owners = nnx_owners(model)
    chosen = {path for path, owner in owners.items() if (owner.kind in kinds if kinds is not None else owner.is_norm)}
    return _OfNorms(
        frozenset(
            path
            for path, leaf in nnx.iter_graph(model)
            if isinstance(leaf, nnx.Variable) and path[:-1] in chosen and path[-1] in roles
        )
    )


def _owners(
    model: nn.Module | nnx.Module, variables: VariableDict | None, args: tuple[object, ...]
) -> dict[Path, Owner]:
    check_model(model)
    if isinstance(model, nnx.Module):
        return nnx_owners(model)
    if variables is None:
        raise refusal("the variables of a Linen model", variables, "Give those of `model.init`, then the inputs.")
    return linen_owners(model, variables, args)


def _said(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None,
    args: tuple[object, ...],
    say: Callable[[Owner, str], Said],
) -> Tree:
    """Return what is said of each parameter, given its owner and its name within the owner."""
    owners = _owners(model, variables, args)

    def at(keys: tuple[object, ...], leaf: object) -> object:
        path = path_of(keys)
        said = say(owners.get(path[:-1], Owner()), _role(path))
        return leaf.replace_boxed(said) if isinstance(leaf, nn.meta.AxisMetadata) else said

    if isinstance(model, nnx.Module):
        tree: object = nnx.as_pure(nnx.state(model, nnx.Param))  # `nnx.Optimizer` updates these
    else:
        tree = (variables or {}).get("params", {})
    return cast(Tree, jax.tree_util.tree_map_with_path(at, tree, is_leaf=is_boxed))


def _leaves(model: nn.Module | nnx.Module, variables: VariableDict | None) -> dict[Path, Array]:
    """Return the parameters of a model, without metadata, by their paths."""
    if isinstance(model, nnx.Module):
        kinds = (nnx.Param, FrozenParam)
        return {path: leaf[...] for path, leaf in nnx.iter_graph(model) if isinstance(leaf, kinds)}
    found = jax.tree_util.tree_leaves_with_path((variables or {}).get("params", {}), is_leaf=is_boxed)
    return {path_of(keys): nn.unbox(leaf) for keys, leaf in found}


def _role(path: Path) -> str:
    """Return the name of a parameter within its module, which Flax's weight norm writes after a path."""
    return str(path[-1]).rpartition("/")[2]
