"""Convert the norms of an NNX model, in a clone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Key

from normlab.introspect.kinds import norm_kind
from normlab.tools.conversion.report import Converted, Path, Report, Row
from normlab.tools.conversion.targets import FLAX, SETS, Target, check_groups, kept_options
from normlab.tools.conversion.values import Before, Values, advice, new_values
from normlab.tools.sites import Site, Sites, Source

__all__ = ["convert_nnx", "nnx_sites"]


def nnx_sites(model: nnx.Module) -> Sites:
    """Return the norms of an NNX model without a call; shapes and neighbours are not known."""
    modules = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
    return Sites(
        [site for path, node in modules if (site := _site(path, node))], [_joined(path) for path, _ in modules]
    )


def _site(path: Path, module: nnx.Module) -> Site | None:
    kind = norm_kind(module)
    if kind is None:
        return None
    names = {name: _joined((*path, name)) for name in _variables(module)}
    return Site(
        path=_joined(path),
        kind=kind.name,
        library=kind.library,
        module=module,
        shape=(),
        dtype=np.dtype("float32"),
        features=(),
        count=0,
        calls=0,
        repeats=0,
        lifted=(),
        before=Source("unknown"),
        after=(),
        only_use=False,
        variables=names,
    )


def _joined(path: Path) -> str:
    return "/".join(map(str, path))


def _variables(module: nnx.Module) -> dict[str, nnx.Variable[jax.Array]]:
    return {name: value for name, value in vars(module).items() if isinstance(value, nnx.Variable)}


class Change(NamedTuple):
    """A norm that another takes the place of."""

    path: Path
    site: Site
    target: Target
    norm: nnx.Module
    values: Values
    dropped: tuple[str, ...]
    parameters: frozenset[str]


def convert_nnx(
    model: nnx.Module, found: Sites, chosen: Mapping[str, Target], keep: Collection[str]
) -> Converted[nnx.Module]:
    """Return a clone of an NNX model with other norms; a norm that is shared stays shared.

    Args:
        model: The model.
        found: Its norms, as from `nnx_sites`.
        chosen: The norms that take their places, by path.
        keep: What is kept; see `normlab.tools.convert`.
    """
    twin = nnx.clone(model)
    mode = _mode(twin)
    changes: list[Change] = []
    replaced: dict[int, nnx.Module] = {}
    for path, node in list(nnx.iter_graph(twin)):
        target = chosen.get(_joined(path)) if isinstance(node, nnx.Module) else None
        if target is not None:
            change = _change(path, found.by_path[_joined(path)], node, target, keep, mode)
            changes.append(change)
            replaced[id(node)] = change.norm
    names = frozenset(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return Converted(cast(nnx.Module, _with(twin, replaced)), None, _report(changes, names))


def _mode(model: nnx.Module) -> bool | None:
    """Return whether a model evaluates, as its modules say; `None` where they say nothing or differ."""
    said = {
        value
        for _, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module)
        for name in ("use_running_average", "deterministic")
        if isinstance(value := getattr(node, name, None), bool)
    }
    return said.pop() if len(said) == 1 else None


def _change(
    path: Path, site: Site, old: nnx.Module, target: Target, keep: Collection[str], mode: bool | None
) -> Change:
    """Make the new norm for a place, with its variables."""
    features = _features(old)
    norm = _made(site, target, keep, features)
    if "use_running_average" in vars(norm) and "use_running_average" not in vars(old) and mode is not None:
        setattr(norm, "use_running_average", mode)  # noqa: B010  (not of all modules)
    variables = _variables(old)
    own = {name: variable[...] for name, variable in variables.items()}
    starts = {name: variable[...] for name, variable in _variables(norm).items()}
    stacked = (own[n].shape[: own[n].ndim - x.ndim] for n, x in starts.items() if n in own and site.kind not in SETS)
    extra = next(stacked, ())
    starts = {name: jnp.broadcast_to(x, (*extra, *x.shape)) for name, x in starts.items()}
    before = Before(site.kind, getattr(old, "epsilon", 0.0), own)
    values = new_values(before, target.norm.name, getattr(norm, "epsilon", 0.0), starts, keep)
    _fill(norm, values, variables)
    dropped = tuple(name for name in own if name not in values.values and name not in values.sources.values())
    return Change(path, site, target, norm, values, dropped, _parameters(variables, norm))


def _features(module: nnx.Module) -> int | tuple[int, ...]:
    """Return the number of features of a norm, which Flax's group norm does not keep."""
    if hasattr(module, "num_features"):
        return getattr(module, "num_features")  # noqa: B009  (not of all modules)
    return getattr(module, "num_groups") * getattr(module, "group_size")  # noqa: B009


