"""Kernels of a Linen model, normalized outside of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from flax.core import unfreeze
from flax.linen.module import InterceptorContext

from normlab.functional.kernels import KernelNorm, WeightNorm, fit_to_batch, get
from normlab.functional.kernels.layers import flat_outputs
from normlab.linen._calls import Path, is_boxed, visit
from normlab.linen._reparametrized import Reparametrized, Standardized, raw_kernel

Tree = dict[str, Any]
"""Variables of a model, or a part of them."""

Given = Mapping[str, Any]
"""Variables or options, as they are given."""


@dataclass(frozen=True)
class Site:
    """A place where a kernel is normalized.

    Attributes:
        norm: The norm.
        owner: Path of the norm's own variables.
        layer: Path of the layer.
        shape: Shape of the kernel inside the layer, which stacked layers store with further axes before.
        features: Output features of the layer.
    """

    norm: KernelNorm
    owner: Path
    layer: Path
    shape: tuple[int, ...]
    features: int | Sequence[int]


def site_of(module: nn.Module) -> Site | None:
    """Return where a module that is bound to variables normalizes a kernel; `None` where it does not."""
    if isinstance(module, Reparametrized):
        layer = module.layer
    elif isinstance(module, Standardized):
        layer = module
    else:
        return None
    return Site(
        get(module.norm), module.path, layer.path, raw_kernel(layer).shape, getattr(layer, "features", None) or 1
    )


def normalized(
    model: nn.Module,
    variables: Given,
    inputs: tuple[object, ...],
    options: Given,
    *,
    update_stats: bool,
    keep_state: bool,
) -> Tree:
    """Return variables in which every kernel is normalized, and the norms have no parameters.

    Args:
        model: The model.
        variables: As from `model.init`.
        inputs: Inputs of a call.
        options: Keyword arguments of the call.
        update_stats: Whether the state of norms is replaced.
        keep_state: Whether it stays among the variables.
    """
    sites: dict[Path, Site] = {}

    def note(module: nn.Module) -> None:
        if site := site_of(module):
            sites[site.owner] = site

    visit(model, variables, inputs, options, note)
    new = unfreeze({**variables})
    for site in sites.values():
        params = new["params"]
        layer = _at(params, site.layer)
        parameters = {name: nn.unbox(_at(params, site.owner)[name]) for name in site.norm.parameter_names}
        stored = new.get("batch_stats", {})
        state = {name: nn.unbox(_at(stored, site.owner)[name]) for name in site.norm.state_names}
        kernel = nn.unbox(layer["kernel"])
        kernel, after = _stacked(site, kernel, update_stats)(kernel, parameters, state)
        _put(layer, "kernel", kernel)
        _take_out(params, site.owner, parameters)
        if keep_state:
            _at(stored, site.owner).update(after)
        else:
            _take_out(stored, site.owner, state)
    return {name: collection for name, collection in new.items() if collection}


def _stacked(site: Site, kernel: jax.Array, update_stats: bool) -> Callable[..., tuple[jax.Array, Given]]:
    """Return the norm of a kernel, or of a stack of kernels, as `nn.scan` and `nn.vmap` store them.

    Raises:
        ValueError: If kernels are not stacked along leading axes.
    """
    extra = kernel.ndim - len(site.shape)
    if kernel.shape[extra:] != site.shape:
        raise ValueError(
            f"Expected kernels of shape {site.shape} stacked along the first axis, got {kernel.shape} in "
            f"{'/'.join(site.layer)}. Use `variable_axes={{'params': 0}}`."
        )

    def one(kernel: jax.Array, parameters: Any, state: Any) -> tuple[jax.Array, Given]:
        new, after = site.norm(flat_outputs(kernel, site.features), parameters, state, train=update_stats)
        return new.reshape(kernel.shape), after

    for _ in range(extra):
        one = jax.vmap(one)
    return one


def _at(tree: Tree, path: Path) -> Tree:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _take_out(tree: Tree, path: Path, names: Given) -> None:
    """Remove variables of a module, and what is empty then."""
    for name in names:
        del _at(tree, path)[name]
    for depth in range(len(path), 0, -1) if names else ():
        parent = _at(tree, path[: depth - 1])
        if not parent[path[depth - 1]]:
            del parent[path[depth - 1]]


def initialized(model: nn.Module, variables: Given, inputs: tuple[object, ...], options: Given) -> Tree:
    """Return variables in which weight norm gives each layer an output of mean 0 and variance 1.

    Args:
        model: The model.
        variables: As from `model.init`.
        inputs: A batch.
        options: Keyword arguments of the call.

    Raises:
        ValueError: If a layer is called twice.
    """
    new = unfreeze({**variables})
    seen: set[Path] = set()

    def standardized(call: Callable[..., Any], given: Any, options: Any, context: InterceptorContext) -> Any:
        y = call(*given, **options)
        site = site_of(context.module) if context.method_name == "__call__" else None
        if site is None or not isinstance(site.norm, WeightNorm):
            return y
        if site.owner in seen:
            raise ValueError(
                f"Expected each layer with weight norm to be called once, got two calls of {'/'.join(site.owner)}. Set "
                "its `g` and `bias` yourself."
            )
        seen.add(site.owner)
        owner, layer = _at(new["params"], site.owner), _at(new["params"], site.layer)
        fitted = fit_to_batch(y, nn.unbox(owner["g"]), nn.unbox(layer.get("bias")))
        _put(owner, "g", fitted.g)
        if fitted.bias is not None:
            _put(layer, "bias", fitted.bias)
        return fitted.y

    with jax.disable_jit(), nn.intercept_methods(standardized):
        model.apply(variables, *inputs, **options, mutable=True)
    return new


def _put(tree: Tree, name: str, value: jax.Array) -> None:
    """Replace the value of a variable, and keep its metadata."""
    tree[name] = tree[name].replace_boxed(value) if is_boxed(tree[name]) else value
