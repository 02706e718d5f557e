"""Convert the norms of a Linen model and their variables."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict, freeze, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import VariableDict
from jax import Array

from normlab.introspect.applied import partitioned
from normlab.introspect.modes import modes
from normlab.introspect.owners import is_boxed
from normlab.norms import Norm
from normlab.tools.conversion.linen_model import Place, Plan, WithNorms
from normlab.tools.conversion.report import Converted, How, Path, Report, Row
from normlab.tools.conversion.targets import FLAX, SETS, Target, check_groups, kept_options
from normlab.tools.conversion.values import Before, Values, advice, new_values, started
from normlab.tools.sites import Site, Sites, sites

__all__ = ["convert_linen"]

Flat = dict[tuple[str, ...], Any]
_OF_CALL = ("parent", "name", "use_running_average")
"""Fields of a norm that differ between calls of a model."""


class Change(NamedTuple):
    """A norm that another takes the place of."""

    site: Site
    target: Target
    norm: nn.Module


def convert_linen(
    model: nn.Module,
    variables: VariableDict,
    found: Sites,
    chosen: Mapping[str, Target],
    args: tuple[object, ...],
    keep: Collection[str],
) -> Converted[nn.Module]:
    """Return a Linen model with other norms.

    Args:
        model: The model.
        variables: Its variables.
        found: Its norms.
        chosen: The norms that take their places, by path.
        args: Inputs of a call.
        keep: What is kept; see `normlab.tools.convert`.
    """
    changes = [_change(found.by_path[path], target, keep) for path, target in chosen.items()]
    after = flatten_dict(unfreeze(cast("dict[str, Any]", variables)), is_leaf=lambda _, value: is_boxed(value))
    moved = [_move(change, after, keep) for change in changes]
    new: VariableDict = {**{name: {} for name in variables}, **unflatten_dict(after)}
    by_field = _by_field(model, changes, found, new, args)
    converted = _wrapped(model, changes) if by_field is None else by_field
    how: How = "wrapper" if by_field is None else "field"
    if by_field is None:
        _check_call(converted, new, args)
    report = _report(changes, moved, how, variables)
    return Converted(converted, freeze(new) if isinstance(variables, FrozenDict) else new, report)


def _change(site: Site, target: Target, keep: Collection[str]) -> Change:
    """Return the new norm for a place, without variables."""
    options = kept_options(site, target, keep)
    options.pop("use_running_average", None)  # each call has the mode of the norm that was there
    if target.norm.name == "group":
        check_groups(site.path, {**options, **target.norm.options}, prod(site.shape[axis] for axis in site.features))
    if target.library == "flax":
        return Change(site, target, getattr(nn, FLAX[target.norm.name])(**options, **target.norm.options))
    return Change(site, target, target.norm.linen(train=False, **options))


@dataclass(frozen=True)
class _Moved:
    """The variables of a norm after it was converted."""

    values: Values
    dropped: tuple[str, ...]
    collections: Mapping[str, str]


def _move(change: Change, flat: Flat, keep: Collection[str]) -> _Moved:
    """Replace the variables of a norm in a flat tree."""
    site = change.site
    places = {role: tuple(name.split("/")) for role, name in site.variables.items()}
    boxes = {role: flat[path] for role, path in places.items() if path in flat}
    old = {role: nn.unbox(leaf) for role, leaf in boxes.items()}
    before = Before(site.kind, getattr(site.module, "epsilon", 0.0), old)
    shapes, collections = _shapes(change.norm, site)
    extra = _extra(site, old)
    starts = started(shapes, extra)
    if starts is None:
        starts = {name: jnp.broadcast_to(x, (*extra, *x.shape)) for name, x in _initial(change.norm, site).items()}
    values = new_values(before, change.target.norm.name, getattr(change.norm, "epsilon", 0.0), starts, keep)
    for path in places.values():
        flat.pop(path, None)
    for name, value in values.values.items():
        box = boxes.get(values.sources.get(name, name))
        boxed = isinstance(box, nn.meta.AxisMetadata)
        flat[(collections[name], *_path(site), name)] = box.replace_boxed(value) if boxed else value
    dropped = tuple(name for name in old if name not in values.values and name not in values.sources.values())
    return _Moved(values, dropped, collections)


def _probe(norm: nn.Module) -> nn.Module:
    """Return a norm that can be initialized by itself: it evaluates, on one device, with no metadata."""
    defaults = {field.name: field.default for field in dataclasses.fields(norm)}
    plain: dict[str, Any] = {"use_running_average": True, "axis_name": None}
    plain |= {name: defaults.get(name) for name in ("scale_init", "bias_init")}
    return norm.clone(**{name: value for name, value in plain.items() if name in defaults})


def _initial(norm: nn.Module, site: Site) -> dict[str, Array]:
    init = jax.jit(lambda key: _probe(norm).init(key, jnp.zeros(site.shape, site.dtype)))
    made: Flat = flatten_dict(init(jax.random.key(0)))
    return {path[-1]: value for path, value in made.items()}


def _shapes(norm: nn.Module, site: Site) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, str]]:
    """Return the shapes of a norm's variables, and their collections, by name."""
    x = jax.ShapeDtypeStruct(site.shape, site.dtype)
    found: Flat = flatten_dict(jax.eval_shape(_probe(norm).init, jax.random.key(0), x))
    return {path[-1]: shape for path, shape in found.items()}, {path[-1]: path[0] for path in found}


