"""Which module each variable of a Flax model belongs to, by the type of the module and never by a name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import jax
from flax import linen as nn
from flax import nnx
from flax.linen.module import InterceptorContext
from flax.typing import PathParts, VariableDict

from normlab import linen as our_linen
from normlab import nnx as our_nnx
from normlab.errors import BadInput
from normlab.introspect.applied import partitioned
from normlab.introspect.calls import Module
from normlab.introspect.kinds import norm_kind
from normlab.introspect.modes import modes
from normlab.introspect.replaced import is_replaced

__all__ = ["Owner", "Path", "is_boxed", "linen_owners", "nnx_owners", "path_of"]

Path: TypeAlias = PathParts
"""Names of a module and those around it, the outermost first."""

_LINEN_CELLS = our_linen.SimpleCell | our_linen.LSTMCell | our_linen.GRUCell
_NNX_CELLS = our_nnx.SimpleCell | our_nnx.LSTMCell | our_nnx.GRUCell
_EMBEDDINGS = nn.Embed | nnx.Embed


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


def linen_owners(model: nn.Module, variables: VariableDict, args: tuple[object, ...]) -> dict[Path, Owner]:
    """Return the owners of the variables of a Linen model by the path of the module; only shapes are computed.

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
    for training in (False, True):
        for trace in (_traced, _unjitted):  # a module in `nn.jit` that was called before is not called again
            for path, owner in trace(model, variables, args, modes(model).of(training)):
                found[path] = _joined(found.get(path), owner)
            if wanted <= found.keys():
                return found
    missing = min("/".join(map(str, path)) for path in wanted - found.keys())
    raise BadInput(
        f"Expected a call that runs every module with parameters, got none of `{missing}`. Give the inputs of such "
        "a call."
    )


def _traced(
    model: nn.Module, variables: VariableDict, args: tuple[object, ...], keywords: Mapping[str, object]
) -> list[tuple[Path, Owner]]:
    """Return the modules of a call with their paths."""
    found: list[tuple[Path, Owner]] = []
    arrays, joined, _ = partitioned(args)

    def intercept(
        call: Callable[..., object],
        given: tuple[object, ...],
        options: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        if not is_replaced(context.module.path):
            found.extend(_owned(context.module.path, context.module))
        return call(*given, **options)

    def apply(variables: VariableDict, arrays: list[jax.Array]) -> object:
        options = {"mutable": True, "rngs": {"params": jax.random.key(0)}, **keywords}
        return model.apply(variables, *joined(arrays), **options)

    with nn.intercept_methods(intercept):
        jax.eval_shape(apply, variables, arrays)
    return found


def _unjitted(
    model: nn.Module, variables: VariableDict, args: tuple[object, ...], keywords: Mapping[str, object]
) -> list[tuple[Path, Owner]]:
    with jax.disable_jit():
        return _traced(model, variables, args, keywords)


def _owned(path: Path, module: Module) -> Iterator[tuple[Path, Owner]]:
    """Yield a module, and the norms of a recurrent cell."""
    kind = norm_kind(module)
    frozen = kind is not None and getattr(module, "frozen", False) is True
    yield path, Owner(kind.name if kind else "", frozen, isinstance(module, _EMBEDDINGS))
    if isinstance(module, _LINEN_CELLS | _NNX_CELLS):
        norm = module.resolved if isinstance(module, _LINEN_CELLS) else module.norm
        for place in norm.paths:
            yield (*path, f"norm_{place}"), Owner(norm.kind)


def _joined(known: Owner | None, new: Owner) -> Owner:
    """Join the owners at one path: a module that shares the scope of a norm is the norm, and frozen stays frozen."""
    if known is None:
        return new
    return Owner(new.kind or known.kind, new.frozen or known.frozen, new.embeds or known.embeds)


def nnx_owners(model: nnx.Module) -> dict[Path, Owner]:
    """Return the owners of the variables of an NNX model by the path of the module."""
    found: dict[Path, Owner] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            for at, owner in _owned(path, node):
                found[at] = _joined(found.get(at), owner)
    return found


def is_boxed(leaf: object) -> bool:
    """Return whether a variable carries metadata, as `nn.with_partitioning` gives it."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def path_of(keys: tuple[object, ...]) -> Path:
    """Return the names in a path of JAX through mappings."""
    return tuple(cast(str, getattr(key, "key")) for key in keys if hasattr(key, "key"))  # noqa: B009
