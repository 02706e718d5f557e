"""Freeze the norms of a trained model for fine-tuning: statistics, scale and bias, or one of the two."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import jax
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

import normlab.linen
from normlab import norms
from normlab.errors import BadInput
from normlab.introspect.owners import is_boxed, path_of
from normlab.nnx import FrozenParam
from normlab.tools.conversion.report import Converted, Report
from normlab.tools.conversion.targets import Target, check_plain
from normlab.tools.convert import converted_to, model_sites
from normlab.tools.masks import labels
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites

__all__ = ["freeze"]


def freeze(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *,
    args: tuple[object, ...] = (),
    where: Where = None,
    statistics: bool = True,
    affine: bool = True,
) -> Converted[Any]:
    """Freeze norms: they normalize by their running statistics in training, too, and are not trained.

    Weight decay moves parameters that have no gradient. In Linen, give `optax.multi_transform` the labels of the result
    and `{"frozen": optax.set_to_zero(), ...}`; in NNX, frozen parameters are no `nnx.Param`, and the optimizer is to be
    made for the new model.

    Args:
        model: A model of Linen or NNX, which stays as it is.
        variables: Of a Linen model; `None` for NNX.
        args: Inputs of a call of a Linen model; only shapes count.
        where: Norms that are frozen, as in `normlab.tools.convert`; `None` is all norms with running statistics, or all
            norms where `statistics` is False.
        statistics: Whether running statistics normalize, and stay as they are.
        affine: Whether scale and bias stay as they are. With `statistics` alone they learn.

    Returns:
        The model, its variables, a report, and `labels`: `frozen`, `norm`, `bias` or `other` for each parameter.

    Raises:
        BadInput: If there is nothing to freeze, or a norm cannot be frozen.

    Example:
        >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=False)])
        >>> x = jax.numpy.ones((4, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> frozen = freeze(model, variables, args=(x,))
        >>> frozen.labels["layers_1"]
        {'bias': 'frozen', 'scale': 'frozen'}
        >>> _, after = frozen.model.apply(frozen.variables, x, mutable=["batch_stats"])
        >>> bool((after["batch_stats"]["layers_1"]["mean"] == 0).all())
        True
    """
    if not (statistics or affine):
        raise BadInput("Expected to freeze statistics, or scale and bias, got neither. Pass one of them as True.")
    found = model_sites(model, variables, args)
    meant = _meant(found, where, statistics)
    running = [site for site in meant if statistics and _can_freeze(site)]
    chosen = {site.path: _target(site, affine) for site in running}
    frozen: Converted[Any] = Converted(model, variables, Report(()))
    if chosen:
        frozen = converted_to(model, variables, found, chosen, args=args)
    elif isinstance(model, nnx.Module):
        frozen = replace(frozen, model=nnx.clone(model))
    if not affine:
        return replace(frozen, labels=labels(frozen.model, frozen.variables, *args))
    return _with_frozen_parameters(frozen, [site.path for site in meant], args)


def _meant(found: Sites, where: Where, statistics: bool) -> tuple[Site, ...]:
    """Return the norms to be frozen.

    Raises:
        BadInput: If there are none, or one of them cannot be frozen or does more in its call.
    """
    meant = tuple(site for site in select(found, where) if site.kind not in ("weight", "none"))
    if where is None and statistics:
        meant = tuple(site for site in meant if norms.get(site.kind).stateful)
    if not meant:
        kinds = ", ".join(site.kind for site in found)
        raise BadInput(
            f"Expected a model with running statistics, found none among its {len(found)} norms ({kinds or 'none'}). "
            "Pass `statistics=False` to freeze scale and bias alone."
        )
    for site in meant:
        if where is None and statistics:
            check_plain(site)
        if statistics and norms.get(site.kind).stateful and not _can_freeze(site):
            raise BadInput(
                f"Expected norms that can be frozen, `{site.path}` is {norms.get(site.kind).title}. Leave it out by "
                "`where=`, or pass `statistics=False`."
            )
    return meant


def _can_freeze(site: Site) -> bool:
    kind = getattr(normlab.linen, norms.get(site.kind).entry.module, None)
    return kind is not None and "frozen" in {field.name for field in dataclasses.fields(kind)}


def _target(site: Site, affine: bool) -> Target:
    """Return the norm by running statistics, with or without learned scale and bias."""
    options = {"frozen": True} if affine else {"frozen": False, "statistics": "running", "momentum": 1.0}
    return Target(norms.get(site.kind, **options))


def _with_frozen_parameters(frozen: Converted[Any], paths: Collection[str], args: tuple[object, ...]) -> Converted[Any]:
    """Freeze scale and bias of norms: by their type in NNX, by their labels in Linen."""
    if isinstance(frozen.model, nnx.Module):
        for path, node in nnx.iter_graph(frozen.model):
            if "/".join(map(str, path)) in paths and isinstance(node, nnx.Module):
                _freeze_parameters(node)
        return replace(frozen, labels=labels(frozen.model))
    said = labels(frozen.model, frozen.variables, *args)

    def at(keys: tuple[object, ...], leaf: object) -> object:
        if "/".join(map(str, path_of(keys)[:-1])) not in paths:
            return leaf
        return leaf.replace_boxed("frozen") if isinstance(leaf, nn.meta.AxisMetadata) else "frozen"

    tree = jax.tree_util.tree_map_with_path(at, said, is_leaf=is_boxed)
    return replace(frozen, labels=cast(Mapping[str, object], tree))


def _freeze_parameters(norm: nnx.Module) -> None:
    """Make the parameters of a norm no `nnx.Param`."""
    for name, variable in list(vars(norm).items()):
        if isinstance(variable, nnx.Param):
            setattr(norm, name, FrozenParam(variable.get_raw_value(), **variable.get_metadata()))
