"""Which module each variable of a Flax model belongs to, by the type of the module and never by a name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import jax
from flax import linen as nn
from flax import nnx
from flax.linen.module import InterceptorContext

from normlab import linen as our_linen
from normlab import nnx as our_nnx
from normlab.catalogue import ROWS
from normlab.errors import BadInput
from normlab.introspect.signature import signature_of

__all__ = ["Owner", "Path", "is_boxed", "kind_of", "linen_owners", "nnx_owners", "path_of"]

Path = tuple[str | int, ...]
"""Names of a module and those around it, the outermost first."""

_CELLS = (
    our_linen.SimpleCell | our_linen.LSTMCell | our_linen.GRUCell | our_nnx.SimpleCell | our_nnx.LSTMCell
    | our_nnx.GRUCell
)  # fmt: skip
_EMBEDDINGS = nn.Embed | nnx.Embed
_CLASSES = {
    "BatchNorm": "batch",
    "LayerNorm": "layer",
    "RMSNorm": "rms",
    "GroupNorm": "group",
    "InstanceNorm": "instance",
}
_OF_KERNELS = ("WeightNorm", "SpectralNorm")
_OURS_OF_KERNELS = ("Reparametrized", "StandardizedConv", "StandardizedDense", "StandardizedLinear")


@dataclass(frozen=True)
class Owner:
    """The module that a variable belongs to.

    Attributes:
        kind: Kind of norm by its name in `normlab.norms`, `weight` for a norm of kernels; empty for other modules.
        frozen: Whether the module is a frozen norm.
        embeds: Whether the module is an embedding.
    """

    kind: str = ""
    frozen: bool = False
    embeds: bool = False

    @property
    def is_norm(self) -> bool:
        """True for a norm of activations."""
        return self.kind not in ("", "weight")


def kind_of(module: object) -> str:
    """Return the kind of a norm, Flax's or ours, by its type or that of a base; empty where it is none."""
    for base in type(module).__mro__:
        if names := _KINDS.get(base):
            return next((name for name, fixed in names.items() if _matches(module, fixed)), next(iter(names)))
    return ""


def _matches(module: object, fixed: Mapping[str, object]) -> bool:
    """Return whether a module has the options that make its class a kind of norm."""
    return all(getattr(module, name, None) == value for name, value in fixed.items())


def _kinds() -> dict[type, dict[str, Mapping[str, object]]]:
    """Return the kinds of norms of each class, each with the options that make the class that kind."""
    kinds: dict[type, dict[str, Mapping[str, object]]] = {}
    for library in (nn, nnx):
        kinds |= {getattr(library, name): {kind: {}} for name, kind in _CLASSES.items()}
        kinds |= {getattr(library, name): {"weight": {}} for name in _OF_KERNELS}
    for library in (our_linen, our_nnx):
        kinds |= {kind: {"weight": {}} for name in _OURS_OF_KERNELS if (kind := getattr(library, name, None))}
        for row in ROWS:
            if row.module and row.name != "none":
                kinds.setdefault(getattr(library, row.module), {})[row.name] = dict(row.fixed)
    return kinds


_KINDS = _kinds()


def linen_owners(model: nn.Module, variables: Mapping[str, object], args: tuple[object, ...]) -> dict[Path, Owner]:
    """Return the owners of variables of a Linen model by the path of the module; only shapes are computed.

    The model is called as in evaluation, then, for modules that this call leaves out, as in training.

    Args:
        model: The model.
        variables: As from `model.init`.
        args: Inputs of a call.

    Raises:
        BadInput: If no call runs a module that has parameters.
    """
    leaves = jax.tree_util.tree_leaves_with_path(variables.get("params", {}), is_leaf=is_boxed)
    wanted = {path_of(path)[:-1] for path, _ in leaves}
    found: dict[Path, Owner] = {}
    for keywords in (_keywords(model, training=False), _keywords(model, training=True)):
        for trace in (_traced, _unjitted):  # a module in `nn.jit` that was called before is not called again
            for path, owner in trace(model, variables, args, keywords):
                found[path] = _merged(found.get(path), owner)
            if wanted <= found.keys():
                return found
    missing = min("/".join(map(str, path)) for path in wanted - found.keys())
    raise BadInput(
        f"Expected a call that runs every module with parameters, got none of `{missing}`. Give the inputs of such "
        "a call."
    )


_TRAINS = {"train": True, "training": True, "is_training": True, "is_train": True}
_EVALUATES = {"deterministic": True, "eval": True, "use_running_average": True}


def _keywords(model: nn.Module, *, training: bool) -> dict[str, bool]:
    """Return the arguments of a call that tell a model whether it is trained, from its signature."""
    taken = set(signature_of(model.__call__).parameters)
    if getattr(model, "use_running_average", None) is not None:  # given once, in the module
        taken.discard("use_running_average")
    return {name: training for name in _TRAINS if name in taken} | {
        name: not training for name in _EVALUATES if name in taken
    }


def _traced(
    model: nn.Module, variables: Mapping[str, object], args: tuple[object, ...], keywords: Mapping[str, bool]
) -> list[tuple[Path, Owner]]:
    """Return the modules of a call with their paths."""
    found: list[tuple[Path, Owner]] = []

    def intercept(
        call: Callable[..., object],
        given: tuple[object, ...],
        options: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        module = context.module
        found.extend(_owned(module.path, module))
        return call(*given, **options)

    leaves, tree = jax.tree.flatten(args)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}  # others may be flags of the call

    def apply(variables: Mapping[str, object], arrays: Mapping[int, object]) -> object:
        inputs = jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return model.apply(variables, *inputs, mutable=True, rngs={"params": jax.random.key(0)}, **keywords)

    with nn.intercept_methods(intercept):
        jax.eval_shape(apply, variables, arrays)
    return found


def _unjitted(
    model: nn.Module, variables: Mapping[str, object], args: tuple[object, ...], keywords: Mapping[str, bool]
) -> list[tuple[Path, Owner]]:
    with jax.disable_jit():
        return _traced(model, variables, args, keywords)


def _owned(path: Path, module: object) -> Iterator[tuple[Path, Owner]]:
    """Yield a module, and the norms of a recurrent cell."""
    frozen = bool(getattr(module, "frozen", False)) if (kind := kind_of(module)) else False
    yield path, Owner(kind, frozen, isinstance(module, _EMBEDDINGS))
    if isinstance(module, _CELLS):
        norm = module.resolved if isinstance(module, nn.Module) else module.norm
        for place in norm.paths:
            yield (*path, f"norm_{place}"), Owner(norm.kind)


def _merged(known: Owner | None, new: Owner) -> Owner:
    """Join the owners at one path: a module that shares the scope of a norm is the norm, and frozen stays frozen."""
    if known is None:
        return new
    return Owner(new.kind or known.kind, new.frozen or known.frozen, new.embeds or known.embeds)


def nnx_owners(model: nnx.Module) -> dict[Path, Owner]:
    """Return the owners of variables of an NNX model by the path of the module."""
    found: dict[Path, Owner] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            for at, owner in _owned(path, node):
                found[at] = _merged(found.get(at), owner)
    return found


def is_boxed(leaf: object) -> bool:
    """Return whether a variable carries metadata, as `nn.with_partitioning` gives it."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def path_of(keys: tuple[object, ...]) -> Path:
    """Return the names in a path of JAX through mappings."""
    return tuple(cast(str, getattr(key, "key")) for key in keys if hasattr(key, "key"))  # noqa: B009
