"""Which norm takes the place of each, and which options it keeps."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from flax import linen as nn
from flax import nnx

import normlab.linen
from normlab import norms
from normlab.errors import BadInput
from normlab.expect import refusal
from normlab.introspect.calls import Module
from normlab.norms import Norm
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites

__all__ = [
    "FLAX",
    "SETS",
    "Options",
    "Target",
    "To",
    "check_groups",
    "check_plain",
    "kept_options",
    "same_family",
    "targets",
]

To: TypeAlias = str | Norm | Mapping[str, str | Norm]
Options: TypeAlias = dict[str, object]

FLAX: Mapping[str, str] = {
    "batch": "BatchNorm",
    "layer": "LayerNorm",
    "rms": "RMSNorm",
    "group": "GroupNorm",
    "instance": "InstanceNorm",
}
"""Classes of Flax by kind, of the same name in Linen and NNX."""

SETS = ("domain_batch",)
"""Kinds whose variables have an axis for sets of examples."""

_ALL = "*"
"""The glob that names no norm: it is as good as none."""

_LIBRARIES = ("flax", "normlab")
_BY_CHOICE = ("epsilon", "momentum", "axis_name", "dtype")
_ALWAYS = (
    "use_running_average",
    "use_scale",
    "use_bias",
    "param_dtype",
    "axis_index_groups",
    "scale_init",
    "bias_init",
)
_PRECISION = ("use_fast_variance", "force_float32_reductions")
"""Options of Flax's norms that this package does not take over: its statistics are always precise."""


@dataclass(frozen=True)
class Target:
    """The norm that takes the place of another.

    Attributes:
        norm: The norm, with the options that were asked for.
        library: Whose class it is.
    """

    norm: Norm
    library: Literal["flax", "normlab"] = "normlab"

    def __str__(self) -> str:
        return f"{'flax ' if self.library == 'flax' else ''}{self.norm}"


def targets(sites: Sites, to: To, where: Where) -> dict[str, Target]:
    """Return the norms that take the places of others, by path.

    Args:
        sites: The norms of the model.
        to: A norm, or its string; `flax` or `normlab` for the same norm of that library; or such by globs of paths.
        where: The norms that are meant.

    Raises:
        BadInput: If a glob matches nothing, or a norm of the user's would be replaced that was not named.
    """
    if not isinstance(to, str | Norm | Mapping):
        raise refusal(
            "`to` to be a norm, its string, or a mapping from paths to norms", to, "Write one such as 'group'."
        )
    meant = {site.path: site for site in select(sites, where)}
    chosen: dict[str, Target] = {}
    for glob, norm in to.items() if isinstance(to, Mapping) else [(_ALL, to)]:
        is_named = where is not None or glob != _ALL
        for site in select(sites, None if glob == _ALL else glob):
            if site.path not in meant or site.path in chosen or site.kind == "weight":
                continue
            if not is_named and site.kind == "none":
                continue
            if not is_named:
                check_plain(site)
            chosen[site.path] = _target(site, norm)
    if not chosen:
        kinds = ", ".join(site.kind for site in sites) or "none"
        raise BadInput(f"Expected a model with norms of activations to convert, got {kinds}. Name others in `where=`.")
    return chosen


def _target(site: Site, norm: str | Norm) -> Target:
    if isinstance(norm, str) and norm in _LIBRARIES:
        return Target(norms.get(site.kind), "flax" if norm == "flax" else "normlab")
    return Target(norms.get(norm))


def check_plain(site: Site) -> None:
    """Refuse a norm of the user's that does more than its base in the call.

    Raises:
        BadInput: If it does.
    """
    if site.library == "user":
        raise BadInput(
            f"Expected plain {norms.get(site.kind).title}s, `{site.path}` is a `{type(site.module).__name__}`, which "
            "does more in `__call__`. Name it in `where=` to replace it all the same."
        )


def same_family(before: str, after: str) -> bool:
    """Return whether two kinds of norms have the same options and statistics, in whatever form."""
    family = {"batch": "batch", "batch_renorm": "batch"}
    return family.get(before, before) == family.get(after, after)


