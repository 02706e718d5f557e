"""Which norms a model has, and what stands before and after each."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import jax
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax import Array
from jax.extend.core import ClosedJaxpr

from normlab.errors import BadInput
from normlab.introspect import nnx_hook
from normlab.introspect.applied import Applied, Variables, applied, check_model, partitioned
from normlab.introspect.calls import Module
from normlab.introspect.graph import Crossing, Source, lifted, repeats, stacked, walk
from normlab.introspect.kinds import Library, Recognised, norm_inside_cell
from normlab.introspect.markers import Layer, Markers, inside_cell
from normlab.introspect.modes import Method, told

__all__ = ["Site", "Sites", "Source", "sites"]


@dataclass(frozen=True)
class Site:
    """A norm in a model.

    Attributes:
        path: Path of the module, joined by `/`.
        kind: Name in the registry, such as `batch`; `weight` for a layer whose kernel is normalized.
        library: Whose class the module is; `user` also for a subclass with a call of its own.
        module: The module; of Linen a copy without variables, of NNX the model's own.
        shape: Shape of the input; `()` for a norm inside a recurrent cell of this package, of which more is not known.
        dtype: Dtype of the input.
        features: Feature axes of the input, from 0 on.
        count: Elements that one statistic averages over, per call and device; 0 for a norm without statistics.
        calls: Calls in one pass through the model.
        repeats: Runs of a call, under `scan` and `vmap`; 0 for an unknown number.
        lifted: Transforms around the norm, each once: `remat`, `scan`, `vmap`, `while`, `cond`, `shard_map`.
        before: Nearest producer of the input; `unknown` where calls differ.
        after: Nearest consumer of the output, for each use of it.
        only_use: Whether the norm is the only consumer of its producer's output.
        variables: Names of the norm's variables in the model by role, such as `params/norm/scale` for `scale`; without
            the collection in NNX.
        running: Whether the norm used running statistics in this pass; `None` for a norm that keeps none, or is not
            told.
        given: Names of further arrays that the call gives to the norm: `mask`, `scale`, `bias`, `domain`.
        transposed: Producer of what a transpose before the norm was given, and the order of its axes; `()` for none.
        dropout: Path of a dropout that the input was computed from, with no norm between; `None` for none.
    """

    path: str
    kind: str
    library: Library
    module: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    features: tuple[int, ...]
    count: int
    calls: int
    repeats: int
    lifted: tuple[str, ...]
    before: Source
    after: tuple[Source, ...]
    only_use: bool
    variables: Mapping[str, str]
    running: bool | None = None
    given: tuple[str, ...] = ()
    transposed: tuple[Source, tuple[int, ...]] = (Source("unknown"), ())
    dropout: str | None = None

    def described(self) -> dict[str, object]:
        """Return the attributes as plain values."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain |= {"module": type(self.module).__name__, "dtype": str(self.dtype), "variables": dict(self.variables)}
        plain |= {"transposed": [self.transposed[0]._asdict(), list(self.transposed[1])]}
        plain |= {"before": self.before._asdict(), "after": [one._asdict() for one in self.after]}
        return plain


class Sites(Sequence[Site]):
    """The norms of a model in the order of their first calls.

    Attributes:
        by_path: The norms by path.
        modules: Paths of all modules that were called; of NNX, of norms, linear layers and dropout.
    """

    def __init__(self, sites: Iterable[Site], modules: Iterable[str] = ()) -> None:
        """Keep the norms, and the paths of the model's modules."""
        self.by_path: Mapping[str, Site] = {site.path: site for site in sites}
        self.modules = tuple(modules)

    def __len__(self) -> int:
        return len(self.by_path)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Site]: ...
    def __getitem__(self, index: int | slice) -> Site | Sequence[Site]:
        return tuple(self.by_path.values())[index]

    def __repr__(self) -> str:
        return f"Sites({', '.join(self.by_path)})"

    def table(self) -> str:
        """Return the norms as a table of text, a row each."""
        columns = ("path", "kind", "input", "count", "calls", "before", "after")
        rows = [columns, *(_row(site) for site in self)]
        wide = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        return "\n".join("  ".join(map(str.ljust, row, wide)).rstrip() for row in rows)

    def json(self) -> str:
        """Return the norms as JSON, the same for the same model."""
        return json.dumps([site.described() for site in self], indent=2, sort_keys=True)


