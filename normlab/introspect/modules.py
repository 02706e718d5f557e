"""List the modules with arrays of their own that a call of a Flax model reaches, in the order of the calls."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import jax
from flax import linen as nn
from flax import nnx
from flax.linen.module import InterceptorContext
from flax.traverse_util import flatten_dict
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from normlab import linen as our_linen
from normlab import nnx as our_nnx
from normlab.expect import refusal
from normlab.introspect.flattening import Flattening, flattenings

__all__ = ["Kind", "Owner", "is_norm", "owners"]

Norm = Literal["batch", "batch_renorm", "layer", "rms", "group", "instance"]
Kind = Literal["conv", "conv_transpose", "dense", "embedding", "other"] | Norm
Shapes = dict[str, tuple[int, ...]]
Note = Callable[["Owner"], None]

COLLECTIONS = ("params", "batch_stats")
"""Collections of Linen whose arrays are listed."""

_TYPES: tuple[tuple[tuple[type, ...], Kind], ...] = (
    ((our_linen.BatchRenorm, our_nnx.BatchRenorm), "batch_renorm"),
    ((nn.BatchNorm, nnx.BatchNorm, our_linen.BatchNorm, our_nnx.BatchNorm), "batch"),
    ((nn.LayerNorm, nnx.LayerNorm, our_linen.LayerNorm, our_nnx.LayerNorm), "layer"),
    ((nn.RMSNorm, nnx.RMSNorm, our_linen.RMSNorm, our_nnx.RMSNorm), "rms"),
    ((nn.GroupNorm, nnx.GroupNorm, our_linen.GroupNorm, our_nnx.GroupNorm), "group"),
    ((nn.InstanceNorm, nnx.InstanceNorm, our_linen.InstanceNorm, our_nnx.InstanceNorm), "instance"),
    ((nn.ConvTranspose, nnx.ConvTranspose), "conv_transpose"),
    ((nn.DenseGeneral, nn.Dense, nnx.LinearGeneral, nnx.Linear), "dense"),
    ((nn.Conv, nnx.Conv), "conv"),
    ((nn.Embed, nnx.Embed), "embedding"),
)


@dataclass(frozen=True)
class Owner:
    """A module with arrays of its own.

    Attributes:
        path: Names of the module and those around it, joined by `/`; empty for the model itself.
        kind: Kind of layer, by type; a module with a kernel and at most a bias is a dense layer or a convolution.
        module: The module. That of Linen is bound to a trace that has ended: only its fields can be read.
        shapes: Shapes of the arrays by their names in the module.
        inputs: Shape of the first input of the first call; empty if there is none.
        flattening: Axes that the input had before it was flattened; `None` if it was not.
    """

    path: str
    kind: Kind
    module: nn.Module | nnx.Module
    shapes: Shapes
    inputs: tuple[int, ...] = ()
    flattening: Flattening | None = None


def is_norm(kind: str) -> bool:
    """Return whether a kind of module is a norm."""
    return kind in get_args(Norm)


def owners(
    model: nn.Module | nnx.Module, variables: Mapping[str, object] | None, *args: object, **kwargs: object
) -> list[Owner]:
    """List the modules with arrays of their own that a call reaches, in the order of the calls; nothing is computed.

    Args:
        model: A model of Linen or NNX.
        variables: As from `model.init`; `None` for NNX.
        *args: Arguments of the call; shapes do.
        **kwargs: Keyword arguments of the call.

    Raises:
        BadInput: If the model is no Flax module, or an array is not the module's own, as inside `nn.scan`.

    Example:
        >>> model, x = nn.Sequential([nn.Dense(3), nn.LayerNorm()]), jax.numpy.ones((1, 2))
        >>> [(owner.path, owner.kind) for owner in owners(model, model.init(jax.random.key(0), x), x)]
        [('layers_0', 'dense'), ('layers_1', 'layer')]
    """
    if isinstance(model, nnx.Module):
        return _with_flattenings(lambda note: _nnx_call(model, note, args, kwargs))
    if not isinstance(model, nn.Module):
        raise refusal("`model` to be a Flax module", model, "Pass the module, and its variables beside it.")
    variables = {} if variables is None else variables
    found = _with_flattenings(lambda note: _linen_call(model, variables, note, args, kwargs))
    if not set(_own_shapes(variables)) <= {owner.path for owner in found}:
        with jax.disable_jit():  # modules that `nn.jit` has traced before are not called again
            found = _with_flattenings(lambda note: _linen_call(model, variables, note, args, kwargs))
    return found


def _with_flattenings(trace: Callable[[Note], Any]) -> list[Owner]:
    """Return the owners that a trace notes, each once, with the axes of their inputs before flattening."""
    found: dict[str, Owner] = {}
    jaxpr = trace(lambda owner: found.setdefault(owner.path, owner) and None)
    before = flattenings(jaxpr.jaxpr)
    return [replace(owner, flattening=before.get(path)) for path, owner in found.items()]


def _linen_call(
    model: nn.Module, variables: Mapping[str, object], note: Note, args: tuple[object, ...], kwargs: dict[str, object]
) -> Any:
    top = _own_shapes(variables)

    def intercept(call: Callable[..., Any], given: Any, options: Any, context: InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        if context.method_name == "setup" or path not in top:
            return call(*given, **options)
        _check_shapes(path, top[path], _own_shapes(context.module.variables).get("", {}))
        note(Owner(path, _kind(context.module, top[path]), context.module, top[path], _shape(given)))
        return call(*_marked(path, given), **options)

    def apply(variables: Mapping[str, Any], given: tuple[object, ...], options: dict[str, Any]) -> object:
        with nn.intercept_methods(intercept):
            return model.apply(variables, *given, **options, mutable=True)

    return _jaxpr(lambda given, options, held: apply(held, given, options), args, kwargs, variables)


def _nnx_call(model: nnx.Module, note: Note, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    clone = nnx.clone(model)
    for path, module in nnx.iter_modules(clone):
        shapes = {name: tuple(value.shape) for name, value in own_variables(module)}
        if shapes:
            owner = Owner("/".join(map(str, path)), _kind(module, shapes), module, shapes)
            module.__class__ = _noting(type(module), owner, note)
    graph, state = nnx.split(clone)

    def call(given: tuple[object, ...], options: dict[str, object], state: nnx.State) -> object:
        return cast(Callable[..., object], nnx.merge(graph, state))(*given, **options)

    return _jaxpr(call, args, kwargs, state)


def own_variables(module: nnx.Module) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Yield the parameters and statistics that an NNX module holds itself, with their names."""
    for name, value in vars(module).items():
        if isinstance(value, nnx.Param | nnx.BatchStat | our_nnx.FrozenParam):
            yield name, value