def kept_options(site: Site, target: Target, keep: Collection[str]) -> Options:
    """Return the options that the new norm has from the old one; those that were asked for are not among them.

    Args:
        site: The old norm.
        target: The new norm.
        keep: Names of options that are kept if they are in `epsilon`, `momentum`, `axis_name` and `dtype`.

    Raises:
        BadInput: If Flax has no such norm, or not with such options.
    """
    given, kind = _options(site.module), target.norm.name
    family = same_family(site.kind, kind)
    kept: Options = {}
    for name, value in given.items():
        if name in _PRECISION and target.library == "normlab" and not _is_ours(site.module):
            continue
        if name in keep if name in _BY_CHOICE else name in _ALWAYS or family:
            kept[name] = value
    if not family:
        kept |= _axes(site, kind)
        if norms.get(site.kind).entry.averages != target.norm.entry.averages:
            kept.pop("momentum", None)
    if kept.get("group_size") is not None and kept.get("num_groups") is not None:
        del kept["group_size"]  # one says the other
    if target.library == "flax":
        _check_flax(site, {**kept, **target.norm.options})
    known = _known(target)
    asked = {*target.norm.options, *(("feature_axes", "reduction_axes") if "axis" in target.norm.options else ())}
    return {name: value for name, value in kept.items() if name in known and name not in asked}


def _is_ours(module: Module) -> bool:
    return any(base.__module__.startswith("normlab.") for base in type(module).__mro__)


def _options(module: Module) -> Options:
    """Return the options of a norm by name."""
    if isinstance(module, nn.Module):
        fields = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
        return {name: getattr(module, name) for name in fields}
    found = {name: value for name, value in vars(module).items() if not isinstance(value, nnx.Variable)}
    if hasattr(type(module), "frozen"):
        found["frozen"] = getattr(module, "frozen")  # noqa: B009  (a property of some)
    for name in ("scale", "bias"):
        if name in vars(module):
            found[f"use_{name}"] = getattr(module, name) is not None
    return found


def _axes(site: Site, kind: str) -> Options:
    """Return the axes of a norm of another family with the same features."""
    features = tuple(axis - len(site.shape) for axis in site.features)
    axes: object = features[0] if len(features) == 1 else features
    if not site.shape:  # of an NNX model, which is not called
        axes = next((getattr(site.module, name) for name in ("feature_axes", "axis") if hasattr(site.module, name)), -1)
    if kind in ("layer", "rms", "l2", "seednorm", "bhyt"):
        return {"reduction_axes": axes, "feature_axes": axes}
    return {"axis": axes, "feature_axes": axes}


def _known(target: Target) -> set[str]:
    """Return the names of the options of the new norm."""
    name, package = (
        (FLAX.get(target.norm.name, ""), nn) if target.library == "flax" else (target.norm.entry.module, normlab.linen)
    )
    if not name:
        return set()
    fixed = {option for option, _ in target.norm.entry.fixed}
    return {field.name for field in dataclasses.fields(getattr(package, name)) if field.name not in fixed}


def _check_flax(site: Site, options: Options) -> None:
    """Refuse a norm that Flax does not have, or not with its options."""
    if site.kind not in FLAX:
        raise BadInput(
            f"Expected norms that Flax has, `{site.path}` is {norms.get(site.kind).title}. Convert it to another, or "
            "leave it out by `where=`."
        )
    ours, theirs = (getattr(package, FLAX[site.kind]) for package in (normlab.linen, nn))
    known = {field.name for field in dataclasses.fields(theirs)}
    defaults = {field.name: field.default for field in dataclasses.fields(ours)}
    lacking = [name for name in options if name in defaults and name not in known and options[name] != defaults[name]]
    if "momentum" in options and not isinstance(options["momentum"], float | int):
        lacking.append("momentum")
    if lacking:
        raise BadInput(
            f"Expected options that Flax has, `{site.path}` has `{lacking[0]}={options[lacking[0]]!r}`. Leave it out "
            "by `where=`."
        )


def check_groups(path: str, options: Mapping[str, object], features: int) -> None:
    """Refuse groups that do not divide the features of a norm.

    Args:
        path: Path of the norm.
        options: Options of a group norm.
        features: Its number of features.

    Raises:
        BadInput: If they do not; the message has the nearest numbers that do.
    """
    name = "group_size" if options.get("group_size") is not None else "num_groups"
    number = options.get(name, 32)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1 or features % number == 0:
        return  # the norm says what else is wrong
    divisors = [n for n in range(1, features + 1) if features % n == 0]
    near = sorted({max(n for n in divisors if n < number), min((n for n in divisors if n > number), default=features)})
    raise BadInput(
        f"Expected `{name}` to divide the {features} features of `{path}`, got {number}. Choose "
        f"{' or '.join(map(str, near))}, as in 'group:{name}={near[0]}'."
    )