def _made(site: Site, target: Target, keep: Collection[str], features: int | tuple[int, ...]) -> nnx.Module:
    options = kept_options(site, target, keep)
    if target.norm.name == "group":
        wide = features if isinstance(features, int) else prod(features)
        check_groups(site.path, {**options, **target.norm.options}, wide)
    if target.library == "flax":
        kind: Any = getattr(nnx, FLAX[target.norm.name])
        return kind(features, rngs=nnx.Rngs(0), **options, **target.norm.options)
    return target.norm.nnx(features, rngs=nnx.Rngs(0), **options)


def _fill(norm: nnx.Module, values: Values, old: Mapping[str, nnx.Variable[jax.Array]]) -> None:
    """Give a norm its values: the variable of the old norm where that is of the same type, else one like it."""
    for name, value in values.values.items():
        own: nnx.Variable[jax.Array] = getattr(norm, name)
        source = old.get(values.sources.get(name, name))
        if source is not None and values.sources.get(name) == name and isinstance(source, type(own)):
            setattr(norm, name, source)
        else:
            setattr(norm, name, type(own)(value, **({} if source is None else source.get_metadata())))


def _parameters(old: Mapping[str, nnx.Variable[jax.Array]], norm: nnx.Module) -> frozenset[str]:
    """Return the names of what was or is a parameter."""
    return frozenset(name for name, one in [*old.items(), *_variables(norm).items()] if isinstance(one, nnx.Param))


def _with(model: nnx.Module, replaced: Mapping[int, nnx.Module]) -> object:
    """Put modules in the places of others, wherever these are."""

    def new(value: object) -> object:
        if isinstance(value, tuple) and any(id(part) in replaced for part in value):
            return tuple(map(new, value))
        return replaced.get(id(value), value)

    for _, node in list(nnx.iter_graph(model)):
        for key, value in list(_items(node)):
            if (other := new(value)) is value:
                continue
            if isinstance(node, list | dict | nnx.List):
                cast(dict[object, object], node)[key] = other
            else:
                setattr(node, str(key), other)
    return new(model)


def _items(node: object) -> Iterator[tuple[object, object]]:
    """Yield the parts of a module, a list or a dict."""
    if isinstance(node, list | nnx.List):
        yield from enumerate(cast(Sequence[object], node))
    elif isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, nnx.Pytree):
        yield from vars(node).items()


def _report(changes: Sequence[Change], names: frozenset[Key]) -> Report:
    rows: list[Row] = []
    fresh: dict[Path, jax.ShapeDtypeStruct] = {}
    dropped: list[Path] = []
    for one in changes:
        values, notes = one.values, advice(one.site.kind, one.target.norm.name, one.norm, one.values)
        carried = tuple(values.sources)
        rows.append(
            Row(one.site.path, one.site.kind, str(one.target), "module", carried, values.fresh, one.dropped, notes)
        )
        for name in one.parameters & {*values.fresh}:
            value = values.values[name]
            fresh[(*one.path, name)] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        dropped += [(*one.path, name) for name in one.dropped if name in one.parameters]
    return Report(tuple(rows), names, fresh, tuple(dropped))