def _noting(kind: type[nnx.Module], owner: Owner, note: Note) -> type[nnx.Module]:
    """Return a subclass of a module's class whose calls are noted."""

    def call(self: nnx.Module, *args: object, **kwargs: object) -> object:
        note(replace(owner, inputs=_shape(args)))
        return kind.__call__(self, *_marked(owner.path, args), **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})


def _jaxpr(call: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object], held: object) -> Any:
    """Trace a call, with arrays and shapes among its arguments as inputs and everything else as it is."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [leaf for leaf in leaves if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def run(arrays: list[Array], held: object) -> object:
        waiting = iter(arrays)
        given = [next(waiting) if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else leaf for leaf in leaves]
        call(*jax.tree.unflatten(tree, given), held)
        return ()

    return jax.make_jaxpr(run)(traced, held)


def _marked(path: str, args: tuple[object, ...]) -> tuple[object, ...]:
    """Name the first argument in the trace."""
    return (checkpoint_name(args[0], path), *args[1:]) if args and isinstance(args[0], Array) else args


def _shape(args: tuple[object, ...]) -> tuple[int, ...]:
    return tuple(getattr(args[0], "shape", ())) if args else ()


def _own_shapes(variables: Mapping[str, object]) -> dict[str, Shapes]:
    """Return the shapes of arrays by the path of the module that owns them, then by name."""
    shapes: dict[str, Shapes] = {}
    for collection in COLLECTIONS:
        flat: dict[tuple[str, ...], Any] = flatten_dict(nn.meta.unbox(variables.get(collection, {})))
        for (*owner, name), leaf in flat.items():
            shapes.setdefault("/".join(owner), {})[name] = tuple(leaf.shape)
    return shapes


def _check_shapes(path: str, top: Shapes, inside: Shapes) -> None:
    for name, shape in top.items():
        if inside.get(name, shape) != shape:
            raise refusal(
                f"`{path}/{name}` to have the shape {inside[name]} in the variables, as the module has it",
                shape,
                "Lifted transformations such as `nn.scan` stack arrays: convert the layers one at a time.",
            )


def _kind(module: nn.Module | nnx.Module, shapes: Shapes) -> Kind:
    for types, kind in _TYPES:
        if isinstance(module, types):
            return kind
    if "kernel" in shapes and set(shapes) <= {"kernel", "bias"}:
        return "dense" if len(shapes["kernel"]) == 2 else "conv"
    return "other"