def sites(
    model: Module,
    variables: VariableDict | None,
    *args: object,
    train: Mapping[str, object] | bool | None = None,
    method: Method = None,
    rngs: Mapping[str, Array] | None = None,
    recognise: Recognised = (),
    **kwargs: object,
) -> Sites:
    """Find the norms of a model, and what stands before and after each; nothing is computed.

    The model is traced once, over shapes alone.

    Args:
        model: A module of Linen or NNX; it stays as it is.
        variables: Variables of a Linen model; `None` for NNX.
        *args: Arguments of a call of the model; shapes and dtypes are enough, as `jax.ShapeDtypeStruct`.
        train: Keyword arguments of the call that say the mode; or the mode itself, for a model whose signature has such
            an argument. `None` evaluates, unless the other arguments say it.
        method: The method to be called; `None` is `__call__`.
        rngs: Random streams of the call.
        recognise: Further types of norms, each with its kind, as `[(MyNorm, "other")]`.
        **kwargs: Keyword arguments of the call.

    Returns:
        The norms.

    Raises:
        BadInput: If the model is no Flax module, or the variables are of another model.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.relu])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 3)))
        >>> print(sites(model, variables, jnp.ones((2, 3))).table())
        path      kind   input   count  calls  before           after
        layers_1  layer  (2, 4)  4      1      linear layers_0  operation max
    """
    check_model(model)
    markers, options = Markers(recognise), _told(model, method, train, args, kwargs)
    mode = None if isinstance(train, Mapping) else bool(train)
    model_call = applied(model, variables, markers, method=method, train=mode, recognise=recognise)
    traced = _Trace(model_call, args, options, rngs)
    try:
        jaxpr = traced.jaxpr()
    except Exception:
        _check_variables(model, variables, args, options, method)
        raise
    crossings = walk(jaxpr, markers, traced.inputs())
    own = _own(model)
    found = _collected(crossings, traced.shapes(), own)
    return Sites([*found, *map(_inside_cell, _of_cells(markers, own))], markers.modules)


def _told(
    model: Module,
    method: Method,
    train: Mapping[str, object] | bool | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Mapping[str, object]:
    """Return the keyword arguments of the call, those that say the mode among them."""
    if isinstance(train, Mapping):
        return {**kwargs, **train}
    return {**kwargs, **told(model, method, args, kwargs, train)}


@dataclass(frozen=True)
class _Trace:
    """A call of a model to be traced over shapes."""

    call: Applied
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    rngs: Mapping[str, Array] | None

    def jaxpr(self) -> ClosedJaxpr:
        """Return the jaxpr of the output alone: a state that the call changes is no use of a value."""
        arrays, joined, _ = partitioned((self.args, self.kwargs))
        rngs = self.rngs or {name: jax.random.key(0) for name in ("params", "dropout")}

        def output(variables: Variables, arrays: list[Array]) -> object:
            args, kwargs = joined(arrays)
            return self.call.call(variables, args, kwargs, rngs)[0]

        return jax.make_jaxpr(output)(self.call.variables, arrays)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the model's variables by name."""
        return _shapes(self.call.variables)

    def inputs(self) -> list[Source]:
        """Return what each input of the jaxpr is."""
        arrays, _, _ = partitioned((self.args, self.kwargs))
        own = [Source("operation", name, "variable") for name in self.shapes()]
        return [*own, *[Source("input")] * len(arrays)]


def _name(path: Sequence[object]) -> str:
    """Return the name of a variable, without what boxes add to its path."""
    keys = [key for key in path if isinstance(key, jax.tree_util.DictKey | jax.tree_util.SequenceKey)]
    return "/".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in keys)


def _own(model: Module) -> Mapping[str, Module]:
    """Return the modules of an NNX model by path; those of Linen exist in calls alone."""
    return {} if isinstance(model, nn.Module) else nnx_hook.modules(model)


def _collected(
    crossings: Sequence[Crossing], top: Mapping[str, tuple[int, ...]], own: Mapping[str, Module]
) -> list[Site]:
    """Return the norms among the layers of a jaxpr, with all calls of each."""
    calls: dict[str, list[Crossing]] = {}
    for crossing in crossings:
        if crossing.layer.kind is not None:
            calls.setdefault(crossing.layer.path, []).append(crossing)
    return [_site(group, top, own.get(path)) for path, group in calls.items()]