def _extra(site: Site, old: Mapping[str, Array]) -> tuple[int, ...]:
    """Return the leading axes along which a scan or a vmap stacks the variables of a norm."""
    if site.kind in SETS or not old:
        return ()
    shapes, _ = _shapes(site.module, site)
    extras = [value.shape[: value.ndim - len(shapes[name].shape)] for name, value in old.items() if name in shapes]
    return extras[0] if extras else ()


def _wrapped(model: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """Put a module around a model in which norms are in their places; conversions of conversions are one."""
    places = {_path(change.site): _without_mode(change.norm) for change in changes}
    if isinstance(model, WithNorms):
        places = {**{place.path: place.norm for place in model.plan.places}, **places}
        model = model.plan.model
    return WithNorms(Plan(model, tuple(Place(path, norm) for path, norm in places.items())))


def _check_call(model: nn.Module, variables: VariableDict, args: tuple[object, ...]) -> None:
    """Trace a call, so that a norm that cannot know its mode is refused now."""
    arrays, joined, _ = partitioned(args)
    options: dict[str, Any] = {"mutable": True, "rngs": {"params": jax.random.key(0)}, **modes(model).evaluate}
    jax.eval_shape(lambda variables, arrays: model.apply(variables, *joined(arrays), **options), variables, arrays)


def _path(site: Site) -> tuple[str, ...]:
    return tuple(site.path.split("/")) if site.path else ()


def _without_mode(norm: nn.Module) -> nn.Module:
    return norm.clone(use_running_average=None) if hasattr(norm, "use_running_average") else norm


def _by_field(
    model: nn.Module, changes: Sequence[Change], found: Sites, variables: VariableDict, args: tuple[object, ...]
) -> nn.Module | None:
    """Return a model with another norm in the field that holds it, if this gives all the wanted norms and no others."""
    wanted = {site.path: site.module for site in found} | {change.site.path: change.norm for change in changes}
    for field in dataclasses.fields(model):
        held = getattr(model, field.name) if field.name not in ("parent", "name") else None
        other = _other(held, changes)
        if other is None:
            continue
        changed: dict[str, Any] = {field.name: other}
        new = model.clone(**changed)
        try:
            made = {site.path: site.module for site in sites(new, variables, *args)}
        except (TypeError, ValueError):  # the field takes norms with other arguments
            continue
        if made.keys() == wanted.keys() and all(_same(made[path], wanted[path]) for path in made):
            return new
    return None


def _other(held: object, changes: Sequence[Change]) -> object:
    """Return a value of the same kind as a field that holds a norm, for the new norm; `None` where it holds none."""
    first = changes[0]
    shared = {
        name: value
        for name, value in _set(first.norm).items()
        if all(_set(one.norm).get(name) == value for one in changes)
    }
    if isinstance(held, Norm) and first.target.library == "normlab":
        return Norm(first.target.norm.entry, tuple(sorted({**shared, **first.target.norm.options}.items())))
    kind = held.func if isinstance(held, functools.partial) else held
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return functools.partial(type(first.norm), **shared) if shared else type(first.norm)
    return None


def _set(norm: nn.Module) -> dict[str, object]:
    """Return the options of a norm that are not the default."""
    fields = [field for field in dataclasses.fields(norm) if field.name not in _OF_CALL]
    return {f.name: getattr(norm, f.name) for f in fields if getattr(norm, f.name) is not f.default}


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two norms are the same but for their mode."""
    names = [field.name for field in dataclasses.fields(one) if field.name not in _OF_CALL]
    return type(one) is type(other) and all(getattr(one, name) == getattr(other, name) for name in names)


def _report(changes: Sequence[Change], moved: Sequence[_Moved], how: How, variables: VariableDict) -> Report:
    rows: list[Row] = []
    fresh: dict[Path, jax.ShapeDtypeStruct] = {}
    dropped: list[Path] = []
    for change, one in zip(changes, moved, strict=True):
        at: Path = _path(change.site)
        rows.append(_row(change, one, how))
        for name in one.values.fresh:
            if one.collections[name] == "params":
                value = one.values.values[name]
                fresh[(*at, name)] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        olds = {role for role, name in change.site.variables.items() if name.startswith("params/")}
        dropped += [(*at, name) for name in one.dropped if name in olds]
    return Report(tuple(rows), frozenset(variables.get("params", {})), fresh, tuple(dropped))


def _row(change: Change, moved: _Moved, how: How) -> Row:
    notes = advice(change.site.kind, change.target.norm.name, change.norm, moved.values)
    carried = tuple(moved.values.sources)
    return Row(
        change.site.path, change.site.kind, str(change.target), how, carried, moved.values.fresh, moved.dropped, notes
    )