def _site(calls: Sequence[Crossing], top: Mapping[str, tuple[int, ...]], own: Module | None) -> Site:
    layer = calls[0].layer
    assert layer.kind is not None
    before = {call.before.producer() for call in calls}
    after = [one for call in calls for value in call.after for one in value.consumers()]
    transforms, runs = _transforms(calls, top)
    dropouts = [one for call in calls if (one := call.before.reached_from("dropout", ("norm",)))]
    return Site(
        path=layer.path,
        kind=layer.kind.name,
        library=layer.kind.library,
        module=layer.module if own is None else own,
        shape=layer.shape,
        dtype=layer.dtype,
        features=layer.features,
        count=layer.count,
        calls=len(calls),
        repeats=runs,
        lifted=transforms,
        before=before.pop() if len(before) == 1 else Source("unknown", operation="several"),
        after=tuple(after),
        only_use=all(len(list(call.before.root().consumers())) == 1 for call in calls),
        variables=layer.variables,
        running=layer.running,
        given=tuple(sorted({name for call in calls for name in call.layer.given})),
        transposed=calls[0].before.transposed(),
        dropout=dropouts[0].path if dropouts else None,
    )


def _of_cells(markers: Markers, own: Mapping[str, Module]) -> list[Layer]:
    """Return the norms inside recurrent cells; in NNX, where they are not called, by the cells."""
    layers = list(markers.inside.values())
    for path, cell in own.items():
        norm = norm_inside_cell(cell)
        if norm is None:
            continue
        for name in (f"norm_{one}" for one in norm.paths):
            if module := getattr(cell, name, None):
                mode = getattr(cell, "use_running_average", None)
                layers.append(inside_cell(f"{path}/{name}".lstrip("/"), module, norm, mode))
    return layers


def _inside_cell(layer: Layer) -> Site:
    """Return a norm inside a recurrent cell, which runs it in a loop that no module sees."""
    assert layer.kind is not None
    return Site(
        path=layer.path,
        kind=layer.kind.name,
        library=layer.kind.library,
        module=layer.module,
        shape=(),
        dtype=layer.dtype,
        features=(),
        count=0,
        calls=1,
        repeats=0,
        lifted=("scan",),
        before=Source("unknown", operation="cell"),
        after=(Source("unknown", operation="cell"),),
        only_use=False,
        variables=layer.variables,
        running=layer.running,
    )


def _transforms(calls: Sequence[Crossing], top: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], int]:
    """Return the transforms around the calls of a norm, and the runs of the first call."""
    names = dict.fromkeys(name for call in calls for name in lifted(call))
    first, runs = calls[0], repeats(calls[0])
    copies = max(stacked(first), _copies(first, top) // max(1, _stacking(first)))
    vmapped = max(*map(stacked, calls), copies) > 1
    return (*names, *(["vmap"] if vmapped else [])), runs * max(1, copies)


def _copies(call: Crossing, top: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many copies of a norm's variables the model has."""
    shapes = call.layer.shapes
    pairs = [(top[name], shapes[role]) for role, name in call.layer.variables.items() if name in top]
    return max((math.prod(whole) // max(1, math.prod(part)) for whole, part in pairs), default=1)


def _stacking(call: Crossing) -> int:
    """Return the runs of the scans around a call, each of which may have a copy of the variables."""
    return math.prod(runs for name, runs in call.around if name == "scan")


def _row(site: Site) -> tuple[str, ...]:
    after = ", ".join(dict.fromkeys(_short(one) for one in site.after)) or "nothing"
    return (
        site.path or "(model)",
        site.kind,
        str(site.shape),
        str(site.count),
        str(site.calls),
        _short(site.before),
        after,
    )


def _short(source: Source) -> str:
    return f"{source.kind} {source.path or source.operation}".rstrip()


def _check_variables(
    model: Module,
    variables: VariableDict | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    method: Method,
) -> None:
    """Refuse variables whose shapes are not those that the model makes for these arguments.

    Raises:
        BadInput: If a variable is missing or has another shape.
    """
    if not isinstance(model, nn.Module) or variables is None:
        return
    arrays, joined, _ = partitioned((args, kwargs))

    def made(arrays: list[Array]) -> object:
        args, kwargs = joined(arrays)
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
        return model.init(rngs, *args, method=method, **kwargs)

    try:
        expected = _shapes(jax.eval_shape(made, arrays))
    except Exception:
        return  # the arguments are wrong, not the variables
    given = _shapes(variables)
    for name, shape in expected.items():
        if name in given and given[name] != shape:
            raise BadInput(
                f"Expected `{name}` to have shape {shape}, got {given[name]}. Pass the variables of this model, for "
                "inputs of this shape."
            )
        if name not in given:
            raise BadInput(
                f"Expected variables with `{name}` of shape {shape}, got none of this name. Pass the variables of "
                "this model."
            )


def _shapes(tree: object) -> dict[str, tuple[int, ...]]:
    return {_name(path): tuple(np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
